"""Secrets come from the environment and are never saved; what is masked must be given again."""

import pytest
import yaml

from finetune.config.dumping import as_plain, dump_config
from finetune.config.loader import load_config, load_saved
from finetune.config.secrets import MASK
from finetune.errors import ConfigError

IMPORTED = "{name: encoder, type: import, path: 'a.b:c', args: %s}"


@pytest.fixture
def with_args(write, good):
    """Write a config whose first layer has these `args`."""

    def make(args, name="run.yaml"):
        line = "{name: encoder, type: transformers, path: somewhere}"
        return write(good.replace(line, IMPORTED % args), name)

    return make


def args_of(config):
    return config.model.layers[0].args


def problems(path, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return [str(one).replace(f"{path.parent}/", "") for one in caught.value.problems]


def test_a_variable_of_the_environment_is_put_in_and_its_words_are_saved(
    with_args, write, monkeypatch
):
    monkeypatch.setenv("HUB_TOKEN", "hunter2")
    config = load_config(
        with_args("{token: '${env:HUB_TOKEN}', head: ['Bearer ${env:HUB_TOKEN}']}")
    )
    assert args_of(config) == {"token": "hunter2", "head": ("Bearer hunter2",)}
    saved = dump_config(config)
    assert "hunter2" not in saved
    assert yaml.safe_load(saved)["model"]["layers"][0]["args"] == {
        "token": "${env:HUB_TOKEN}",
        "head": ["Bearer ${env:HUB_TOKEN}"],
    }
    assert load_config(write(saved, "config.yaml")) == config
    assert "hunter2" not in str(as_plain(config))


def test_a_variable_may_be_the_end_of_a_file_name_and_the_name_of_a_base(
    write, good, monkeypatch, tmp_path
):
    write(good, "base.yaml")
    monkeypatch.setenv("BASE", "base")
    monkeypatch.setenv("DATA", "texts2")
    path = write("extends: '${env:BASE}.yaml'\ndata: {source: {path: 'in/${env:DATA}'}}\n")
    config = load_config(path)
    assert config.data.source.path == "in/texts2"
    assert yaml.safe_load(dump_config(config))["data"]["source"]["path"] == "in/${env:DATA}"


def test_only_what_was_written_so_is_saved_as_a_reference(write, good, monkeypatch):
    monkeypatch.setenv("KIND", "texts")
    text = good.replace("path: texts", "path: '${env:KIND}'").replace("[encoder,", "[texts,")
    saved = yaml.safe_load(dump_config(load_config(write(text))))
    assert saved["data"]["source"]["path"] == "${env:KIND}"
    assert saved["freeze"]["phases"][0]["freeze"][0] == {"name": "texts"}


def test_a_reference_in_a_short_form_is_saved_as_one(write, good, monkeypatch):
    monkeypatch.setenv("PART", "encoder")
    text = good.replace("[encoder, {kind: bias}]", "['${env:PART}', '!${env:PART}.x']")
    saved = dump_config(load_config(write(text)))
    assert yaml.safe_load(saved)["freeze"]["phases"][0]["freeze"] == [
        {"name": "${env:PART}"},
        {"not": {"name": "${env:PART}.x"}},
    ]


def test_an_override_may_hold_a_variable(write, good, monkeypatch):
    monkeypatch.setenv("DATA", "other")
    config = load_config(write(good), ["data.source.path='${env:DATA}'"])
    assert config.data.source.path == "other"
    assert "${env:DATA}" in dump_config(config)


def test_a_value_from_the_environment_is_text_whatever_it_looks_like(with_args, monkeypatch):
    monkeypatch.setenv("PIN", "0123")
    path = with_args("{a: '${env:PIN}', b: ['${env:PIN}']}")
    assert args_of(load_config(path)) == {"a": "0123", "b": ("0123",)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("${env:NOT_SET}", "the environment has no variable 'NOT_SET'"),
        ("a ${env:} b", "needs the name of a variable, got '${env:}'"),
        ("${env:A B}", "needs the name of a variable, got '${env:A B}'"),
        ("${env:BYTES}", "the variable 'BYTES' is not text in UTF-8"),
    ],
)
def test_a_variable_that_cannot_be_put_in_is_told_at_its_line(
    write, good, monkeypatch, text, problem
):
    monkeypatch.setenv("BYTES", "\udcff")
    monkeypatch.delenv("NOT_SET", raising=False)
    path = write(good.replace("path: texts", f"path: '{text}'"))
    assert problems(path) == [f"run.yaml:9: data.source.path: {problem}"]
    override = f"data.source.path='{text}'"
    assert problems(write(good), [override]) == [f"-o data.source.path: {problem}"]


def test_variables_cannot_blow_a_config_up(with_args, monkeypatch):
    monkeypatch.setenv("LONG", "x" * 100_000)
    many = ", ".join(["'${env:LONG}'"] * 11)
    (problem,) = problems(with_args(f"{{a: [{many}]}}"))
    assert problem == "run.yaml:4: model.layers.0.args.a.10: variables add up to more than 1024 KiB"


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("'${env:A}'", "texts that take variables"),
        ("{password: hunter2}", "values under keys that name secrets"),
    ],
)
def test_secrets_are_so_few_that_a_message_can_be_searched_for_each(
    with_args, monkeypatch, entry, fault
):
    monkeypatch.setenv("A", "hunter2")
    (problem,) = problems(with_args(f"{{a: [{', '.join([entry] * 300)}]}}"))
    assert ".args.a.200" in problem
    assert problem.endswith(f": is one of more than 200 {fault}")


