"""Check that the code and the files named by a config exist, before any sample is prepared.

Otherwise the user would see the error of a consequence: samples of unequal shapes, say, because the
layer that takes them lies in a package that is not trusted. What is missing of network and data is
told together: neither follows from the other.
"""

from collections.abc import Iterator, Mapping

from finetune.config.base import Node
from finetune.config.loss_keys import ImportLoss
from finetune.config.metric_keys import ImportMetric
from finetune.config.model import ImportLayer, WeightsConfig
from finetune.config.run import RunConfig
from finetune.config.source_keys import ImportSource
from finetune.config.task_keys import ImportTask
from finetune.config.transform_keys import ImportTransform, TokenizeTransform
from finetune.data.parts.raw_data import find_columns
from finetune.data.steps.loaded_tokenizer import refuse_missing_tokenizer
from finetune.errors import Faults, Key
from finetune.importing import import_trusted
from finetune.models.preprocessing import Preprocessing, read_preprocessing
from finetune.models.weights import weights_file

_IMPORTS = (ImportLayer, ImportSource, ImportTransform, ImportLoss, ImportMetric, ImportTask)


def refuse_missing(config: RunConfig) -> Preprocessing:
    """Import all code that a config names, look for its files; return what its network tells.

    If something is missing, the sources are read too, for the files and columns that they lack.
    Otherwise that is left to the opening of the data.

    Raises:
        FinetuneError: something is missing, or not trusted. All faults are reported at once.
    """
    faults, preprocessing = Faults(), Preprocessing(None, None)
    for key, node in _nodes(config, ()):
        with faults.noted():
            if isinstance(node, _IMPORTS):
                import_trusted(node.path, config.trust, key=key)
            elif isinstance(node, WeightsConfig):
                weights_file(node, key=key)
            elif isinstance(node, TokenizeTransform) and node.tokenizer is not None:
                refuse_missing_tokenizer(node.tokenizer, (*key, "tokenizer"))
    with faults.noted():
        preprocessing = read_preprocessing(config.model)
    # Else the data is opened next anyway, and would be read twice.
    if faults:
        with faults.noted():
            find_columns(config.data, config.task, config.trust, files=None)
    faults.raise_if_any()
    return preprocessing


def _nodes(value: object, key: Key) -> Iterator[tuple[Key, Node]]:
    """Yield all config nodes in a value, outer ones first, each with its key."""
    match value:
        case Node():
            yield key, value
            for name in type(value).model_fields:
                yield from _nodes(getattr(value, name), (*key, name))
        case Mapping():
            for name, item in value.items():
                yield from _nodes(item, (*key, str(name)))
        case tuple() | list():
            for position, item in enumerate(value):
                yield from _nodes(item, (*key, position))
