"""Fine-tune a PyTorch network from one YAML file: frozen where you say so, and proven."""

from importlib import import_module

__version__ = "0.1.0"

# Type checkers take it for true. `typing` is not imported for it: under `python -m finetune` this
# file runs while Python still looks for modules in the current folder.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from finetune.activations.standalone import cached_prefix as cached_prefix
    from finetune.config.loader import load_config as load_config
    from finetune.errors import (
        CheckpointError as CheckpointError,
        ConfigError as ConfigError,
        DataError as DataError,
        FinetuneError as FinetuneError,
        FrozenWeightError as FrozenWeightError,
        ModelError as ModelError,
        NonFiniteError as NonFiniteError,
        SelectorError as SelectorError,
        SeveralFaultsError as SeveralFaultsError,
        StoppedError as StoppedError,
        TrustError as TrustError,
    )
    from finetune.freezing.apply import freeze as freeze, thaw as thaw
    from finetune.freezing.proof import fingerprints as fingerprints, verify as verify
    from finetune.freezing.report import freeze_map as freeze_map
    from finetune.freezing.select import select as select
    from finetune.models.inventory import take_inventory as take_inventory
    from finetune.predict import (
        load_predictor as load_predictor,
        load_predictors as load_predictors,
    )
    from finetune.train.after.trained import evaluate_run as evaluate  # noqa: F401 - has another name there
    from finetune.train.wire import build_trainer as build_trainer

# Each name is imported when first asked for: `finetune --help` must not wait for torch.
_HOMES = {
    "load_config": "config.loader",
    "build_trainer": "train.wire",
    "evaluate": "train.after.trained:evaluate_run",
    "load_predictor": "predict",
    "load_predictors": "predict",
    "take_inventory": "models.inventory",
    "select": "freezing.select",
    "freeze": "freezing.apply",
    "thaw": "freezing.apply",
    "fingerprints": "freezing.proof",
    "verify": "freezing.proof",
    "freeze_map": "freezing.report",
    "cached_prefix": "activations.standalone",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "FinetuneError": "errors",
    "FrozenWeightError": "errors",
    "ModelError": "errors",
    "NonFiniteError": "errors",
    "SelectorError": "errors",
    "SeveralFaultsError": "errors",
    "StoppedError": "errors",
    "TrustError": "errors",
}
"""Module of each public name; behind a colon its name there, where that is another one."""

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the names are those of _HOMES


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, name_there = _HOMES[name].partition(":")
    found: object = getattr(import_module(f"{__name__}.{module}"), name_there or name)
    return found


def __dir__() -> list[str]:
    return __all__
