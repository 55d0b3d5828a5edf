"""Origin of frozen values: a file of weights, earlier training, or random initialisation."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass

from torch import Tensor, nn

from finetune.errors import named
from finetune.freezing.lints import Lint
from finetune.freezing.plan import Phase, Plan
from finetune.freezing.rows import rows_of
from finetune.models.inventory import ParamInfo
from finetune.models.weights_report import WeightsReport


@dataclass(frozen=True, slots=True)
class Origins:
    """Counts of the tensors in a proof, by the origin of their values."""

    loaded: int
    """Loaded from weight files."""
    as_initialised: int
    """Random, or set by the code that built the network."""
    trained_before: int
    """Trained or moved in an earlier phase."""
    constants: int
    """Computed by the network: non-persistent buffers, which no weight file holds."""

    def __str__(self) -> str:
        counted = [
            f"{self.loaded} loaded from weights" if self.loaded else "",
            f"{self.as_initialised} as initialised" if self.as_initialised else "",
            f"{self.trained_before} trained before" if self.trained_before else "",
            f"{self.constants} computed, in no file of weights" if self.constants else "",
        ]
        return f"of the frozen tensors: {', '.join(filter(None, counted))}"


def sum_of(several: Sequence[Origins]) -> Origins:
    """Return one `Origins` whose counts are the sums over several proofs."""
    rows = zip(*map(astuple, several), strict=True)
    return Origins(*map(sum, rows))


@dataclass(frozen=True, slots=True)
class Sources:
    """Which tensors of a network were loaded from files, and which no file can hold."""

    loaded: frozenset[str]
    """All names of parameters and buffers that were loaded from a file."""
    constants: frozenset[str]
    """Names of non-persistent buffers."""

    @classmethod
    def of(cls, model: nn.Module, reports: Sequence[WeightsReport]) -> "Sources":
        """Return the sources of a network that was just built.

        Args:
            model: The network.
            reports: What was loaded into the network.
        """
        tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers(remove_duplicate=False))
        named_so = {name for report in reports for name in report.full_names(report.loaded)}
        # By identity: a tied tensor is loaded under one name, and counts under all of them.
        filled = {id(tensor) for name, tensor in tensors.items() if name in named_so}
        # torch keeps these names in a private attribute and has no public list of them.
        constants = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules(remove_duplicate=False)
            for name in module._non_persistent_buffers_set
        }
        loaded = {name for name, tensor in tensors.items() if id(tensor) in filled}
        return cls(frozenset(loaded), frozenset(constants))

    def count(self, names: Collection[str], moved_before: Collection[str]) -> Origins:
        """Return the counts for the tensors of a proof.

        Args:
            names: Parameters, row slices and buffers, as a proof has them.
            moved_before: The names among them that an earlier phase has changed.
        """
        rest = [name for name in names if name not in moved_before]
        # Weight files hold whole parameters; a proof may cover rows of one.
        loaded = sum(rows_of(name)[0] in self.loaded for name in rest)
        constants = sum(name in self.constants for name in rest)
        return Origins(
            loaded=loaded,
            as_initialised=len(rest) - loaded - constants,
            trained_before=len(names) - len(rest),
            constants=constants,
        )


def trained_in(phases: Sequence[Phase], inventory: Sequence[ParamInfo]) -> set[str]:
    """Return the names of the parameters that train in at least one of the phases."""
    if not phases:
        return set()
    # One intersection in place of a look into each of the hundreds of phases that a policy makes.
    always_frozen = frozenset.intersection(*(phase.frozen for phase in phases))
    return {param.name for param in inventory} - always_frozen


def moved_before(
    digests: Mapping[str, str],
    earlier: Sequence[Phase],
    inventory: Sequence[ParamInfo],
    as_built: Mapping[str, str],
) -> frozenset[str]:
    """Return the names in a proof that earlier phases have changed, or trained.

    Args:
        digests: Fingerprints as the phase began, by name.
        earlier: The phases before that one.
        inventory: The parameters.
        as_built: Fingerprints of never trained parameters and of buffers, before training.
    """
    trained = trained_in(earlier, inventory)
    return frozenset(
        name
        for name, digest in digests.items()
        # A name without a first fingerprint trains in some phase, which `trained` answers for.
        if name in trained or as_built.get(name, digest) != digest
    )


def lines_on_weights(reports: Sequence[WeightsReport]) -> list[str]:
    """Return a line for each weight file: how much was loaded, and what was left over."""
    return [f"{report.module}: {report}" if report.module else str(report) for report in reports]


def frozen_by_chance(reports: Sequence[WeightsReport], plan: Plan) -> tuple[Lint, ...]:
    """Return a note for each weight file that leaves tensors random which the first phase freezes.

    Who asks for weights does not mean to freeze random values.

    Args:
        reports: What was loaded into the network.
        plan: The phases of the run.
    """
    filled = {name for report in reports for name in report.full_names(report.loaded)}
    parameters = {rows_of(param.name)[0]: param.name for param in plan.inventory}
    # Only the first phase: a tensor that it trains is not random when a later one freezes it.
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
