"""Hints for unknown keys: the right place of a misplaced key, our word for another tool's.

Keys are taken from the schema; only the words of other tools are a table here.
"""

import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel

from finetune.config.other_words import REMARKS, REMARKS_ON_VALUES
from finetune.errors import Key

_NEAREST = 3
"""Most places named in one hint."""
_TOO_COMMON = 4
"""A name with more places than this (`type`, `path`) gets no hint: it could be meant anywhere."""

OTHER_WORDS = {
    "prefix": "cache",
    **dict.fromkeys(("learning_rate", "learningrate", "base_lr", "max_lr", "eta"), "lr"),
    **dict.fromkeys(
        ("max_epochs", "num_epochs", "n_epochs", "num_train_epochs", "total_epochs", "epoch",
         "nb_epochs", "iterations"), "epochs",
    ),
    **dict.fromkeys(("max_steps", "num_steps", "max_iters", "total_steps", "num_iterations"), "steps"),
    **dict.fromkeys(
        ("batch", "bs", "batchsize", "batches", "train_batch_size", "mini_batch_size",
         "per_device_train_batch_size"), "batch_size",
    ),
    **dict.fromkeys(("eval_batch_size", "per_device_eval_batch_size"), "inference.batch_size"),
    **dict.fromkeys(("micro_batch_size", "microbatch", "gradient_accumulation_steps",
                     "accumulate_grad_batches", "grad_accum"), "micro_batch"),
    **dict.fromkeys(("wd", "decay", "l2"), "weight_decay"),
    **dict.fromkeys(("grad_clip", "clip_grad", "clip_grad_norm", "gradient_clip_val",
                     "gradient_clipping", "clip"), "max_grad_norm"),
    **dict.fromkeys(("random_seed", "random_state", "manual_seed"), "seed"),
    **dict.fromkeys(("num_workers", "dataloader_num_workers", "n_workers"), "workers"),
    **dict.fromkeys(("amp", "fp16", "bf16", "mixed_precision", "half"), "precision"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "accelerator"), "device"),
    **dict.fromkeys(("val", "valid", "dev", "val_split", "validation_split"), "validation"),
    **dict.fromkeys(("test_split", "test_size"), "test"),
    **dict.fromkeys(("labels", "label", "y", "label_column", "target_column", "targets"), "target"),
    **dict.fromkeys(("features", "input", "x", "columns", "text_column", "image_column",
                     "text", "texts"), "inputs"),
    **dict.fromkeys(("loss", "criterion", "loss_fn", "objective"), "losses"),
    **dict.fromkeys(("metric", "scores"), "metrics"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule"), "schedule"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps", "num_warmup_steps", "warmup_epochs"), "warmup"),
    **dict.fromkeys(("eta_min", "min_lr", "lr_end"), "floor"),
    **dict.fromkeys(("num_cycles", "cycles"), "restarts"),
    **{"milestones": "at", "step_size": "every", "t_mult": "growth", "gamma": "factor"},
    **dict.fromkeys(("epsilon", "adam_epsilon"), "eps"),
    **dict.fromkeys(("ema", "swa", "ema_decay", "model_ema"), "average"),
    **dict.fromkeys(("model", "model_name", "arch", "backbone", "model_type"), "architecture"),
    **dict.fromkeys(("model_name_or_path", "pretrained_model", "checkpoint_path", "file",
                     "filename", "filepath", "file_path", "csv_path", "data_path", "data_dir",
                     "dataset_path", "root"), "path"),
    **dict.fromkeys(("delimiter", "sep"), "separator"),
    **dict.fromkeys(("pooling", "pool", "pooling_mode", "pool_type"), "output"),
    **dict.fromkeys(("units", "out_dim", "output_dim", "dim_out"), "out_features"),
    **dict.fromkeys(("in_dim", "input_dim", "dim_in"), "in_features"),
    **{"filters": "out_channels", "kernel": "kernel_size", "strides": "stride"},
    # Of a data set of the hub; elsewhere `split` is a key of its own.
    "split": "part",
    **dict.fromkeys(("sampling_rate", "sr", "rate"), "sample_rate"),
    "duration": "seconds",
    **dict.fromkeys(("na_values", "null_values"), "missing"),
    **dict.fromkeys(("image_folder", "img_dir", "base_dir"), "folder"),
    **dict.fromkeys(("augmentations", "augmentation", "transform", "preprocessing"), "transforms"),
    **dict.fromkeys(("early_stop", "earlystopping"), "early_stopping"),
    **dict.fromkeys(("monitor", "metric_for_best_model"), "metric"),
    **dict.fromkeys(("logging_steps", "log_interval", "log_every_n_steps"), "log_every"),
    **dict.fromkeys(("eval_steps", "eval_interval", "val_check_interval"), "evaluate_every"),
    **dict.fromkeys(("save_steps", "save_total_limit", "checkpoints"), "checkpoint"),
    **dict.fromkeys(("frozen", "freeze_layers", "freezing"), "freeze"),
    **dict.fromkeys(("trainable", "unfreeze"), "train"),
    **dict.fromkeys(("optim", "optimiser"), "optimizer"),
    **dict.fromkeys(("dataset", "datasets"), "data"),
    **dict.fromkeys(("network", "net"), "model"),
}  # fmt: skip
"""Words of other tools, each with ours. `prefix` was our own word in earlier versions."""

