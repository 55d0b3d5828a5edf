"""Export a network of transformers as a folder for its `Auto...` class and `pipeline()`.

Without a head it is a folder for sentence-transformers as well, if its hidden states are pooled.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.config.model import SharedLayer, StackLayer, TransformersLayer
from finetune.config.task_keys import (
    ClassificationTask,
    MultilabelTask,
    RegressionTask,
    SegmentationTask,
    TokenClassificationTask,
)
from finetune.export.agreement import Outputs, Pass
from finetune.export.hub_images import HubImages
from finetune.export.hub_inputs import OTHERWISE, HubInputs, Reader, cannot_hold
from finetune.export.hub_sounds import HubSounds
from finetune.export.hub_texts import HubTexts
from finetune.export.source import ExportSource, WrittenFormat
from finetune.models.huggingface import quiet_transformers
from finetune.models.parts import ResizedLogits
from finetune.models.transformers_package import load_transformers

_POOLING = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
"""Poolings as sentence-transformers calls them."""
_OF_SAMPLES = (ClassificationTask, MultilabelTask, RegressionTask)


@dataclass(frozen=True, slots=True)
class _Head:
    """A head for which transformers has a pipeline."""

    inputs: type[HubTexts] | type[HubImages] | type[HubSounds]
    ends: tuple[str, ...]
    """Ends of the names of its classes."""
    auto: str
    """The class that loads it."""
    pipeline: str
    tasks: tuple[type, ...]


_HEADS = (
    _Head(
        HubTexts,
        ("ForSequenceClassification",),
        "AutoModelForSequenceClassification",
        "text-classification",
        _OF_SAMPLES,
    ),
    _Head(
        HubTexts,
        ("ForTokenClassification",),
        "AutoModelForTokenClassification",
        "token-classification",
        (TokenClassificationTask,),
    ),
    _Head(
        HubImages,
        ("ForImageClassification",),
        "AutoModelForImageClassification",
        "image-classification",
        _OF_SAMPLES,
    ),
    _Head(
        HubImages,
        ("ForSemanticSegmentation",),
        "AutoModelForSemanticSegmentation",
        "image-segmentation",
        (SegmentationTask,),
    ),
    _Head(
        HubSounds,
        ("ForSequenceClassification", "ForAudioClassification"),
        "AutoModelForAudioClassification",
        "audio-classification",
        _OF_SAMPLES,
    ),
)
_NO_HEAD = _Head(HubTexts, (), "AutoModel", "feature-extraction", ())
"""Hidden states, pooled or not."""


@dataclass(frozen=True, slots=True)
class _Whole:
    """The one network of transformers that a run's network consists of."""

    node: TransformersLayer
    module: Any
    head: _Head
    inputs: HubInputs


def write_transformers(source: ExportSource, folder: Path) -> WrittenFormat:
    """Write network, what prepares its inputs, and names of the classes.

    Raises:
        FinetuneError: no class of transformers has such a network.
    """
    whole = _whole(source)
    # Before it is saved: pipelines show the names in the config, else LABEL_0 and so on.
    _name_classes(whole, source)
    transformers: Any = load_transformers()
    with quiet_transformers(transformers):
        return _written(whole, source, folder, transformers)


def _written(whole: _Whole, source: ExportSource, folder: Path, transformers: Any) -> WrittenFormat:
    """Write the folder and load it anew."""
    whole.module.save_pretrained(folder)
    whole.inputs.write(whole.module, folder, transformers)
    is_sentence = whole.node.output in _POOLING
    if is_sentence:
        assert isinstance(whole.inputs, HubTexts)
        _write_sentence_transformer(whole, whole.inputs.tokenize.max_length, folder)
    # What was just written needs neither the hub nor code of others; if it does, the export is
    # wrong.
    where = {"local_files_only": True, "trust_remote_code": False}
    model = getattr(transformers, whole.head.auto).from_pretrained(folder, **where).eval()
    reader = whole.inputs.reader(folder, transformers)
    front = {"pipeline_tag": whole.head.pipeline} if whole.node.output == "logits" else {}
    return WrittenFormat(
        _code(whole),
        lambda one: _run(whole, model, reader, one),
        "sentence-transformers" if is_sentence else "transformers",
        about=_about(whole, source),
        front=front,
        doubt=whole.inputs.doubt,
    )


