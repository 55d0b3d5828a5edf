"""Facts about the steps that are done at every fetch: what tells that they make other samples."""

import json
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from finetune.config.data import Transform
from finetune.data.tokenizing import Tokenize
from finetune.data.tokens import tokenizer_facts
from finetune.data.transforms import Imported, Step
from finetune.data.vision import Vision
from finetune.importing import code_of


def identity_of(
    steps: Sequence[Step], nodes: Sequence[Transform], seed: int, trust: Collection[str]
) -> str:
    """Return a text that differs where `steps` may make other samples of the same columns.

    Args:
        steps: What is left to be done at every fetch.
        nodes: The config nodes that they were made from.
        seed: Where their randomness begins.
        trust: Packages whose code they may call.
    """
    if not steps:
        return ""
    about = [node.model_dump(mode="json") for node in nodes]
    found = [_inner_facts(step) for step in steps]
    return json.dumps([seed, about, found, code_of(trust), _versions()])


def _inner_facts(step: Step) -> str:
    """Return what a step rests on besides its config: what the network was pretrained with."""
    match step:
        case Vision():
            return repr(step.transform)
        case Tokenize():
            # Of a tokenizer that nobody can tell about, no two are equal.
            return tokenizer_facts(step.tokenizer) or os.urandom(16).hex()
        case Imported():
            return ""
    return repr(step)


def _versions() -> list[str]:
    """Return the versions of the libraries that decode and change images."""
    found = []
    for package in ("pillow", "torchvision", "torch"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found
