"""Find the folder of a run: where it is by default, and whether a trained run is in it."""

from pathlib import Path

from finetune import disk
from finetune.config.loader import load_saved
from finetune.config.run import RunConfig
from finetune.errors import CheckpointError, ConfigError
from finetune.runs.folder import RunFolder


def usual_folder(config: RunConfig) -> Path:
    """Return the default run folder, `runs/<name>`, for when `--run` is left out."""
    return Path("runs") / config.run_name


def saved_config(path: Path) -> Path:
    """Return the path of a trained run's config, after checking that the run may be read.

    Raises:
        CheckpointError: there is no run, or a name that runs use is a link, a pipe or a device.
    """
    RunFolder(path).refuse_links()
    config = path / "config.yaml"
    if not disk.is_file(config):
        usual = Path("runs") / path
        is_there = not path.is_absolute() and disk.is_file(usual / "config.yaml")
        hint = f"{usual} is one" if is_there else None
        if path.suffix in (".yaml", ".yml") and disk.is_file(path):
            hint = "a config, not a run: name the folder that `finetune train` wrote, runs/<name>"
        raise CheckpointError("no run here: there is no config.yaml", where=str(path), hint=hint)
    return config


def saved_folder(path: Path) -> RunFolder:
    """Return the folder of a trained run, with the place of its checkpoints.

    Raises:
        CheckpointError: as `saved_config`.
    """
    config = saved_config(path)
    try:
        return RunFolder.of(path, load_saved(config))
    except ConfigError:
        return RunFolder(path)  # whoever needs the config will report its faults
