"""Choose the samples of an evaluation: a part of the run's own data, or a whole named source."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune.config.dumping import as_plain
from finetune.config.loader import load_saved
from finetune.config.run import RunConfig
from finetune.config.secrets import MASK
from finetune.data.batches import Samples
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.identify.membership import count_trained
from finetune.data.incoming.named_data import DataReader, NamedData
from finetune.data.opening import DataFacts, Record
from finetune.data.parts.parting import RawPart
from finetune.data.prepare import evaluation_samples
from finetune.data.sources.open_source import sources_of
from finetune.data.steps.text_windows import WindowCutter, in_windows
from finetune.data.steps.tokens import TokenStore
from finetune.data.targets.listed_targets import with_listed_targets
from finetune.errors import DataError, Key
from finetune.models.declared import TensorSpec
from finetune.models.preprocessing import Preprocessing
from finetune.runs.folder import RunFolder
from finetune.runs.saved_runs import saved_config
from finetune.train.build import evaluation_batch_size
from finetune.train.checkpoints.same_data import read_record
from finetune.train.run_data import open_raw

Part = Literal["train", "validation", "test"]
_SOURCES = ("source", "train", "validation", "test")
_HOW_IT_IS_READ = {
    *("separator", "quote", "encoding", "errors", "missing"),
    *("mode", "background", "range", "channels", "within", "sample_rate", "seconds"),
    *("folder", "label"),
}
"""Keys of a source that say how it is read, not which data it is."""
_HOW_IT_IS_PARTED = ("seed", "data.split")
"""Config keys that decide which rows are in which part."""


@dataclass(frozen=True, slots=True)
class RunData:
    """What is needed of a trained run to read data for its network."""

    config: RunConfig
    folder: RunFolder
    facts: DataFacts
    preprocessing: Preprocessing
    specs: Mapping[str, TensorSpec]
    """Shape and type of one sample in each batch column."""


@dataclass(frozen=True, slots=True)
class EvalData:
    """The samples of an evaluation, and where they come from.

    Args:
        samples: The samples.
        part: The part of the run's own data; None for a named source.
        name: The named source, in the user's words.
        num_trained: Number of its rows that were trained on; None if that is not known.
    """

    samples: Samples
    part: Part | None
    name: str | None = None
    num_trained: int | None = None


def open_eval_data(
    run: RunData,
    split: Part | None,
    source: str | None,
    *,
    overrides: Sequence[str],
    accepts_changes: bool,
    tell: Callable[[str], None],
) -> EvalData:
    """Open the data that a run is evaluated on.

    Args:
        run: The trained run.
        split: The part of its data; `test` if None.
        source: A file, a folder or `-`; None for the run's own data, or what `overrides` name.
        overrides: Overrides of the command line, `key=value` each.
        accepts_changes: Whether the run's own data may differ from what it was trained on.
        tell: Receives lines for the user.

    Raises:
        CheckpointError: the run's own data has changed, and that is not accepted.
        DataError: the data cannot be read, or there is no such part.
    """
    keys = _named_keys(run, overrides)
    if source is None and not (keys := _chosen(keys, split)):
        split = split or "test"
        return _own(run, split, overrides, accepts_changes=accepts_changes, tell=tell)
    if split is not None and (source is not None or keys[0] == ("data", "source")):
        tell(f"--split {split} is not used: data that is named is evaluated whole")
    if accepts_changes:
        tell("--data-changed is not used: data that is named is not compared with the run's")
    config = run.config
    # As in training: a list of tasks names the targets that the data has to have.
    data = with_listed_targets(config.data, config.task)
    reader = DataReader(data, run.facts, config.task, config.seed, config.trust)
    if source is not None:
        return _whole(run, reader.read_input(source), tell)
    nodes = {key: node for node, key in sources_of(config.data).values()}
    return _whole(run, reader.read_source(nodes[keys[0]], keys[0]), tell)


def _own(
    run: RunData,
    split: Part,
    overrides: Sequence[str],
    *,
    accepts_changes: bool,
    tell: Callable[[str], None],
) -> EvalData:
    """Return a part of the run's own data, after comparing it with the run's record."""
    record = _record(run, tell, accepts_changes=accepts_changes)
    config = run.config
    keeps = config.cache.use == "auto"
    files = KnownFiles(config.cache.disk_gb) if keeps else None
    data = open_raw(config, run.preprocessing, files, record)
    for line in data.changes:
        tell(f"evaluates changed data: {line}")
    if data.identity.is_kept:
        # Here rows keep the parts of the record, so split keys of the command line change nothing.
        for line in _without_effect(overrides):
            tell(line)
    part = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    if part is None:
        raise DataError(f"this run has no {split} samples", where=str(run.folder.path))
    tokens = TokenStore(config.cache.disk_gb) if keeps else None
    # Of this part alone: to prepare the others may take longer than the evaluation.
    samples, _ = _evaluated(run, part, tokens, split, data.train)
    return EvalData(samples, split)


def _evaluated(
    run: RunData,
    part: RawPart,
    tokens: TokenStore | None = None,
    name: str = "",
    like: RawPart | None = None,
) -> tuple[Samples, list[str]]:
    """Return the samples of a part, and notes on cut texts; see `evaluation_samples`."""
    config = run.config
    return evaluation_samples(
        part,
        config.data,
        run.preprocessing,
        seed=config.seed,
        trust=config.trust,
        batch_size=evaluation_batch_size(config),
        hang_timeout_s=config.train.hang_timeout_s,
        fitted=run.facts.fitted,
        tokens=tokens,
        name=name,
        like=like,
        specs=run.specs,
    )


def _without_effect(overrides: Sequence[str]) -> list[str]:
    """Return a line if overrides change the split: rows that the run knows keep their part."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    given = [key for key in keys if key in _HOW_IT_IS_PARTED or key.startswith("data.split.")]
    if not given:
        return []
    return [
        f"{', '.join(given)} moves no row that the run knows: since its data has changed, such "
        "rows keep their part, and new ones alone are drawn"
    ]


