"""Check that the numbers in a `Progress` agree with each other; needs no plan or network."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from finetune.runs.progress import Progress

_MOST_STEPS = 10**18
"""First step that no longer fits into a checkpoint's name (18 digits)."""
# Fields of a phase's proof with their types, written out since this room knows no torch.
_PROOF = {
    "phase": str,
    "first_step": int,
    "last_step": int,
    "tensors": int,
    "parameters": int,
    "intact": bool,
    "changed": list,
    "digests": dict,
    "left_out": list,
    "largest_change": dict,
}
_ORIGINS = dict.fromkeys(("loaded", "as_initialised", "trained_before", "constants"), int)
"""Counts of a proof, which checkpoints of an earlier release lack."""
_SHORTENED = {"digest_over_all": list}
"""Field of a proof that names no tensor: a digest before and one after."""


def contradiction(progress: Progress) -> str | None:
    """Return one line about what cannot be true in a progress, or None if nothing contradicts.

    The fields must already have their types, as `Progress.from_json` checks.
    """
    # Stops at the first claim that is false: later claims may rely on the earlier ones.
    return next((text for is_true, text in _claims(progress) if not is_true), None)


def _claims(progress: Progress) -> Iterator[tuple[bool, str]]:
    """Yield each claim that must hold, with the text to show if it does not."""
    yield from _of_position(progress)
    yield from _of_watches(progress)
    yield from _of_counts(progress)
    yield from _of_proofs(progress)


def _of_position(progress: Progress) -> Iterator[tuple[bool, str]]:
    """Yield claims about step, phase and the steps at which phases ended."""
    step, ends = progress.step, progress.transitions
    yield 0 <= step < _MOST_STEPS, f"step {step} is no step"
    yield progress.phase == len(ends), f"phase {progress.phase} comes after {len(ends)} phases"
    ordered = sorted(ends) == ends and all(0 <= end <= step for end in ends)
    yield ordered, f"phases cannot have ended at steps {_shortened(ends)} by step {step}"
    began = ends[-1] if ends else 0
    # a policy has decided on the mask of each phase that has begun; without one there is none
    num_masks = len(progress.masks)
    yield num_masks in (0, len(ends) + 1), f"{num_masks} masks are not those of {len(ends)} phases"
    yield progress.next_mask is None or num_masks > 0, "a next mask comes after none"
    yield (
        progress.phase_began == began,
        f"its phase cannot have begun at step {progress.phase_began}, but {began}",
    )


def _of_watches(progress: Progress) -> Iterator[tuple[bool, str]]:
    """Yield claims about the best values, and the steps that reached them."""
    step, began = progress.step, progress.phase_began
    yield from progress.best.claims("best", 0, step)
    yield from progress.stopping.claims("stopping", 0, step)
    yield from progress.plateau.claims("plateau", began, step)
    yield from progress.phase_best.claims("phase_best", began, step)
    yield from progress.rate.claims("rate", 0, step)
    falls = progress.rate_falls
    is_counted = 0 <= falls <= step and not progress.rate.is_over
    yield is_counted, f"the rate cannot have fallen {falls} times by step {step}"
    for name in ("best", "phase_best"):
        watch = getattr(progress, name)
        yield (watch.value is None) == (watch.step is None), f"{name} has a value and no step"
    best = progress.best.step, progress.best.value
    yield progress.ranking[:1] in ([], [best]), "best is not the first of the ranking"
    steps = [step for step, _ in progress.ranking]
    yield len(set(steps)) == len(steps), "the ranking holds a step twice"
    for step, value in progress.ranking:
        is_past = 0 <= step <= progress.step and not math.isnan(value)
        yield is_past, f"the ranking holds {value} at step {step}"


def _of_counts(progress: Progress) -> Iterator[tuple[bool, str]]:
    """Yield claims about left-out steps, epochs and seconds."""
    left_out = progress.left_out
    are_steps = all(0 <= step < _MOST_STEPS for step in left_out)
    yield are_steps and len(set(left_out)) == len(left_out), "left_out holds what are no steps"
    size, lines = progress.micro_batch, progress.lines
    yield size is None or size >= 1, f"micro_batch is {size}"
    yield lines is None or lines >= 0, f"lines is {lines}"
    lengths = [progress.epoch_steps or 1, *(length for _, length in progress.past_epochs)]
    # Epochs of earlier data ended in order, and before the present step.
    ends = [0, *(end for end, _ in progress.past_epochs), progress.step]
    are_epochs = min(lengths) >= 1 and ends == sorted(ends)
    yield are_epochs, "its epochs cannot have been of these lengths"
    for activity, spent in progress.seconds.items():
        yield math.isfinite(spent) and spent >= 0, f"{spent} seconds of {activity[:40]!r}"


def _of_proofs(progress: Progress) -> Iterator[tuple[bool, str]]:
    """Yield claims about the proofs of phases that are over."""
    # A run stops at a proof that fails, so no honest checkpoint holds one.
    for number, proof in enumerate(progress.proofs):
        yield _is_proof(proof), f"proof {number} is not what a phase leaves"
        covers = 0 <= proof["first_step"] <= proof["last_step"] <= progress.step
        yield covers, f"proof {number} spans steps that are not done"
        is_intact = proof["intact"] and not proof["changed"]
        is_intact = is_intact and all(one == two for one, two in _pairs_of(proof))
        yield is_intact, f"proof {number} is of tensors that changed"
    phases = [proof["phase"] for proof in progress.proofs]
    yield len(set(phases)) == len(phases), "a phase has two proofs"


def _is_proof(proof: Mapping[str, Any]) -> bool:
    """Tell whether plain data has exactly the fields of a phase's proof, each of its type."""
    is_short = "digest_over_all" in proof
    wanted = _PROOF | (_SHORTENED if is_short else {})
    wanted |= _ORIGINS if is_short or "loaded" in proof else {}
    if {name: type(value) for name, value in proof.items()} != wanted:
        return False
    texts = [*proof["changed"], *proof["left_out"]]
    for pair in _pairs_of(proof):
        if not isinstance(pair, list) or len(pair) != 2:
            return False
        texts += pair
    distances = all(type(change) in (int, float) for change in proof["largest_change"].values())
    return _is_counted(proof) and distances and all(isinstance(text, str) for text in texts)


def _is_counted(proof: Mapping[str, Any]) -> bool:
    """Tell whether the numbers of a proof can be those of its tensors."""
    tensors: int = proof["tensors"]
    origins: list[int] = [proof[name] for name in _ORIGINS if name in proof]
    # A shortened proof names no tensor, and there would be none to shorten without tensors.
    is_count = tensors == len(proof["digests"])
    if "digest_over_all" in proof:
        is_count = tensors > 0 and not proof["digests"]
    are_origins = not origins or (min(origins) >= 0 and sum(origins) == tensors)
    return is_count and are_origins and bool(proof["parameters"] >= 0)


def _pairs_of(proof: Mapping[str, Any]) -> list[Any]:
    """Return the fingerprints before and after of each tensor, or the one pair of a short proof."""
    over_all = [proof["digest_over_all"]] if "digest_over_all" in proof else []
    return [*proof["digests"].values(), *over_all]


def _shortened(steps: list[int]) -> str:
    """Return a list as text, with only its first eight entries."""
    return str(steps) if len(steps) <= 8 else f"{str(steps[:8])[:-1]}, …]"