OTHER_VALUES = {
    **dict.fromkeys(("fp16", "half", "16", "16_mixed", "16_true", "mixed_float16"), "float16"),
    **dict.fromkeys(("bf16", "bf16_mixed", "bf16_true", "mixed_bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp32", "32", "32_true", "single", "full"), "float32"),
    **dict.fromkeys(("cosineannealinglr", "cosine_with_restarts", "cosineannealing",
                     "cosine_annealing", "cosinedecay"), "cosine"),
    **dict.fromkeys(("steplr", "multisteplr", "multistep"), "step"),
    **dict.fromkeys(("reducelronplateau", "reduce_lr_on_plateau"), "plateau"),
    **dict.fromkeys(("onecyclelr", "onecycle", "1cycle"), "one_cycle"),
    **dict.fromkeys(("linearlr", "linear_with_warmup", "linear_schedule_with_warmup"), "linear"),
    **dict.fromkeys(("constant_with_warmup", "none"), "constant"),
    **dict.fromkeys(("polynomial_decay", "poly", "polynomiallr"), "polynomial"),
    **dict.fromkeys(("exponentiallr", "exponential_decay"), "exponential"),
    **dict.fromkeys(("crossentropyloss", "crossentropy", "ce", "nll", "softmax",
                     "categorical_crossentropy", "sparse_categorical_crossentropy"),
                    "cross_entropy"),
    **dict.fromkeys(("bce", "bceloss", "bcewithlogitsloss", "bce_with_logits",
                     "binary_crossentropy"), "binary_cross_entropy"),
    **dict.fromkeys(("mseloss", "l2loss"), "mse"),
    **dict.fromkeys(("l1loss", "maeloss"), "l1"),
    **dict.fromkeys(("smooth_l1", "smoothl1loss", "huberloss"), "huber"),
    **dict.fromkeys(("focalloss", "focal_loss"), "focal"),
    **dict.fromkeys(("diceloss", "dice_loss"), "dice"),
    **dict.fromkeys(("infonce", "ntxent", "multiplenegativesrankingloss"), "in_batch_negatives"),
    **dict.fromkeys(("gradual_unfreezing", "gradual_unfreeze", "unfreeze", "finetuning_scheduler"),
                    "gradual"),
    **dict.fromkeys(("feature_extraction", "head_only", "probe", "linear_probing"), "linear_probe"),
    **dict.fromkeys(("bias_only", "bias"), "bitfit"),
    **dict.fromkeys(("acc", "top1", "categorical_accuracy"), "accuracy"),
    **dict.fromkeys(("auc", "roc_auc", "roc", "roc_auc_score"), "auroc"),
    **dict.fromkeys(("f1_score", "f_score", "fscore", "f1_macro", "macro_f1"), "f1"),
    **dict.fromkeys(("iou", "miou", "jaccard"), "mean_iou"),
    **dict.fromkeys(("l1", "mean_absolute_error"), "mae"),
    **dict.fromkeys(("l2", "mean_squared_error"), "mse"),
    **dict.fromkeys(("r2_score", "rsquared"), "r2"),
    **dict.fromkeys(("binary", "multiclass", "binary_classification", "multiclass_classification",
                     "text_classification", "image_classification",
                     "sequence_classification", "sentiment", "sentiment_analysis"),
                    "classification"),
    **dict.fromkeys(("multi_label", "tagging", "multilabel_classification"), "multilabel"),
    **dict.fromkeys(("ner", "pos", "sequence_labeling", "tokens"), "token_classification"),
    **dict.fromkeys(("semantic_segmentation", "pixel_classification"), "segmentation"),
    **dict.fromkeys(("embedding", "contrastive", "retrieval", "metric_learning"), "similarity"),
    **dict.fromkeys(("pandas", "excel", "table", "tabular"), "csv"),
    **dict.fromkeys(("json", "ndjson"), "jsonl"),
    **dict.fromkeys(("numpy", "npz", "npy"), "arrays"),
    **dict.fromkeys(("hf", "datasets", "hub"), "huggingface"),
    **dict.fromkeys(("images", "image_folder"), "imagefolder"),
    **dict.fromkeys(("texts", "text_folder"), "textfolder"),
    **dict.fromkeys(("dense", "fc", "fullyconnected", "lazylinear"), "Linear"),
    **dict.fromkeys(("maxpooling2d", "maxpool"), "MaxPool2d"),
    **dict.fromkeys(("globalaveragepooling2d", "globalavgpool", "avgpool"), "AdaptiveAvgPool2d"),
    **dict.fromkeys(("batchnormalization", "batchnorm"), "BatchNorm2d"),
    **dict.fromkeys(("layernormalization", "layer_norm"), "LayerNorm"),
    **dict.fromkeys(("leaky_relu", "leakyrelu"), "LeakyReLU"),
}  # fmt: skip
"""Values of other tools, such as types and metrics, each with ours."""

