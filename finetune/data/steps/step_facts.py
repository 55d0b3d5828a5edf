"""Describe the steps done at each fetch, so that cached rows of other steps are not used."""

import json
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from finetune.config.transform_keys import Transform
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.steps.tokens import tokenizer_facts
from finetune.data.steps.transforms import Imported, Step
from finetune.data.steps.vision import Vision
from finetune.importing import code_of


def identity_of(
    steps: Sequence[Step], nodes: Sequence[Transform], seed: int | None, trust: Collection[str]
) -> str:
    """Return a text that differs if `steps` may make other samples from the same columns.

    Args:
        steps: The steps that are left for each fetch.
        nodes: The config nodes that they were made from.
        seed: Where their randomness begins; None where they draw nothing.
        trust: Packages whose code they may call.
    """
    about = [_facts_of(node) for node in nodes]
    found = [_inner_facts(step) for step in steps]
    # Versions count: a newer Pillow or torchvision may give other pixels for the same step.
    return json.dumps([seed, about, found, code_of(trust), _versions()])


def _facts_of(node: Transform) -> dict[str, Any]:
    """Return the keys of a node."""
    facts = node.model_dump(mode="json", by_alias=True)
    # Left out where it is not given: rows that were stored before there was such a key stay valid.
    return {name: value for name, value in facts.items() if (name, value) != ("with", None)}


def _inner_facts(step: Step) -> str:
    """Return what a step depends on besides its config, such as the tokenizer."""
    match step:
        case Vision():
            # The transform made, not the node: mean and std may come from the pretrained network.
            return repr(step.transform)
        case Tokenize():
            # A tokenizer that cannot be described is never equal to another one.
            return tokenizer_facts(step.tokenizer) or os.urandom(16).hex()
        case Imported():
            return ""
    return repr(step)


def _versions() -> list[str]:
    """Return the versions of the libraries that decode and transform images."""
    found = []
    for package in ("pillow", "torchvision", "torch"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found
