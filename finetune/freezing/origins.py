"""Origin of frozen values: a file of weights, earlier training, or random initialisation."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass

from torch import Tensor, nn

from finetune.errors import named
from finetune.freezing.lints import Lint
from finetune.freezing.plan import Phase, Plan
from finetune.freezing.rows import rows_of
from finetune.models.inventory import ParamInfo
from finetune.models.weights import WeightsReport


@dataclass(frozen=True, slots=True)
class Origins:
    """How many of the tensors that a proof covers have their values from where."""

    loaded: int
    """From files of weights."""
    as_initialised: int
    """From chance, or from the code that made the network."""
    trained_before: int
    """From a phase before, in which they were trained or moved."""
    constants: int
    """From the network's own arithmetic: buffers that no file of weights holds."""

    def __str__(self) -> str:
        counted = [
            f"{self.loaded} loaded from weights" if self.loaded else "",
            f"{self.as_initialised} as initialised" if self.as_initialised else "",
            f"{self.trained_before} trained before" if self.trained_before else "",
            f"{self.constants} constant" if self.constants else "",
        ]
        return f"of the frozen tensors: {', '.join(filter(None, counted))}"


def sum_of(several: Sequence[Origins]) -> Origins:
    """Add up the counts of several proofs."""
    rows = zip(*map(astuple, several), strict=True)
    return Origins(*map(sum, rows))


@dataclass(frozen=True, slots=True)
class Sources:
    """Which tensors of a network come from files, and which no file holds."""

    loaded: frozenset[str]
    """Parameters and buffers that were filled from a file, under all their names."""
    constants: frozenset[str]
    """Buffers outside the network's state."""

    @classmethod
    def of(cls, model: nn.Module, reports: Sequence[WeightsReport]) -> "Sources":
        """Look through a network that was just built.

        Args:
            model: The network.
            reports: What was loaded into it.
        """
        tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers(remove_duplicate=False))
        named_so = {name for report in reports for name in report.full_names(report.loaded)}
        filled = {id(tensor) for name, tensor in tensors.items() if name in named_so}
        constants = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules(remove_duplicate=False)
            for name in module._non_persistent_buffers_set
        }
        loaded = {name for name, tensor in tensors.items() if id(tensor) in filled}
        return cls(frozenset(loaded), frozenset(constants))

    def count(self, names: Collection[str], moved_before: Collection[str]) -> Origins:
        """Count tensors by where their values come from.

        Args:
            names: Parameters, row slices and buffers, as a proof has them.
            moved_before: Those of them that a phase before has changed.
        """
        rest = [name for name in names if name not in moved_before]
        loaded = sum(rows_of(name)[0] in self.loaded for name in rest)
        constants = sum(name in self.constants for name in rest)
        return Origins(
            loaded=loaded,
            as_initialised=len(rest) - loaded - constants,
            trained_before=len(names) - len(rest),
            constants=constants,
        )


def moved_before(
    digests: Mapping[str, str],
    earlier: Sequence[Phase],
    inventory: Sequence[ParamInfo],
    as_built: Mapping[str, str],
) -> frozenset[str]:
    """Return the tensors of a proof that earlier phases have changed, or were free to change.

    Args:
        digests: Fingerprints as the phase began, by name.
        earlier: The phases before that one.
        inventory: The parameters.
        as_built: Fingerprints from before the run of what never trains, and of buffers.
    """
    trained = {
        param.name for param in inventory for phase in earlier if param.name not in phase.frozen
    }
    return frozenset(
        name
        for name, digest in digests.items()
        if name in trained or as_built.get(name, digest) != digest
    )


def lines_on_weights(reports: Sequence[WeightsReport]) -> list[str]:
    """Return a line for each file of weights: what was loaded, and what found no place."""
    return [f"{report.module}: {report}" if report.module else str(report) for report in reports]


def frozen_by_chance(reports: Sequence[WeightsReport], plan: Plan) -> tuple[Lint, ...]:
    """Return a note for each file that left something random which the first phase freezes.

    A network of which weights were asked for is not meant to be random where it is frozen.

    Args:
        reports: What was loaded into the network.
        plan: The phases over it.
    """
    filled = {name for report in reports for name in report.full_names(report.loaded)}
    parameters = {rows_of(param.name)[0]: param.name for param in plan.inventory}
    first, found = plan.phases[0], list[Lint]()
    for report in reports:
        names = [
            name
            for name in report.full_names(report.not_loaded)
            if name not in filled and parameters.get(name) in first.frozen
        ]
        if names:
            message = (
                f"phase {first.name!r} freezes {len(names)} tensors as they were initialised, "
                f"though weights were asked for: {named(names)}"
            )
            found.append(Lint(report.key, message, "train them, or name weights that hold them"))
    return tuple(found)
