"""A key in the wrong place, or with its name from another tool, is told with the right one."""

import socket

import pytest

from finetune.config.loader import load_config
from finetune.errors import FinetuneError

TABLE = "u,v,sex,label\n" + "".join(f"{i},{i % 3},{'fm'[i % 2]},{'ab'[i % 2]}\n" for i in range(12))
CONFIG = """\
model:
  layers:
    - {name: body, type: Linear, out_features: 4}
    - {name: head, type: Linear, out_features: classes}
data:
  source: {type: csv, path: d.csv}
  inputs: [u, v]
  target: label
  transforms: [{type: stack}]
task: {type: classification}
optimizer: {type: SGD, lr: 0.1}
train: {epochs: 1}
"""


@pytest.fixture
def told(tmp_path, config_file, monkeypatch, command_line):
    """Run a command beside a small config; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.csv").write_text(TABLE)

    def run(*arguments):
        code, out, err = command_line(*arguments)
        return code, " ".join((out + err).split())

    return run


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("epochs=3", "'train.epochs'"),
        ("learning_rate=3", "'optimizer.lr'"),
        ("batch_size=3", "'train.batch_size'"),
        ("num_workers=3", "'data.workers'"),
        ("metrics=[f1]", "'task.metrics'"),
        ("train.patience=3", "'train.early_stopping.patience'"),
        ("optimizer.learning_rate=3", "did you mean 'lr'?"),
        ("optimizer={type: SGD, learning_rate: 1}", "did you mean 'lr'?"),
        ("optimizer.wd=3", "did you mean 'weight_decay'?"),
        ("train.max_epochs=3", "did you mean 'epochs'?"),
        ("train.bs=3", "did you mean 'batch_size'?"),
        ("data.val=0.1", "did you mean 'validation'?"),
        ("train.early_stopping={metric: m, patience: 1, mode: max}", "each metric declares"),
    ],
)
def test_an_unknown_key_is_told_with_the_place_or_the_word_it_has_here(fault, override, hint):
    message, *more = fault(override).splitlines()
    assert message.startswith(f"-o {override.partition('=')[0]}")
    assert len(more) == 1
    assert hint in more[0]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("data.transforms=stack", "transforms: ['stack']"),
        ("freeze=linear_probe", "freeze: {method: linear_probe}; a module of that name: freeze: ["),
        ("freeze=lora", "adapters such as LoRA are not built in"),
        ("freeze={kind: norm}", "freeze: [{kind: 'norm'}]"),
        ("freeze={train: [head]}", "phases: [{name: 'all', train: ['head']}]"),
        ("freeze={freeze: [body], until: {epochs: 1}}", "phases: [{name: 'all', freeze: ['body'],"),
        ("task=classification", "task: {type: classification}"),
        ("task=Classification", "task: {type: classification}"),
        ("task=classify", "{type: ...}, with one of classification, "),
        ("data.source=new.csv", "source: {type: csv, path: new.csv}"),
        ("data.source=new.tsv", "source: {type: csv, path: new.tsv}"),
        ("data.split=0.2", "split: {validation: 0.2}"),
        ("train.early_stopping=3", "with the keys metric, patience"),
        ("train.device=gpu", "cuda (a GPU of NVIDIA or AMD)"),
        ("optimizer=AdamW", "{type: AdamW, lr: ...}"),
        ("optimizer=adamw", "{type: AdamW, lr: ...}"),
        ("data.transforms=[resize]", "{type: Resize}"),
        ("data.transforms=[Standardize]", "{type: standardize}"),
        ("task.losses=[cross_entropy]", "{type: cross_entropy}"),
        ("task.losses=[CrossEntropyLoss]", "{type: cross_entropy}"),
        ("schedule=cosine", "schedule: {type: cosine}"),
        ("data.source=csv", "source: {type: csv}"),
        ("freeze=true", "freeze: [encoder] freezes the layer"),
        ("model=resnet18", "{name: net, type: torchvision, architecture: resnet18}"),
        ("train=3", "train: {epochs: 3}"),
        ("optimizer.type=adamw", "did you mean 'AdamW'?"),
        ("tracking=[{type: comet}]", "each figure is a line of metrics.jsonl"),
        ("tracking=[{wandb: {project: p}}]", "the word alone: wandb"),
        ("data.transforms=[{type: standardize}]", "columns: [NAME, ...]"),
        ("model.layers=[resnet18]", "{type: torchvision, architecture: resnet18}"),
        ("model.layers=[Linear]", "{type: Linear}"),
        ("model.layers=[linear]", "{type: Linear}"),
        ("model.layers=[relu]", "{type: ReLU}"),
    ],
)
def test_a_value_in_a_wrong_form_is_told_with_the_right_one(fault, override, hint):
    lines = fault(override).splitlines()
    assert len(lines) == 2
    assert hint in lines[1]


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("model.layers=[relu]", "model.layers"),
        ("data.transforms=[resize]", "data.transforms"),
        ("task.losses=[mse]", "task.losses"),
    ],
)
def test_the_place_of_an_entry_that_is_one_word_has_no_part_that_the_config_lacks(
    fault, override, place
):
    assert fault(override).startswith(f"-o {place}.0: needs a mapping, got ")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--epochs", "-o train.epochs=VALUE"),
        ("--train.epochs=3", "-o train.epochs=VALUE"),
        ("--learning-rate", "-o optimizer.lr=VALUE"),
        ("--batch_size=8", "-o train.batch_size=VALUE"),
    ],
)
def test_a_key_that_is_given_as_an_option_is_told_how_to_set_it(told, config_file, option, hint):
    code, said = told("train", config_file, option)
    assert code == 2
    assert hint in said.replace("│ ", "").replace(" │", "")


@pytest.mark.parametrize("verb", ["predict", "eval", "doctor", "report"])
def test_a_config_where_a_run_is_wanted_is_told(told, config_file, verb):
    path = config_file
    code, said = told(verb, path, *(["new.csv"] if verb == "predict" else []))
    assert code == 2
    assert "a config, not a run: name the folder that `finetune train` wrote" in said


@pytest.mark.parametrize(
    ("layer", "hint"),
    [
        ("{name: net, type: resnet18}", "{type: torchvision, architecture: resnet18}"),
        ("{name: net, type: vit_b_16}", "{type: timm, architecture: vit_b_16}"),
        ("{name: resnet18}", "{type: torchvision, architecture: resnet18}"),
        ("{name: net, type: google/vit}", "{type: transformers, path: 'google/vit'}"),
        ("{type: timm, name: resnet18}", "architecture: resnet18"),
        ("{type: torchvision, name: vgg11}", "architecture: vgg11"),
        ("{type: timm, model: resnet18}", "did you mean 'architecture'?"),
        ("{name: net, tpye: Linear}", "did you mean 'type' by 'tpye'?"),
    ],
)
def test_a_whole_network_named_as_a_layer_is_told_with_its_form(fault, layer, hint):
    lines = fault(f"model.layers.0={layer}").splitlines()
    assert len(lines) == 2
    assert hint in lines[1]


@pytest.mark.parametrize(
    ("layer", "hint"),
    [
        ("{type: torchvision, name: net, path: vgg11}", "architecture: vgg11; 'path' is a key of"),
        ("{type: transformers, architecture: gpt2}", "path: gpt2; 'architecture' is a key of"),
        ("{type: torchvision, name: net, name: vgg11}", "'architecture' for the second 'name'"),
    ],
)
def test_the_key_of_another_library_is_told_with_the_one_that_is_meant(fault, layer, hint):
    lines = fault(f"model.layers.0={layer}").splitlines()
    assert len([line for line in lines if not line.startswith("    ")]) == 2
    assert lines[-1].startswith("    ")
    assert hint in lines[-1]


@pytest.mark.parametrize("verb", ["plan", "train", "validate"])
@pytest.mark.parametrize("override", ["train.epochs=3", "seed=1"])
def test_an_override_without_its_option_is_told_with_it(told, verb, override):
    code, text = told(verb, "c.yaml", override)
    assert code == 2
    assert f"-o {override}" in text


@pytest.mark.parametrize(
    ("separator", "hint"),
    [(";", '";"'), ("\t", '"\\t"'), ("|", '"|"')],
    ids=["semicolon", "tab", "bar"],
)
def test_another_separator_is_told_with_the_key_that_names_it(told, tmp_path, separator, hint):
    (tmp_path / "d.csv").write_text(TABLE.replace(",", separator))
    code, text = told("plan", "c.yaml")
    assert code == 2
    assert f"separator: {hint}" in text


def test_a_decimal_comma_among_semicolons_is_told_with_the_separator(told, tmp_path):
    (tmp_path / "d.csv").write_text("u;v;label\n1,5;2;a\n2,5;3;b\n")
    code, text = told("plan", "c.yaml")
    assert code == 2
    assert 'separator: ";"' in text


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("data.transforms=[]", "{type: stack}"),
        ("data.inputs=[u, v, sex]", "{type: categories, columns: [sex]}"),
        (
            "data={source: {type: csv, path: d.csv}, inputs: [sex], target: label}",
            "{type: categories, columns: [sex]}",
        ),
    ],
    ids=["several columns", "a category among numbers", "a category alone"],
)
def test_columns_that_a_layer_cannot_take_are_told_with_what_to_do(told, override, hint):
    code, text = told("plan", "c.yaml", "-o", override)
    assert code == 2
    assert hint in text


@pytest.mark.parametrize("arguments", [["-h"], ["train", "-h"], ["plan", "-h"]])
def test_help_has_its_short_name_everywhere(told, arguments):
    code, text = told(*arguments)
    assert code == 0
    assert "Usage: " in text


def test_the_version_is_told(told):
    code, text = told("--version")
    assert code == 0
    assert text.startswith("finetune 0.")


def test_a_used_port_of_tensorboard_is_one_line(told, tmp_path):
    (tmp_path / "runs").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = told("tensorboard", "runs", "--port", str(port))
    assert code == 2
    assert text.startswith(f"--port: cannot listen on port {port}: address already in use")


def test_a_number_below_one_that_is_no_share_is_not_called_one(fault):
    assert "share" not in fault("train.average={decay: 99}")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("data.split={train: 0.8, validation: 0.2}", "what no other part takes is trained on"),
        ("data.split=0.2", "split: {validation: 0.2} sets aside a fifth"),
        ("data.split={validation: 20}", "a share of all: 0.2 is 20 %"),
        ("data.split={validation: 200}", "a share of all: 0.2 is a fifth"),
        ("task.metrics=[acc]", "did you mean 'accuracy'?"),
        ("task.metrics=[roc_auc]", "did you mean 'auroc'?"),
        ("task={type: ner}", "did you mean 'token_classification'?"),
        ("task={type: binary}", "did you mean 'classification'?"),
        ("data.source={type: numpy, path: d}", "did you mean 'arrays'?"),
    ],
)
def test_words_of_other_tools_for_values_name_ours(fault, override, hint):
    assert hint in fault(override)


def test_a_tab_in_a_config_is_named(tmp_path):
    (tmp_path / "t.yaml").write_text("seed: 0\nmodel:\n\tlayers: []\n")
    with pytest.raises(FinetuneError, match="a tab: YAML takes blanks alone to indent"):
        load_config(tmp_path / "t.yaml")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["fit", "c.yaml"], "It is finetune train"),
        (["evaluate", "run"], "It is finetune eval"),
        (["infer", "run"], "It is finetune predict"),
        (["help"], "It is finetune --help"),
        (["train", "c.yaml", "--seed", "3"], "write -o seed=VALUE"),
    ],
)
def test_verbs_and_options_of_other_tools_name_ours(command_line, arguments, hint):
    shown = command_line(*arguments)
    assert shown.code == 2
    assert hint in " ".join(shown.err.replace("│", " ").split())