EXAMPLES = {
    "validation": "split: {validation: 0.2} sets aside a fifth, for example",
    "layers": "model: {layers: [{name: net, type: torchvision, architecture: resnet18}]}, say",
    "phases": "freeze: [encoder] freezes the layer of that name, freeze: [{all: true}] all",
    "to": "tracking: [tensorboard], mlflow or wandb",
    "use": "cache: auto, cache: off, or a mapping with the keys use, views, disk_gb, store_dtype",
    "epochs": "train: {epochs: 3}, say",
}
"""For sections that people write as one word or number: an example, by the section's first key."""


MISSING_KEYS = {
    "columns": "columns: [NAME, ...], names of columns of the data",
    "with": "with: median, most_frequent, mean, or a number",
}
"""Examples for keys without a default whose name does not tell what they hold."""


def word_here(given: str, known: typing.Collection[str]) -> str | None:
    """Return the key among `known` that another tool calls `given`; None if there is none."""
    # Before the nearest spelling: `wd` is nearer to many a key than to `weight_decay`.
    word = OTHER_WORDS.get(_plain(given))
    return word if word in known else None


def remark_on(given: str) -> str | None:
    """Return what stands in the place of a key of another tool; None if nothing is known of it."""
    return REMARKS.get(_plain(given))


def value_here(given: object, known: typing.Collection[str]) -> str | None:
    """Return a hint on a value of another tool, by one among `known` or by a remark, or None."""
    if not isinstance(given, str):
        return None
    word = other_value(given, known)
    return remark_on_value(given, known) if word is None else f"did you mean {word!r}?"


def remark_on_value(given: str, known: typing.Collection[str]) -> str | None:
    """Return a remark on a value of another tool, `given`, that no `known` value replaces."""
    remarks = (
        REMARKS_ON_VALUES[place].get(_plain(given)) for place in known if place in REMARKS_ON_VALUES
    )
    return next((remark for remark in remarks if remark is not None), None)


def other_value(given: str, known: typing.Collection[str]) -> str | None:
    """Return the value among `known` that another tool calls `given`, or None."""
    word = OTHER_VALUES.get(_plain(given))
    return word if word in known else None


def places_of(given: str, config: type[BaseModel], near: Key = ()) -> list[str]:
    """Return full keys that end in the name `given`, or in our word for it; the likeliest first.

    Args:
        given: A key that is unknown at its place.
        config: The root node of the schema.
        near: The key above it; places in the same section are preferred.
    """
    word = OTHER_WORDS.get(_plain(given), given)
    found = _by_name(config).get(given)
    here = [part for part in near if isinstance(part, str) and not part.isdecimal()]
    if found is None or ".".join([*here, given]) in found:
        # The key exists at this very place, but in a node of another type: another source, say.
        found = _by_name(config).get(word) if word != given else None
    if found is None:
        return [word] if "." in word else []
    section = [key for key in found if near and key.split(".")[0] == near[0]]
    # keys below `freeze` belong to single methods or phases, and are seldom meant
    elsewhere = [key for key in found if not key.startswith("freeze.")]
    chosen = section or elsewhere or found
    # Of the rest only those as high up as the first: a deeper key of the same name is rarely the
    # one.
    chosen = [key for key in chosen if key.count(".") == chosen[0].count(".")]
    return chosen[:_NEAREST] if len(chosen) <= _TOO_COMMON else []


def _plain(word: str) -> str:
    """Return a word in the form that `OTHER_WORDS` has: lower case with underscores."""
    return word.casefold().replace("-", "_")


@cache
def _by_name(config: type[BaseModel]) -> dict[str, list[str]]:
    """Return all full keys of the schema by their last part, the shortest first."""
    found: dict[str, list[str]] = {}
    # Nodes of a union share keys; each is named once.
    for key in sorted(set(_keys(config, ())), key=lambda key: (len(key), key)):
        found.setdefault(key[-1], []).append(".".join(key))
    return found


def _keys(hint: Any, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield every key below a type; lists add no part to a key."""
    if not (isinstance(hint, type) and issubclass(hint, BaseModel)):
        for part in typing.get_args(hint):
            yield from _keys(part, above)
        return
    for name, info in hint.model_fields.items():
        key = (*above, info.alias or name)
        # A node may contain itself (`sequential`, `not`): without this there would be no end.
        if key[-1] not in above:
            yield key
            yield from _keys(info.annotation, key)
