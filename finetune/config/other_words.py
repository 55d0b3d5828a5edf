"""Remarks on keys of other tools that have no key here: what stands in their place."""

_BEST = (
    "nothing is needed: with validation data the best weights are used; train.checkpoint.best "
    "names the metric"
)
_RUN_FOLDER = "the folder of a run is named on the command line: finetune train CONFIG --run DIR"
_TO_FREEZE = "freeze: [NAME], beside model:, freezes the layer of that name"
_SOME = "train.limit: 0.1 trains on a tenth of the data, train.steps: 3 ends after three steps"
_TRANSFORMS = "data.transforms has a step for it: `finetune show` lists them"
_NETWORK = (
    "model.layers holds networks: {type: transformers, path: ...}, {type: timm or torchvision, "
    "architecture: ...}"
)
NEW_HEAD = (
    "output: logits gives it a head for the classes of the data; or a layer behind it is the head: "
    "{name: head, type: Linear, out_features: classes}"
)
_ACTIVATION = "an activation is a layer of its own, behind this one: {type: ReLU}"
_ADAPTERS = "adapters such as LoRA are not built in: few parameters train by methods bitfit, norm_only, lisa"

REMARKS: dict[str, str] = {
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "save_best",
         "save_best_only", "restore_best_weights", "monitor", "keep_best_model"), _BEST,
    ),
    **dict.fromkeys(
        ("output_dir", "logging_dir", "default_root_dir", "save_dir", "run_dir", "log_dir",
         "work_dir", "ckpt_dir"), _RUN_FOLDER,
    ),
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy", "validate_every", "check_val_every_n_epoch",
         "eval_every"), "train.evaluate_every: {epochs: 1}, or {steps: 100}",
    ),
    **dict.fromkeys(
        ("save_strategy", "save_every", "enable_checkpointing", "checkpoint_every"),
        "train.checkpoint: {every: {epochs: 1}}; a run always has checkpoints",
    ),
    **dict.fromkeys(("report_to", "logger", "loggers", "wandb", "mlflow", "tensorboard"),
                    "tracking: [tensorboard], mlflow or wandb"),
    **dict.fromkeys(("resume", "resume_from_checkpoint", "ckpt_path", "resume_from"),
                    "the same command goes on where a run stopped; --resume DIR names another run"),
    **dict.fromkeys(("push_to_hub", "hub_model_id"),
                    "finetune export RUN --format hf writes a folder that can be uploaded"),
    **dict.fromkeys(("fast_dev_run", "overfit_batches", "limit_train_batches", "nrows",
                     "max_train_samples", "limit_val_batches"), _SOME),
    **dict.fromkeys(("trainable", "requires_grad", "unfreeze_layers", "frozen_layers"), _TO_FREEZE),
    **dict.fromkeys(("activation", "act", "nonlinearity", "activation_function"), _ACTIVATION),
    **dict.fromkeys(("num_classes", "num_labels", "n_classes", "nb_classes"),
                    "the last layer gives as many as the data has by out_features: classes"),
    **dict.fromkeys(("augment", "image_size", "img_size", "normalize", "resize", "crop_size",
                     "tokenizer_name", "do_lower_case", "standardize"), _TRANSFORMS),
    **dict.fromkeys(("backbone", "pretrained_model_name_or_path", "encoder_name", "base_model"),
                    _NETWORK),
    **dict.fromkeys(("strategy", "devices", "num_nodes", "num_gpus", "n_gpu", "distributed"),
                    "torchrun --nproc-per-node=2 -m finetune train CONFIG runs on two devices, by "
                    "train.parallel"),
    **dict.fromkeys(("gradient_checkpointing", "activation_checkpointing", "use_checkpoint"),
                    "a smaller train.micro_batch takes less memory, and so does more freezing"),
    **dict.fromkeys(("label_smoothing", "label_smoothing_factor"),
                    "task.losses: [{type: cross_entropy, label_smoothing: 0.1}]"),
    **dict.fromkeys(("beta1", "beta2", "adam_beta1", "adam_beta2"),
                    "optimizer.betas: [0.9, 0.999], which Adam and AdamW take"),
    **dict.fromkeys(("adam_epsilon", "epsilon"), "optimizer.eps: 1e-8, which Adam and AdamW take"),
    **dict.fromkeys(("shuffle", "shuffle_train"), "samples are always shuffled, by the seed"),
    **dict.fromkeys(("header", "names", "column_names"), "the first line names the columns"),
    **dict.fromkeys(("usecols", "remove_unused_columns", "drop_columns"),
                    "data.inputs and data.target name the columns; others are not read"),
    **dict.fromkeys(("files", "file", "filename", "filepath", "file_path", "csv", "csv_path",
                     "data_dir", "data_path", "dataset_path", "train_file", "dataset_name",
                     "root"), "data: {source: {type: csv, path: d.csv}}, say"),
    **dict.fromkeys(("validation_file", "val_file", "test_file"),
                    "data: {train: {type: csv, path: t.csv}, validation: {type: csv, path: v.csv}}"),
    "callbacks": "train.early_stopping, train.checkpoint and train.average are what others call so",
    "seed_everything": "seed: 0, at the top",
    "trainer": "its keys belong to train",
    "training": "its keys belong to train",
    "hyperparameters": "its keys belong to train and optimizer",
    "t_max": "a cosine lasts as long as the run, or as its phase",
    "gamma": "schedule.factor: what the rate is multiplied by",
    "gradient_accumulation": "train.micro_batch: samples of one pass; batch_size those of a step",
    "dropout": "a dropout is a layer of its own: {type: Dropout, p: 0.1}",
    **dict.fromkeys(("lora", "peft", "adapter", "adapters"), _ADAPTERS),
    "quantization": "there is none: float32, bfloat16 or float16 by train.precision",
    "load_in_8bit": "there is none: float32, bfloat16 or float16 by train.precision",
}  # fmt: skip
"""Words of other tools, each with the sentence that leads on."""

