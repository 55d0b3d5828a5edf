"""Export a network of transformers as a folder for its `Auto...` class and `pipeline()`.

Without a head it is a folder for sentence-transformers as well, if its hidden states are pooled.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.config.model import SharedLayer, StackLayer, TransformersLayer
from finetune.config.run import RunConfig
from finetune.config.task_keys import (
    ClassificationTask,
    MultilabelTask,
    RegressionTask,
    TokenClassificationTask,
)
from finetune.data.steps.tokenizing import Tokenize
from finetune.errors import FinetuneError
from finetune.export.agreement import Outputs, Pass
from finetune.export.source import ExportSource, WrittenFormat
from finetune.models.huggingface import quiet_transformers
from finetune.models.transformers_package import load_transformers

_OTHERWISE = "--format torch or onnx holds the whole network, --format safetensors its weights"
_POOLING = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
"""Poolings as sentence-transformers calls them."""
_AUTO = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
}
"""By the end of a class's name: the class that loads it, and its pipeline."""


@dataclass(frozen=True, slots=True)
class _Whole:
    """The one network of transformers that a run's network consists of."""

    node: TransformersLayer
    module: Any
    auto: str
    pipeline: str
    tokenize: Tokenize


def write_transformers(source: ExportSource, folder: Path) -> WrittenFormat:
    """Write network, tokenizer and names of the classes.

    Raises:
        FinetuneError: no class of transformers has such a network.
    """
    whole = _whole(source)
    _name_classes(whole, source)
    transformers: Any = load_transformers()
    with quiet_transformers(transformers):
        return _written(whole, source, folder, transformers)


def _written(whole: _Whole, source: ExportSource, folder: Path, transformers: Any) -> WrittenFormat:
    """Write the folder and load it anew."""
    whole.module.save_pretrained(folder)
    tokenizer = copy.deepcopy(whole.tokenize.tokenizer)
    tokenizer.model_max_length = whole.tokenize.max_length
    if tokenizer.pad_token is None and whole.module.config.pad_token_id is not None:
        # A head of a decoder finds the end of a text by this token.
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(whole.module.config.pad_token_id)
    tokenizer.save_pretrained(folder)
    if whole.node.output in _POOLING:
        _write_sentence_transformer(whole, folder)
    where = {"local_files_only": True, "trust_remote_code": False}
    model = getattr(transformers, whole.auto).from_pretrained(folder, **where).eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder, **where)
    task = whole.pipeline
    front = {"pipeline_tag": task} if whole.node.output == "logits" else {}
    is_sentence = whole.node.output in _POOLING
    return WrittenFormat(
        _code(whole, source),
        lambda one: _run(whole, model, reader, one),
        "sentence-transformers" if is_sentence else "transformers",
        about=_about(whole, source),
        front=front,
    )


def _whole(source: ExportSource) -> _Whole:
    """Return the network of transformers that is all of a run's network.

    Raises:
        FinetuneError: there is none, or something lies behind it.
    """
    run = source.run
    layers = run.config.model.layers
    named = {node.name or str(place): node for place, node in enumerate(layers)}
    found = [(name, node) for name, node in named.items() if isinstance(node, TransformersLayer)]
    if len(found) != 1:
        raise FinetuneError(
            f"the network has {len(found)} layers of transformers, and such a folder holds one",
            where="--format hf",
            hint=_OTHERWISE,
        )
    name, node = found[0]
    for other, layer in named.items():
        is_again = isinstance(layer, SharedLayer) and layer.layer == name
        if other != name and not is_again and not isinstance(layer, StackLayer):
            raise FinetuneError(
                f"layer {other!r} ({layer.type}) is beside the network {name!r}, and no class of "
                "transformers has it",
                where="--format hf",
                hint=f"`output: logits` trains a head that transformers has; {_OTHERWISE}",
            )
    module: Any = source.network.get_submodule(name)
    auto, pipeline = _class(node, module, run.config)
    return _Whole(node, module, auto, pipeline, _tokenize(source))


def _class(node: TransformersLayer, module: Any, config: RunConfig) -> tuple[str, str]:
    """Return the class that loads a network, and its pipeline.

    Raises:
        FinetuneError: they are none of those that are written.
    """
    kind = type(module).__name__
    if node.output != "logits":
        return "AutoModel", "feature-extraction"
    found = next((both for end, both in _AUTO.items() if kind.endswith(end)), None)
    if found is None:
        raise FinetuneError(
            f"{kind} is none of the heads that are written: "
            f"{', '.join(auto for auto, _ in _AUTO.values())}",
            where="--format hf",
            hint=_OTHERWISE,
        )
    task = config.task
    fitting = (ClassificationTask, MultilabelTask, RegressionTask, TokenClassificationTask)
    if not isinstance(task, fitting):
        raise FinetuneError(
            f"no pipeline of transformers reads the outputs of task {task.learns!r}",
            where="--format hf",
            hint=_OTHERWISE,
        )
    return found


