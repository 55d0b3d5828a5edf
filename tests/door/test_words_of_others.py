"""Keys and values of Keras, Lightning and transformers each lead to what stands for them here."""

import re

import pytest

from finetune.config.freeze import METHODS
from finetune.config.hints import places_of
from finetune.config.other_words import REMARKS, REMARKS_AT, REMARKS_ON_VALUES
from finetune.config.run import RunConfig

CONFIG = """\
model: {layers: [{name: body, type: Linear, out_features: 4}]}
data: {source: {type: csv, path: d.csv}, inputs: [u], target: label}
task: {type: classification}
optimizer: {type: SGD, lr: 0.1}
train: {epochs: 1}
"""


_HEAD = "or a layer behind it is the head: {name: head, type: Linear, out_features: classes}"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("load_best_model_at_end=true", "the best weights are used"),
        ("output_dir=x", "--run DIR"),
        ("eval_strategy=epoch", "train.evaluate_every: {epochs: 1}"),
        ("save_strategy=epoch", "train.checkpoint"),
        ("report_to=wandb", "tracking: [tensorboard]"),
        ("resume_from_checkpoint=x", "the same command goes on"),
        ("fast_dev_run=true", "train.steps: 3"),
        ("data.shuffle=true", "always shuffled"),
        ("data.image_size=224", "data.transforms"),
        ("data.path=d.csv", "{source: {type: csv, path: d.csv}}"),
        ("model.name=bert-base-uncased", "{type: transformers, path: ...}"),
        ("model.layers.0.units=4", "did you mean 'out_features'?"),
        ("model.layers.0.activation=relu", "{type: ReLU}"),
        ("model.layers.0.trainable=false", "freeze: [NAME]"),
        ("model.layers.0.num_classes=2", "out_features: classes"),
        ("model.layers.0={type: torchvision, architecture: resnet18, num_classes: 3}", _HEAD),
        ("model.layers.0={type: torchvision, architecture: resnet18, out_features: 3}", _HEAD),
        ("model.layers.0={type: timm, architecture: resnet18, num_labels: 3}", _HEAD),
        ("model.layers.0={type: timm, architecture: resnet18, args: {num_classes: 3}}", _HEAD),
        ("model.layers.0={type: transformers, path: p, pooling: mean}", "did you mean 'output'?"),
        ("model={type: torchvision, name: resnet18}", "architecture: 'resnet18'}]"),
        ("data.transforms=[{type: normalize}]", "'standardize', of columns of numbers"),
        ("model.layers.0.type=Dense", "did you mean 'Linear'?"),
        ("optimizer.beta1=0.9", "optimizer.betas"),
        ("optimizer.name=Adam", "optimizer.type"),
        ("schedule=onecycle", "schedule: {type: one_cycle}"),
        ("schedule={type: CosineAnnealingLR}", "did you mean 'cosine'?"),
        ("schedule={type: cosine, T_max: 10}", "lasts as long as the run"),
        ("train.precision=16-mixed", "did you mean 'float16'?"),
        ("train.gradient_accumulation=2", "train.micro_batch"),
        ("train.epochs='3'", "take the quotes away"),
        ("train.batch_size=1_000", "1_000 is text: write 1000"),
        ("train.steps=none", "leave the key out"),
        ("task.metrics=[mcc]", "{type: MatthewsCorrCoef}"),
        ("task={type: regression, metrics: [foo]}", "{type: SpearmanCorrCoef}"),
        ("model.weights={file: w.safetensors}", "did you mean 'path'?"),
        ("model.layers.0={type: LayerNorm, epsilon: 1}", "did you mean 'eps'?"),
        ("data.source.data_dir=d", "did you mean 'path'?"),
        ("data.file=d.csv", "{source: {type: csv, path: d.csv}}"),
        ("data.target=3", "a list, also of one: target: [3]"),
        ("train.early_stopping={monitor: x}", "did you mean 'metric'?"),
        ("train.checkpoint={monitor: x}", "train.checkpoint.best"),
        ("schedule={type: step, every: {epochs: 1}, gamma: 0.1}", "did you mean 'factor'?"),
        ("tracking={type: wandb}", "tracking: [tensorboard]"),
        ("task.losses=[{type: BCEWithLogitsLoss}]", "did you mean 'binary_cross_entropy'?"),
        ("freeze={method: gradual_unfreezing}", "did you mean 'gradual'?"),
        ("freeze={layers: [body]}", "freeze: [NAME]"),
        ("tracking=wandb", "tracking: [tensorboard]"),
        ("tracking=[comet]", "a line of metrics.jsonl"),
        ("tracking=[tensorbord]", "did you mean 'tensorboard'?"),
        ("freeze={method: lora}", "adapters such as LoRA are not built in"),
        ("freeze=lora", "adapters such as LoRA are not built in"),
        ("freeze={method: full}", "where freeze is left out"),
        ("model.layers.0.lora={rank: 8}", "adapters such as LoRA are not built in"),
    ],
)
def test_what_other_tools_call_a_key_or_value_is_told_with_ours(fault, override, hint):
    message = fault(override)
    assert hint in message
    assert "known here" not in message


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=nan",
        "train.epochs='3.5'",
        "train.epochs='\u0663'",
        "task={type: segmentation, metrics: [foo]}",
        "task={type: span, metrics: [foo]}",
        "task={type: detection, metrics: [foo]}",
    ],
)
def test_no_hint_is_given_that_would_not_help(fault, override):
    assert len(fault(override).splitlines()) == 1


def test_each_key_that_a_remark_names_is_a_key_here():
    text = " ".join((REMARKS | REMARKS_AT).values())
    keys = set(re.findall(r"\b(?:data|model|optimizer|schedule|task|train)\.[a-z_.]+", text))
    assert len(keys) > 12
    # Arguments of a class of torch are in no schema of ours.
    keys -= {"optimizer.betas", "optimizer.eps"}
    lacking = {
        key for key in keys if key not in places_of(key.rpartition(".")[2], RunConfig, (key,))
    }
    assert lacking == set()


OF_VALUES = {word: said for some in REMARKS_ON_VALUES.values() for word, said in some.items()}
ALL = REMARKS | REMARKS_AT | {f"value {word}": said for word, said in OF_VALUES.items()}


def test_each_method_that_a_remark_names_is_one():
    methods = re.findall(r"(?:methods?|,) ([a-z]+(?:_[a-z]+)*)", " ".join(OF_VALUES.values()))
    assert {"ulmfit", "bitfit", "norm_only", "lisa"} <= {*methods} <= {*METHODS, "for"}


def test_a_remark_names_no_key_of_adapters_while_there_is_none():
    assert "adapter: {" not in " ".join(ALL.values())
    assert places_of("adapter", RunConfig) == []


@pytest.mark.parametrize("word", sorted(ALL))
def test_each_remark_is_one_plain_line(word):
    remark = ALL[word]
    assert "\n" not in remark
    assert len(remark) <= 110
    assert not remark.endswith(".")
