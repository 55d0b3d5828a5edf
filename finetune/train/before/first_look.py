"""Check that the code and the files named by a config exist, before any data is read.

Otherwise the user would see the error of a consequence: samples of unequal shapes, say, because the
layer that takes them lies in a package that is not trusted.
"""

from collections.abc import Iterator, Mapping

from finetune.config.base import Node
from finetune.config.loss_keys import ImportLoss
from finetune.config.metric_keys import ImportMetric
from finetune.config.model import ImportLayer, WeightsConfig
from finetune.config.run import RunConfig
from finetune.config.source_keys import ImportSource
from finetune.config.task_keys import ImportTask
from finetune.config.transform_keys import ImportTransform
from finetune.errors import Faults, Key
from finetune.importing import import_trusted
from finetune.models.weights import weights_file

_IMPORTS = (ImportLayer, ImportSource, ImportTransform, ImportLoss, ImportMetric, ImportTask)


def refuse_missing(config: RunConfig) -> None:
    """Import all code that a config names, and check that its weight files exist.

    Raises:
        FinetuneError: something is missing, or not trusted. All faults are reported at once.
    """
    faults = Faults()
    for key, node in _nodes(config, ()):
        with faults.noted():
            if isinstance(node, _IMPORTS):
                import_trusted(node.path, config.trust, key=key)
            elif isinstance(node, WeightsConfig):
                weights_file(node, key=key)
    faults.raise_if_any()


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
