"""Code and files that a config names, looked for before any data is read.

Without this, what comes of a package that is not trusted or of a missing file would be told in its
place: samples of unequal shapes, say, which the missing layer was to take.
"""

from collections.abc import Iterator, Mapping

from finetune.config.base import Node
from finetune.config.data import ImportSource, ImportTransform
from finetune.config.model import ImportLayer, WeightsConfig
from finetune.config.run import RunConfig
from finetune.config.task import ImportLoss, ImportMetric, ImportTask
from finetune.errors import Faults, Key
from finetune.importing import import_trusted
from finetune.models.weights import weights_file

_IMPORTS = (ImportLayer, ImportSource, ImportTransform, ImportLoss, ImportMetric, ImportTask)


def refuse_missing(config: RunConfig) -> None:
    """Import all code that a config names, and look for its files of weights.

    Raises:
        FinetuneError: something is not there, or not trusted. All that is wrong is told.
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
    """Yield a node and all below it, with where each stands."""
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