def _record(run: RunData, tell: Callable[[str], None], *, accepts_changes: bool) -> Record | None:
    """Return the run's record of its data, or None, after a line that says why."""
    hint = (
        "--data-changed takes it as it is now, every row in its old part; "
        f"`finetune eval {run.folder.path} FILE` evaluates a file whole"
    )
    try:
        return read_record(run.folder, accepts_changes=accepts_changes, trains=False, hint=hint)
    except ValueError as error:
        tell(f"evaluates data that cannot be compared with the run's: {error}")
        return None


def _whole(run: RunData, data: NamedData, tell: Callable[[str], None]) -> EvalData:
    """Return all samples of a named source, and report how many the run was trained on."""
    for note in data.notes:
        tell(f"note: {note}")
    try:
        # Only to count rows that were trained on. Named data may differ from the run's in any way.
        record = read_record(run.folder, accepts_changes=True, trains=False, hint="")
        num_trained = count_trained(record.identity, data.part.hashes.read)
    except ValueError:
        num_trained = None
    size = len(data.part.table)
    tell(f"{data.name}: {_told(num_trained, size)}")
    part, on_windows = _cut(run, data.part)
    samples, on_cut = _evaluated(run, part)
    for note in (*on_windows, *on_cut):
        tell(f"note: {note}")
    return EvalData(samples, None, data.name, num_trained)


def _cut(run: RunData, part: RawPart) -> tuple[RawPart, list[str]]:
    """Return a part with a sample for each window of a text, and lines on it, if that is due."""
    config = run.config
    cutter = WindowCutter.of(
        config.task, config.data, part.table.columns, run.preprocessing, config.trust
    )
    return (part, []) if cutter is None else in_windows(part, cutter, "")


def _told(num_trained: int | None, size: int) -> str:
    """Return the words for how many rows are evaluated, and how many of these were trained on."""
    rows = "its 1 row is evaluated" if size == 1 else f"all {size} rows are evaluated"
    match num_trained:
        case None:
            return f"{rows}; the run has kept no hashes that tell which of them were trained on"
        case 0:
            return f"{rows}; {'it was not' if size == 1 else 'none of them was'} trained on"
        case 1:
            return f"{rows}; {'it' if size == 1 else '1 of them'} was trained on"
    return f"{rows}; {'all' if num_trained == size else num_trained} of them were trained on"


def _named_keys(run: RunData, overrides: Sequence[str]) -> list[Key]:
    """Return the keys of the config's sources for which overrides name other data.

    Keys that say how a source is read do not count, nor do secrets that the saved config masks.
    """
    keys = [tuple(override.partition("=")[0].strip().split(".")) for override in overrides]
    saved = as_plain(load_saved(saved_config(run.folder.path)))
    found: dict[Key, None] = {}
    for key in keys:
        if key[0] != "data" or (len(key) > 1 and key[1] not in _SOURCES):
            continue
        # A secret is masked in the saved config, so it must be given anew, and is no other data.
        if len(key) > 2 and (key[2] in _HOW_IT_IS_READ or _value_at(saved, key) == MASK):
            continue
        # An override of `data` itself replaces every source of the config.
        known = [here for _, here in sources_of(run.config.data).values()]
        found |= dict.fromkeys([key[:2]] if len(key) > 1 else known)
    return list(found)


def _chosen(keys: Sequence[Key], split: Part | None) -> list[Key]:
    """Return the named source to evaluate as a list of one key; empty for the run's own data.

    Raises:
        DataError: several are named, and `split` does not say which is meant.
    """
    wanted = ("data", split or "test")
    if ("data", "source") in keys:
        return [("data", "source")]
    if wanted in keys or split is not None or len(keys) < 2:
        return [wanted] if wanted in keys else [] if split is not None else list(keys)
    raise DataError("data of several parts is named", hint="--split says which is evaluated")


def _value_at(value: Any, key: Key) -> Any:
    """Return the value at a path of keys in nested dicts; None if there is none."""
    for step in key:
        value = value.get(step) if isinstance(value, dict) else None
    return value
