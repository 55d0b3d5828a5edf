"""What the command line asks of a sweep: a config with its overrides and trust."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config.loader import load_config
from finetune.config.run import RunConfig
from finetune.config.sweep_keys import SweepConfig
from finetune.errors import FinetuneError

NO_SWEEP = "sweep=null"
"""The override that takes the section `sweep` out of the config of a trial."""


@dataclass(frozen=True, slots=True)
class AskedSweep:
    """A config with the section `sweep`, and how configs of trials are made from it."""

    path: Path
    config: RunConfig
    sweep: SweepConfig
    overrides: Sequence[str]
    trust: Sequence[str]

    @classmethod
    def of(cls, path: Path, overrides: Sequence[str], trust: Sequence[str]) -> "AskedSweep":
        """Load the config in a file.

        Raises:
            FinetuneError: it cannot be used, or has no section `sweep`.
        """
        config = load_config(path, overrides, trust)
        if config.sweep is None:
            raise FinetuneError(
                "has no section 'sweep'",
                where=str(path),
                hint="sweep: {search: {optimizer.lr: {low: 1e-4, high: 1e-1, log: true}}}",
            )
        return cls(path, config, config.sweep, overrides, trust)

    def config_with(self, changes: Sequence[str]) -> RunConfig:
        """Return the config of a trial, given its overrides.

        Raises:
            ConfigError: the loader refuses it.
        """
        return load_config(self.path, [*self.overrides, *changes, NO_SWEEP], self.trust)

    def arguments_with(self, changes: Sequence[str]) -> list[str]:
        """Return the arguments of `finetune train` for a trial, given its overrides."""
        arguments = [str(self.path)]
        for change in (*self.overrides, *changes, NO_SWEEP):
            arguments += ["-o", change]
        for name in self.trust:
            arguments += ["--trust", name]
        return arguments