def _tokenize(source: ExportSource) -> Tokenize:
    """Return the step that makes tokens of the text, which must be the only step.

    Raises:
        FinetuneError: there are other steps, or none.
    """
    steps = [planned.step for planned in source.predictor.steps.other]
    texts = [step for step in steps if isinstance(step, Tokenize)]
    others = [type(step).__name__ for step in steps if not isinstance(step, Tokenize)]
    settings = {(step.max_length, id(step.tokenizer)) for step in texts}
    if others or not texts or len({length for length, _ in settings}) > 1:
        what = f"the step {others[0]}" if others else "no single way to make tokens"
        raise FinetuneError(
            f"the run prepares its inputs by {what}, which the tokenizer of such a folder cannot",
            where="--format hf",
            hint=_OTHERWISE,
        )
    return texts[0]


def _name_classes(whole: _Whole, source: ExportSource) -> None:
    """Put the names of the classes and the kind of problem into the network's config."""
    config = whole.module.config
    if whole.node.output != "logits":
        return
    match source.run.config.task:
        case ClassificationTask():
            config.problem_type = "single_label_classification"
        case MultilabelTask():
            config.problem_type = "multi_label_classification"
        case RegressionTask():
            config.problem_type = "regression"
        case _:
            config.problem_type = None
    if source.run.facts.classes is not None:
        config.id2label = dict(enumerate(source.run.facts.classes))
        config.label2id = {name: place for place, name in config.id2label.items()}


def _write_sentence_transformer(whole: _Whole, folder: Path) -> None:
    """Write what sentence-transformers reads beside the network: its modules and the pooling."""
    home = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{home}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{home}.Pooling"},
    ]
    pooling = {
        "word_embedding_dimension": whole.module.config.hidden_size,
        **{
            f"pooling_mode_{key}": _POOLING[whole.node.output] == name
            for name, key in (("cls", "cls_token"), ("mean", "mean_tokens"))
        },
        "pooling_mode_lasttoken": whole.node.output == "last",
    }
    limits = {"max_seq_length": whole.tokenize.max_length, "do_lower_case": False}
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", limits),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _run(whole: _Whole, model: Any, reader: Any, one: Pass) -> Outputs:
    """Run the loaded network on the raw texts of some samples, by the loaded tokenizer."""
    columns = list(whole.tokenize.columns)
    if whole.tokenize.prefix:
        # Several texts, tokenized singly: each goes through the same network.
        columns = list(one.rows)
        found = [_pooled(whole, model, _tokens(reader, [one.rows[name]])) for name in columns]
        return {"output": torch.stack(found, dim=1)}
    return {"output": _pooled(whole, model, _tokens(reader, [one.rows[name] for name in columns]))}


def _tokens(reader: Any, texts: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the tokens of texts, or of pairs of texts or of words."""
    words = not isinstance(texts[0][0], str)
    return dict(
        reader(
            *(list(map(list if words else str, column)) for column in texts),
            truncation=True,
            padding=True,
            return_tensors="pt",
            is_split_into_words=words,
        )
    )


def _pooled(whole: _Whole, model: Any, tokens: dict[str, Any]) -> torch.Tensor:
    """Return the output of the loaded network in the form of the run's network."""
    with torch.inference_mode():
        found = model(**tokens)
    if whole.node.output == "logits":
        return torch.as_tensor(found.logits)
    hidden, mask = found.last_hidden_state, tokens["attention_mask"]
    match whole.node.output:
        case "mean":
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        case "cls":
            pooled = hidden[:, 0]
        case "last":
            places = torch.arange(mask.shape[1])
            pooled = hidden[torch.arange(len(hidden)), (mask.ne(0) * places).argmax(dim=1)]
        case _:
            pooled = hidden
    return torch.as_tensor(pooled)


def _code(whole: _Whole, source: ExportSource) -> str:
    """Return code that loads the folder and uses it on a text."""
    if whole.node.output in _POOLING:
        lines = [
            "from sentence_transformers import SentenceTransformer",
            "",
            'network = SentenceTransformer(".")',
            'output = network.encode(["A text.", "Another."])',
        ]
    elif whole.node.output == "hidden":
        lines = [
            "from transformers import AutoModel, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            'network = AutoModel.from_pretrained(".")',
            'output = network(**tokenizer("A text.", truncation=True, return_tensors="pt"))',
        ]
    else:
        pair = len(whole.tokenize.columns) > 1
        text = '{"text": "A text.", "text_pair": "Another."}' if pair else '"A text."'
        cut = "" if "Token" in whole.auto else ", truncation=True"
        lines = [
            "from transformers import pipeline",
            "",
            f'network = pipeline("{whole.pipeline}", model=".")',
            f"output = network({text}{cut})",
        ]
    return "\n".join(lines)


def _about(whole: _Whole, source: ExportSource) -> tuple[str, ...]:
    """Return sentences on what the folder holds."""
    lines = [
        f"`transformers.{whole.auto}` loads it; its tokenizer cuts texts to "
        f"{whole.tokenize.max_length} tokens."
    ]
    if isinstance(source.run.config.task, MultilabelTask):
        lines.append("The pipeline gives a score for each label; the threshold is the caller's.")
    return tuple(lines)
