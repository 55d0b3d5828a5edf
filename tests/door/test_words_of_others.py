"""Keys and values of Keras, Lightning and transformers each lead to what stands for them here."""

import pytest

from finetune.config.other_words import REMARKS, REMARKS_AT

CONFIG = """\
model: {layers: [{name: body, type: Linear, out_features: 4}]}
data: {source: {type: csv, path: d.csv}, inputs: [u], target: label}
task: {type: classification}
optimizer: {type: SGD, lr: 0.1}
train: {epochs: 1}
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    return path


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
        ("model.layers.0.type=Dense", "did you mean 'Linear'?"),
        ("optimizer.beta1=0.9", "optimizer.betas"),
        ("optimizer.name=Adam", "optimizer.type"),
        ("schedule=onecycle", "schedule: {type: one_cycle}"),
        ("schedule={type: CosineAnnealingLR}", "did you mean 'cosine'?"),
        ("schedule={type: cosine, T_max: 10}", "lasts as long as the run"),
        ("train.precision=16-mixed", "did you mean 'float16'?"),
        ("train.gradient_accumulation=2", "train.micro_batch"),
        ("train.epochs='3'", "take the quotes away"),
        ("train.steps=none", "leave the key out"),
        ("task.metrics=[mcc]", "{type: MatthewsCorrCoef}"),
        ("task.losses=[{type: BCEWithLogitsLoss}]", "did you mean 'binary_cross_entropy'?"),
        ("freeze={method: gradual_unfreezing}", "did you mean 'gradual'?"),
        ("freeze={layers: [body]}", "freeze: [NAME]"),
        ("tracking=wandb", "tracking: [tensorboard]"),
    ],
)
def test_what_other_tools_call_a_key_or_value_is_told_with_ours(fault, override, hint):
    message = fault(override)
    assert hint in message
    assert "known here" not in message


@pytest.mark.parametrize("word", sorted({*REMARKS, *REMARKS_AT}))
def test_each_remark_is_one_plain_line(word):
    remark = (REMARKS | REMARKS_AT)[word]
    assert "\n" not in remark
    assert len(remark) <= 110
    assert not remark.endswith(".")
