"""Export a run: write a format, compare it with the predictor, write its model card."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from finetune.errors import FinetuneError
from finetune.export.agreement import TOLERANCE, largest_difference, real_passes
from finetune.export.delta_format import write_delta
from finetune.export.model_card import model_card
from finetune.export.new_folder import new_folder, refuse_taken
from finetune.export.onnx_format import write_onnx
from finetune.export.safetensors_format import write_safetensors
from finetune.export.source import Checked, ExportSource, WrittenFormat
from finetune.export.timm_format import write_timm
from finetune.export.torch_format import write_torch
from finetune.export.transformers_format import write_transformers
from finetune.predict import Predictor, load_predictor
from finetune.process import end_if_asked
from finetune.train.after.inference import PLAIN_CALLS

Format = Literal["safetensors", "torch", "onnx", "hf", "timm"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export has written.

    Args:
        folder: The folder.
        files: Names of its files.
        size_bytes: Bytes of all of them.
        checked: How it was compared with the predictor; None if it was not.
    """

    folder: Path
    files: tuple[str, ...]
    size_bytes: int
    checked: Checked | None


def export_run(
    run_dir: str | Path,
    form: Format,
    out: str | Path,
    *,
    delta: bool = False,
    check: int = 200,
    trust: Sequence[str] = (),
    overrides: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write the network of a run into a new folder, in a format that loads without this package.

    What is written is loaded anew and compared with the predictor on samples of the run's own
    data. If they disagree, nothing is left.

    Args:
        run_dir: The run's folder.
        form: The format.
        out: The folder to make.
        delta: Whether only what was trained is written.
        check: Number of samples to compare on; 0 for none.
        trust: Packages whose code the run's config may import.
        overrides: `key=value` each, for secrets that the saved config masks.
        tell: Receives lines for the user.

    Raises:
        FinetuneError: the run cannot be loaded, the format cannot hold the network, the folder is
            there already, or the export disagrees with the predictor.
    """
    # Before the run is loaded, which takes seconds; `new_folder` asks again when it is renamed.
    folder = Path(out)
    refuse_taken(folder)
    if delta and form != "safetensors":
        raise FinetuneError(
            f"format {form} holds whole networks",
            where="--delta",
            hint="--format safetensors --delta writes what was trained",
        )
    source = _source(run_dir, trust, overrides, tell)
    with new_folder(folder) as aside:
        end_if_asked()
        written = write_delta(source, aside) if delta else _written(form, source, aside)
        # Inside the block: the folder gets its name only when what lies in it agrees.
        checked = _checked(source.predictor, written, check, tell)
        end_if_asked()
        card = model_card(source, f"{form}, delta" if delta else form, written, checked)
        (aside / "README.md").write_text(card, encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    return Exported(folder, names, sum(path.stat().st_size for path in files), checked)


def _source(
    run_dir: str | Path,
    trust: Sequence[str],
    overrides: Sequence[str],
    tell: Callable[[str], None],
) -> ExportSource:
    """Load a run on the CPU and in float32, in which every format is written."""
    # Formats are written once for all machines: half precision of a GPU is no property of the
    # network.
    plain = ("train.device=cpu", "train.precision=float32", *PLAIN_CALLS)
    predictor = load_predictor(run_dir, trust=trust, overrides=(*overrides, *plain))
    run = predictor.run
    for line in run.notes:
        tell(f"note: {line}")
    source = ExportSource(predictor)
    if source.threshold is not None:
        tell("note: the files do not hold the threshold of the run; the model card tells it")
    return source


def _written(form: Format, source: ExportSource, folder: Path) -> WrittenFormat:
    """Write a format into a folder."""
    match form:
        case "safetensors":
            return write_safetensors(source, folder)
        case "torch":
            return write_torch(source, folder)
        case "onnx":
            return write_onnx(source, folder)
        case "hf":
            return write_transformers(source, folder)
        case "timm":
            return write_timm(source, folder)
        case _:
            assert_never(form)


def _checked(
    predictor: Predictor, written: WrittenFormat, count: int, tell: Callable[[str], None]
) -> Checked | None:
    """Compare what was written with the predictor.

    Raises:
        FinetuneError: they disagree, or the run's data cannot be read.
    """
    if count == 0:
        tell("note: not compared with the predictor, as --check 0 says; the model card says so")
        return None
    try:
        passes = real_passes(predictor, count)
    except FinetuneError as error:
        error.hint = error.hint or "--check 0 exports without a comparison on the run's data"
        raise
    largest = largest_difference(passes, written.run)
    number = sum(len(next(iter(one.inputs.values()))) for one in passes)
    # Not `>`: a difference of NaN disagrees, too.
    if not largest <= TOLERANCE:
        raise FinetuneError(
            f"the export disagrees with the predictor on {number} samples: by up to {largest:.3g}, "
            f"relative to outputs over 1; accepted is {TOLERANCE:g}. Nothing was written",
            hint=written.doubt,
        )
    return Checked(number, largest)
