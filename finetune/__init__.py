"""Fine-tune a PyTorch network from one YAML file: frozen where you say so, and proven."""

from importlib import import_module

__version__ = "0.1.0"

# Type checkers take it for true. `typing` is not imported for it: under `python -m finetune` this
# file runs while Python still looks for modules in the current folder.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from finetune.activations.standalone import cached_prefix as cached_prefix
    from finetune.config.loader import load_config as load_config
    from finetune.errors import FinetuneError as FinetuneError
    from finetune.freezing.apply import freeze as freeze, thaw as thaw
    from finetune.freezing.proof import fingerprints as fingerprints, verify as verify
    from finetune.freezing.report import freeze_map as freeze_map
    from finetune.freezing.select import select as select
    from finetune.models.inventory import take_inventory as take_inventory
    from finetune.predict import load_predictor as load_predictor
    from finetune.train.setup import build_trainer as build_trainer

# Each name is imported when first asked for: `finetune --help` must not wait for torch.
_HOMES = {
    "load_config": "config.loader",
    "FinetuneError": "errors",
    "freeze": "freezing.apply",
    "thaw": "freezing.apply",
    "fingerprints": "freezing.proof",
    "verify": "freezing.proof",
    "freeze_map": "freezing.report",
    "select": "freezing.select",
    "take_inventory": "models.inventory",
    "load_predictor": "predict",
    "build_trainer": "train.setup",
    "cached_prefix": "activations.standalone",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the names are those of _HOMES


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return __all__