REMARKS_AT: dict[str, str] = {
    **dict.fromkeys(("model.name", "model.path", "model.type", "model.architecture"), _NETWORK),
    **dict.fromkeys(("data.path", "data.type"), REMARKS["file"]),
    "freeze.layers": _TO_FREEZE,
    "optimizer.name": "optimizer.type names it: AdamW, say",
    **dict.fromkeys(
        ("train.early_stopping.mode", "train.checkpoint.mode", "schedule.mode"),
        "each metric declares whether lower or higher is better, so nothing is to be said",
    ),
    **dict.fromkeys(("tracking.type", "tracking.name"), REMARKS["wandb"]),
}
"""Remarks on full keys whose last part is a key elsewhere."""

REMARKS_ON_VALUES: dict[str, dict[str, str]] = {
    "ulmfit": {
        **dict.fromkeys(
            ("lora", "qlora", "dora", "adalora", "loha", "lokr", "ia3", "peft", "adapter",
             "adapters", "prefix_tuning", "prompt_tuning", "p_tuning"), _ADAPTERS,
        ),
        **dict.fromkeys(
            ("full", "none", "full_finetuning", "finetune", "full_finetune"),
            "all parameters train where freeze is left out",
        ),
        **dict.fromkeys(
            ("discriminative", "layerwise", "llrd", "layer_decay"),
            "method ulmfit has a lower rate for each block below; so has optimizer.layer_decay",
        ),
    },
    "tensorboard": dict.fromkeys(
        ("comet", "comet_ml", "neptune", "clearml", "aim", "dvclive", "swanlab", "trackio", "csv",
         "csvlogger", "console", "stdout"),
        "each figure is a line of metrics.jsonl in the run, for any other program to read",
    ),
}  # fmt: skip
"""Remarks on values of other tools that no value here replaces.

Each group belongs to one key of the config, found by a value that the key takes: `ulmfit` for
methods, `tensorboard` for trackers.
"""
