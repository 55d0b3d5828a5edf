"""Find the frozen prefix of a trained run, with a key that equal prefixes share."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.activations.find.boundary import Boundary, probe
from finetune.activations.key import facts_of, network_key
from finetune.bits import fingerprint
from finetune.data.batches import MASK
from finetune.data.media.pixels import PixelRules
from finetune.data.media.waveforms import SoundRules
from finetune.data.steps.step_facts import identity_of
from finetune.freezing.apply import apply_mask, mask_given_back
from finetune.freezing.rows import rows_of
from finetune.models.network import TensorSpec
from finetune.predict.predictor import Predictor
from finetune.store.directory import key_of
from finetune.train.build import plan_of

_TRIAL = 4
"""Samples of a trial batch: the fewest with which a prefix can be found."""


@dataclass(frozen=True, slots=True)
class FrozenPrefix:
    """The frozen prefix of a run."""

    key: str
    """Hash of all that its outputs depend on besides the samples: of the tensors that its calls
    reach, of structure and code, of the steps that prepare samples, and of how it is run."""
    network: str
    """Hash of all that a search for the prefix depends on: of the whole network but for values."""
    boundary: Boundary
    tensors: tuple[str, ...]
    """Names of the parameters and buffers that its calls reach."""
    trial: Mapping[str, Tensor]
    """Made-up inputs `(B, ...)` on which it was found, the last sample padded where there is a
    mask."""

    @property
    def up_to(self) -> str:
        """Name of its last module."""
        return self.boundary.modules[-1]


def find_prefix(predictor: Predictor, known: Iterable[FrozenPrefix] = ()) -> FrozenPrefix | str:
    """Return the frozen prefix of a run, or why it has none that another run could share.

    The network runs a few times on made-up inputs, and is left as it was. It does not run if the
    prefix of an equal network is known, whatever values their tensors have.

    Args:
        predictor: The run.
        known: Prefixes that were found in other runs.
    """
    run, model = predictor.run, predictor.run.model
    if run.inference.is_compiled:
        return "it runs as compiled code"
    trained = {rows_of(name)[0] for name in plan_of(run.config, model).ever_trained}
    frozen = {name for name, _ in model.named_parameters()} - trained
    if not frozen:
        return "nothing is frozen"
    document = run.folder.read_json("data.json")
    around = _facts_around(predictor)
    trial, mixed, shared = _made_up(run.specs, run.device)
    trial, mixed = run.inference.laid_out(trial), run.inference.laid_out(mixed)
    try:
        with mask_given_back(model), torch.enable_grad(), run.inference.precision.autocast():
            apply_mask(model, frozen)
            network = network_key(model, around | {"specs": repr(run.specs)})
            # Found anew for each of many runs over one network, it took most of their start.
            boundary = next((one.boundary for one in known if one.network == network), None)
            if boundary is None:
                boundary, _ = probe(model, trial, mixed, shared, is_right_padded=True)
            facts = facts_of(model, boundary, around) if boundary.calls else {}
    # Made-up inputs may be none that the network takes: code of the user may raise anything.
    except Exception as error:  # noqa: BLE001
        return f"its network does not run on made-up inputs ({type(error).__name__})"
    if not boundary.stored:
        return "; ".join(boundary.reasons) or "no frozen call comes before what is trained"
    about = facts | {
        "fitted": json.dumps(document.get("fitted"), sort_keys=True, default=str),
        # Two heads may read other outputs of one prefix; an answer has those of the first alone.
        "leaves": [repr(call.leaves) for call in boundary.calls],
    }
    return FrozenPrefix(key_of(about), network, boundary, tuple(facts["tensors"]), trial)


def _facts_around(predictor: Predictor) -> dict[str, str]:
    """Return what batches, and the way they are run, depend on besides the network."""
    run, data = predictor.run, predictor.run.config.data
    source, cutter = data.source or data.train, predictor.preparing.cutter
    steps = predictor.preparing.steps.other
    identity = identity_of(
        [each.step for each in steps], [each.node for each in steps], None, run.config.trust
    )
    return {
        "inputs": json.dumps([run.facts.inputs, run.facts.kinds, run.columns]),
        "files": repr((PixelRules.of(source), SoundRules.of(source))),
        "steps": identity,
        # Overlap of the windows that texts are cut into.
        "windows": str(cutter and cutter.stride),
        "running": json.dumps(
            [
                run.config.inference.mode,
                str(run.config.inference.precision or run.config.train.precision),
                run.inference.is_channels_last,
                str(run.device),
                predictor.batch_size,
            ]
        ),
    }


def _made_up(
    specs: Mapping[str, TensorSpec], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[tuple[int, int]]]:
    """Return two batches of random inputs, and pairs of rows that hold the same sample in both."""
    # A generator of our own: random numbers of the caller stay as they were.
    draw = torch.Generator().manual_seed(0)
    rows = {name: _random(name, spec, draw) for name, spec in specs.items()}
    # Some samples of the first batch at other places, and others beside them: `probe` compares
    # them.
    order = [2, 5, 0, 4]
    shared = [(row, place) for place, row in enumerate(order) if row < _TRIAL]
    first = {name: values[:_TRIAL].to(device) for name, values in rows.items()}
    second = {name: values[order].to(device) for name, values in rows.items()}
    return first, second, shared


def _random(name: str, spec: TensorSpec, draw: torch.Generator) -> Tensor:
    """Return six random samples of a column, `(6, ...)`; whole numbers are 0 and 1."""
    shape, dtype = (6, *spec.shape), getattr(torch, spec.dtype)
    if name == MASK or name.endswith(f".{MASK}"):
        mask = torch.ones(shape, dtype=dtype)
        if mask.ndim > 1 and mask.shape[1] > 1:
            # A network may drop a mask of ones: the prefix is found where it counts.
            mask[3:5, -1] = 0
        return mask
    if dtype.is_floating_point:
        return torch.randn(shape, generator=draw).to(dtype)
    # Every table has two rows, so that these are indices of any.
    return torch.randint(0, 2, shape, generator=draw).to(dtype)


def share_tensors(model: nn.Module, prefix: FrozenPrefix, other: nn.Module) -> None:
    """Let a network use the tensors of another one with the same prefix in place of its own.

    Bits are equal, as the keys of the prefixes are; a tensor that differs all the same is kept.

    Args:
        model: The network; the tensors of its prefix are replaced, and their memory is freed.
        prefix: Its prefix.
        other: The network whose tensors it gets.
    """
    names = set(prefix.tensors)
    own, theirs = _tensors(model), _tensors(other)
    given = {
        id(own[name]): theirs[name]
        for name in names
        if own[name] is not theirs[name] and fingerprint(own[name]) == fingerprint(theirs[name])
    }
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if id(tensor) in given:
                    table[name] = given[id(tensor)]  # type: ignore[assignment]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])