def test_a_name_that_only_equals_a_secret_is_saved_as_it_is(write, good, monkeypatch):
    monkeypatch.setenv("PART", "encoder")
    text = good.replace("[encoder, {kind: bias}]", "{method: linear_probe, head: ['${env:PART}']}")
    config = load_config(write(text))
    saved = dump_config(config)
    assert yaml.safe_load(saved)["model"]["layers"][0]["name"] == "encoder"
    assert load_config(write(saved, "config.yaml")) == config


def test_a_secret_cannot_be_a_name_and_all_such_names_are_told(write, good, monkeypatch):
    monkeypatch.setenv("PART", "hunter2")
    text = good.replace("name: head", "name: ${env:PART}").replace(
        "[encoder, {kind: bias}]", "{phases: [{name: 'a ${env:PART}', freeze: []}]}"
    )
    assert [line.partition("\n")[0] for line in problems(write(text))] == [
        "run.yaml:5: model.layers.1.name: a name cannot come from the environment, "
        "got '${env:PART}'",
        "run.yaml:12: freeze.phases.0.name: a name cannot come from the environment, "
        "got 'a ${env:PART}'",
    ]


def test_two_dollars_stand_for_text_that_is_no_reference(with_args, write, monkeypatch):
    monkeypatch.setenv("A", "value")
    config = load_config(with_args("{a: '$${env:A}', b: '$$${env:A}', c: '${env:A', d: '$${x}'}"))
    assert args_of(config) == {"a": "${env:A}", "b": "$${env:A}", "c": "${env:A", "d": "$${x}"}
    assert load_config(write(dump_config(config), "config.yaml")) == config


def test_a_reference_written_in_python_is_plain_text_and_survives_saving(write, good):
    config = load_config(write(good))
    source = config.data.source.model_copy(update={"path": "${env:A} and $${env:B}"})
    config = config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
    assert load_config(write(dump_config(config), "config.yaml")) == config


def test_a_secret_is_not_told_in_a_complaint(write, good, monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hunter2")
    monkeypatch.setenv("LONG_TOKEN", "hunter2" * 20)
    text = good.replace("lr: 1e-3", "lr: '${env:HUB_TOKEN}'")
    text = text.replace("epochs: 10", "epochs: '${env:LONG_TOKEN}'")
    told = problems(write(text))
    assert told == [
        "run.yaml:13: optimizer.lr: needs a number, got '${env:HUB_TOKEN}'\n"
        "    a variable is text: -o optimizer.lr=... gives a number",
        "run.yaml:15: train.epochs: needs a whole number, got '${env:LONG_TOKEN}'\n"
        "    a variable is text: -o train.epochs=... gives a number",
    ]


@pytest.mark.parametrize(
    "key",
    [
        "token", "hf_token", "authToken", "HF_TOKEN", "auth-token", "password", "db_password",
        "passwd", "secret", "client_secret", "secrets", "apiKey", "api_key", "API-KEY", "apikey",
        "access_key", "private_key", "credentials", "passphrase", "secret_access_key",
    ],
)  # fmt: skip
def test_a_key_that_names_a_secret_is_masked(with_args, key):
    config = load_config(with_args(f"{{{key}: abc1, inner: [{{{key}: {{deep: [abc2]}}}}]}}"))
    args = yaml.safe_load(dump_config(config))["model"]["layers"][0]["args"]
    assert args == {key: MASK, "inner": [{key: {"deep": [MASK]}}]}


@pytest.mark.parametrize(
    "entry",
    [
        "pad_token: '[PAD]'", "class_token: cls", "mask_token: 103", "tokenizer: x", "tokens: x",
        "max_token: 5", "token_type: x", "secretary: x", "keys: x", "key: x", "token: null",
        "password: false", "author: x",
    ],
)  # fmt: skip
def test_a_key_that_only_looks_like_one_is_saved_as_it_is(with_args, entry):
    config = load_config(with_args(f"{{{entry}}}"))
    assert MASK not in dump_config(config)


def test_a_password_of_digits_is_masked_as_well(with_args):
    assert "4711" not in dump_config(load_config(with_args("{password: 4711, api_key: 4711}")))


def test_what_is_masked_must_be_given_again(with_args, write, monkeypatch):
    config = load_config(with_args("{hf_token: abc, inner: [{password: [d, e]}], n: 3}"))
    path = write(dump_config(config), "config.yaml")
    told = problems(path)
    assert [line.partition("\n")[0] for line in told] == [
        f"config.yaml:{line}: model.layers.0.args.{key}: was masked when this config was saved"
        for line, key in [(9, "hf_token"), (12, "inner.0.password.0"), (13, "inner.0.password.1")]
    ]
    assert "-o KEY=VALUE gives it" in told[0]
    given = ["hf_token=abc", "inner.0.password=[d, e]"]
    assert load_config(path, [f"model.layers.0.args.{one}" for one in given]) == config


def test_a_saved_config_can_be_looked_at_without_its_secrets(with_args, write, monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hunter2")
    config = load_config(with_args("{token: '${env:HUB_TOKEN}', password: x}"))
    monkeypatch.delenv("HUB_TOKEN")
    seen = load_saved(write(dump_config(config), "config.yaml"))
    assert as_plain(seen) == as_plain(config)


def test_an_empty_path_is_not_the_current_folder(write, good, monkeypatch):
    monkeypatch.setenv("DATA", "")
    said = "run.yaml:9: data.source.path: needs a path, got"
    assert problems(write(good.replace("path: texts", "path: '${env:DATA}'"))) == [
        f"{said} '${{env:DATA}}'\n    the variable is set, and empty"
    ]
    assert problems(write(good.replace("path: texts", "path: ''"))) == [f"{said} ''"]
