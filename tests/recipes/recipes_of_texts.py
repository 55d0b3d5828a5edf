"""Small texts and sounds for each recipe that learns from them, and what the recipe is told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from recipe_basics import (
    SMALL,
    TWO_STEPS,
    Maker,
    Overrides,
    draw,
    hub,
    recording,
    saved,
    table,
    text_network,
)
from transformers import Wav2Vec2Config, Wav2Vec2Model

from finetune import build_trainer, load_config

ROOT = Path(__file__).parents[2]


def glue(*texts: str) -> Maker:
    """Return the maker of a part of GLUE that has these columns of text."""

    def make(made: Path) -> Overrides:
        features = {name: datasets.Value("string") for name in texts}
        features["label"] = datasets.ClassLabel(names=["negative", "positive"])
        part: dict[str, list[Any]] = {
            name: ["a fine film", "so dull that it hurts"] * 3 for name in texts
        }
        part["label"] = [1, 0] * 3
        folder = hub(made, features, train=part, validation=part)
        return {
            "data.train.path": folder,
            "data.validation.path": folder,
            "model.layers.0.path": text_network(made / "network"),
            **TWO_STEPS,
        }

    return make


def fastbook_10_imdb(made: Path) -> Overrides:
    """Reviews in folders, beside counts of words that are no texts, as in the archive."""
    for part in ("train", "test"):
        for name, text in (("pos", "a fine film"), ("neg", "so dull that it hurts")):
            (made / part / name).mkdir(parents=True)
            for number in range(3):
                (made / part / name / f"{number}_7.txt").write_text(f"{text}, take {number}")
        (made / part / "labeledBow.feat").write_text("9 0:9 1:1")
    return {
        "data.train.path": made / "train",
        "data.validation.path": made / "test",
        "model.layers.0.path": text_network(made / "network"),
        "freeze.phases.3.until.epochs": 1,
        "train.epochs": 4,
    }


def hf_ner(made: Path) -> Overrides:
    """Words and numbers of their tags, whose names the data set knows."""
    tags = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
    features = {
        "id": datasets.Value("string"),
        "tokens": datasets.List(datasets.Value("string")),
        "ner_tags": datasets.List(datasets.ClassLabel(names=tags)),
    }
    part = {
        "id": ["0", "1", "2", "3"],
        "tokens": [["Ann", "Lee", "left", "Rome"], ["Rome", "sleeps"]] * 2,
        "ner_tags": [[1, 2, 0, 5], [5, 0]] * 2,
    }
    folder = hub(made, features, train=part, validation=part, test=part)
    return {
        "data.train.path": folder,
        "data.validation.path": folder,
        "data.test.path": folder,
        "model.layers.0.path": text_network(made / "network"),
        **TWO_STEPS,
    }


def hf_qa(made: Path) -> Overrides:
    """Paragraphs in the form of SQuAD, one of them longer than a window."""
    features = {name: datasets.Value("string") for name in ("id", "title", "context", "question")}
    features["answers"] = {
        "text": datasets.List(datasets.Value("string")),
        "answer_start": datasets.List(datasets.Value("int32")),
    }
    texts = ["Ann Lee left Rome in May.", "It rained. " * 150 + "Ann Lee left Rome in May."]
    part = {
        "id": ["0", "1", "2", "3"],
        "title": ["Ann"] * 4,
        "context": texts * 2,
        "question": ["Who left Rome?", "When did Ann leave?"] * 2,
        "answers": [
            {"text": [answer], "answer_start": [text.index(answer)]}
            for answer, text in zip(["Ann Lee", "May"] * 2, texts * 2, strict=True)
        ],
    }
    folder = hub(made, features, train=part, validation=part)
    return {
        "data.train.path": folder,
        "data.validation.path": folder,
        "model.layers.0.path": text_network(made / "network"),
        **TWO_STEPS,
    }


def hf_audio_classification(made: Path) -> Overrides:
    """Keywords of up to a second, and a small wav2vec 2.0."""
    random = draw()
    features = {
        "audio": datasets.Audio(sampling_rate=16_000),
        "label": datasets.ClassLabel(names=["yes", "no"]),
    }
    sounds = [
        {"bytes": recording(random.uniform(-1, 1, 16_000 - 1000 * number)), "path": "a.wav"}
        for number in range(4)
    ]
    part = {"audio": sounds, "label": [0, 1] * 2}
    folder = hub(made, features, train=part, validation=part)
    network = Wav2Vec2Model(
        Wav2Vec2Config(**SMALL, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    )
    return {
        "data.train.path": folder,
        "data.validation.path": folder,
        "model.layers.1.path": saved(network, made / "network"),
        **TWO_STEPS,
    }


def commonlit(made: Path) -> Overrides:
    """Summaries of four topics with two scores each."""
    rows = [
        {
            "student_id": f"{number:012x}",
            "prompt_id": ["39c16e", "3b9047", "ebad26", "814d6b"][number % 4],
            "text": f"The text says that {number} pyramids were built.",
            "content": number / 10 - 1,
            "wording": 1 - number / 10,
        }
        for number in range(24)
    ]
    return {
        "data.source.path": table(made / "summaries_train.csv", rows),
        "model.layers.0.path": text_network(made / "network"),
        **TWO_STEPS,
    }


def sentences(parts: Sequence[str], *texts: str, score: bool = False) -> Maker:
    """Return the maker of a data set of sentence-transformers with these columns."""

    def make(made: Path) -> Overrides:
        features = {name: datasets.Value("string") for name in texts}
        part: dict[str, list[Any]] = {
            name: [f"{name} number {number} of a film" for number in range(12)] for name in texts
        }
        if score:
            features["score"] = datasets.Value("float64")
            part["score"] = [number / 11 for number in range(12)]
        folder = hub(made / "hub", features, **dict.fromkeys(parts, part))
        names = ("train", "validation", "test")[: len(parts)]
        return {
            **{f"data.{name}.path": folder for name in names},
            "model.layers.0.path": text_network(made / "network"),
            **TWO_STEPS,
        }

    return make


def setfit_body(made: Path) -> Overrides:
    """Sentences of two classes."""
    names = {"text": "string", "label": "int64", "label_text": "string"}
    part = {
        "text": [
            f"a film that is {word}" for word in ("good", "bad", "fine", "dull", "great", "poor")
        ]
        * 3,
        "label": [1, 0] * 9,
        "label_text": ["positive", "negative"] * 9,
    }
    features = {name: datasets.Value(kind) for name, kind in names.items()}
    return {
        "data.train.path": hub(made / "hub", features, train=part, test=part),
        "model.layers.0.path": text_network(made / "network"),
        "train.steps": 2,
    }


def setfit_head(made: Path) -> Overrides:
    """The same sentences, and the weights that a run of the first stage has left."""
    said = setfit_body(made)
    body = ROOT / "configs" / "recipes" / "setfit_body.yaml"
    overrides = [f"{key}={value}" for key, value in said.items()]
    build_trainer(load_config(body, overrides=overrides), made / "body").fit()
    weights = made / "body" / "checkpoints" / "step-00000002" / "weights.safetensors"
    return {**said, "data.test.path": said["data.train.path"], "model.weights.path": weights}


MAKERS: dict[str, Maker] = {
    "glue_sst2": glue("sentence"),
    "glue_mrpc": glue("sentence1", "sentence2"),
    "fastbook_10_imdb": fastbook_10_imdb,
    "hf_ner": hf_ner,
    "hf_qa": hf_qa,
    "hf_audio_classification": hf_audio_classification,
    "commonlit": commonlit,
    "st_stsb": sentences(["train", "validation", "test"], "sentence1", "sentence2", score=True),
    "st_nli": sentences(["train", "dev"], "anchor", "positive", "negative"),
    "setfit_body": setfit_body,
    "setfit_head": setfit_head,
}