def _whole(source: ExportSource) -> _Whole:
    """Return the network of transformers that is all of a run's network.

    Raises:
        FinetuneError: there is none, or something lies beside it.
    """
    layers = source.run.config.model.layers
    named = {node.name or str(place): node for place, node in enumerate(layers)}
    found = [(name, node) for name, node in named.items() if isinstance(node, TransformersLayer)]
    if len(found) != 1:
        raise cannot_hold(
            f"the network has {len(found)} layers of transformers, and such a folder holds one"
        )
    name, node = found[0]
    module: Any = source.network.get_submodule(name)
    kind = _kind(source)
    head = _head(node, module, source, kind)
    inputs = _inputs(source, name, head, kind)
    for other, layer in named.items():
        # The same network on a second text; `stack` only puts both embeddings side by side.
        is_again = isinstance(layer, SharedLayer) and layer.layer == name
        is_done = other in (name, *inputs.layers)
        if not is_done and not is_again and not isinstance(layer, StackLayer):
            raise cannot_hold(
                f"layer {other!r} ({layer.type}) is beside the network {name!r}, and no class of "
                "transformers has it",
                f"`output: logits` trains a head that transformers has; {OTHERWISE}",
            )
    return _Whole(node, module, head, inputs)


def _kind(source: ExportSource) -> type[HubTexts] | type[HubImages] | type[HubSounds]:
    """Return what prepares inputs of the kind that a run has; texts may be of any kind."""
    facts = source.run.facts
    kinds = {facts.kinds[name] for name in facts.inputs}
    if kinds <= {"image", "grey image"}:
        return HubImages
    return HubSounds if kinds == {"audio"} else HubTexts


def _inputs(source: ExportSource, network: str, head: _Head, kind: type) -> HubInputs:
    """Return what prepares the inputs of a run.

    Raises:
        FinetuneError: nothing of transformers prepares them like the run.
    """
    if kind is HubImages:
        return HubImages.of(source, of_pixels=SegmentationTask in head.tasks)
    return HubSounds.of(source, network) if kind is HubSounds else HubTexts.of(source)


def _head(node: TransformersLayer, module: Any, source: ExportSource, kind: type) -> _Head:
    """Return the head of a network.

    Raises:
        FinetuneError: it is none of those that are written.
    """
    if node.output != "logits":
        if kind is HubTexts:
            return _NO_HEAD
        raise cannot_hold(f"output {node.output!r} is written for networks of texts alone")
    name = type(module).__name__
    fitting = [head for head in _HEADS if head.inputs is kind]
    found = next((head for head in fitting if name.endswith(head.ends)), None)
    if found is None:
        autos = ", ".join(head.auto for head in fitting)
        raise cannot_hold(f"{name} is none of the heads that are written: {autos}")
    task = source.run.config.task
    if not isinstance(task, found.tasks):
        raise cannot_hold(f"no pipeline of transformers reads the outputs of task {task.learns!r}")
    return found


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


def _write_sentence_transformer(whole: _Whole, max_length: int, folder: Path) -> None:
    """Write what sentence-transformers reads beside the network: its modules and the pooling."""
    # Plain JSON, so that the library itself need not be installed here.
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
    limits = {"max_seq_length": max_length, "do_lower_case": False}
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", limits),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _run(whole: _Whole, model: Any, reader: Reader, one: Pass) -> Outputs:
    """Run the loaded network on raw samples, prepared by what was loaded beside it."""
    found = [_output(whole, model, inputs) for inputs in reader(one.rows)]
    is_several = isinstance(whole.inputs, HubTexts) and whole.inputs.tokenize.prefix
    return {"output": torch.stack(found, dim=1) if is_several else found[0]}


def _output(whole: _Whole, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the output of the loaded network in the form of the run's network."""
    with torch.inference_mode():
        found = model(**inputs)
    if whole.node.output == "logits":
        if SegmentationTask in whole.head.tasks:
            return ResizedLogits().forward(found.logits, inputs["pixel_values"])
        return torch.as_tensor(found.logits)
    hidden, mask = found.last_hidden_state, inputs["attention_mask"]
    match whole.node.output:
        case "mean":
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        case "cls":
            pooled = hidden[:, 0]
        case "last":
            places = torch.arange(mask.shape[1])
            # The last token of each text, also where texts are padded on the left.
            pooled = hidden[torch.arange(len(hidden)), (mask.ne(0) * places).argmax(dim=1)]
        case _:
            pooled = hidden
    return torch.as_tensor(pooled)


def _code(whole: _Whole) -> str:
    """Return code that loads the folder and uses it on a sample."""
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
        example = whole.inputs.example(whole.head.pipeline)
        lines = [
            *example.imports,
            "from transformers import pipeline",
            "",
            f'network = pipeline("{whole.head.pipeline}", model=".")',
            *example.before,
            f"output = network({example.argument})",
        ]
    return "\n".join(lines)


def _about(whole: _Whole, source: ExportSource) -> tuple[str, ...]:
    """Return sentences on what the folder holds."""
    lines = [f"`transformers.{whole.head.auto}` loads it; {whole.inputs.about}."]
    if isinstance(source.run.config.task, MultilabelTask):
        lines.append("The pipeline gives a score for each label; the threshold is the caller's.")
    if SegmentationTask in whole.head.tasks:
        lines.append(
            "For images of another size the pipeline resizes logits, where the run resizes masks: "
            "pixels at the edges of classes may differ."
        )
    return tuple(lines)
