"""Export a network as an ONNX model, for any number of samples and tokens."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from finetune.errors import FinetuneError
from finetune.export.agreement import Outputs, Pass, named_outputs
from finetune.export.source import ExportSource, WrittenFormat, argument_names
from finetune.export.torch_format import traced
from finetune.importing import require
from finetune.models.shapes import first_line

FILE = "model.onnx"
_MOST_IN_ONE_FILE = 2**30
"""Bytes of weights in the file itself: protobuf reads none of 2 GiB. More lie beside it."""


def write_onnx(source: ExportSource, folder: Path) -> WrittenFormat:
    """Write a network as an ONNX model.

    Raises:
        FinetuneError: an operation of it has no counterpart there.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, extra="export")
    program = traced(source)
    names = argument_names(source.run.columns)
    with torch.no_grad():
        # Run once to know their names, which the file shall have as well.
        outputs = list(named_outputs(source.network(**source.example())))
    _convert(program, source, outputs, folder / FILE)
    # Of the file just written: what is compared later is what others will load.
    session = _session(folder / FILE)
    taken = {one.name for one in session.get_inputs()}

    def run(one: Pass) -> Outputs:
        # An argument that the network does not use is none of the model.
        given = {names[n]: t.numpy() for n, t in one.inputs.items() if names[n] in taken}
        found = session.run(outputs, given)
        return {name: torch.from_numpy(t) for name, t in zip(outputs, found, strict=True)}

    return WrittenFormat(_code(source, taken), run, "onnx", about=(_sizes(session),))


def _convert(
    program: ExportedProgram, source: ExportSource, outputs: list[str], path: Path
) -> None:
    """Convert a program and write it.

    Raises:
        FinetuneError: an operation has no counterpart in ONNX.
    """
    size = sum(t.numel() * t.element_size() for t in source.network.state_dict().values())
    names = argument_names(source.run.columns)
    example = {names[name]: tensor for name, tensor in source.example().items()}
    try:
        with _quiet():
            torch.onnx.export(
                program,
                (),
                path,
                kwargs=example,
                dynamo=True,
                external_data=size > _MOST_IN_ONE_FILE,
                input_names=list(example),
                output_names=outputs,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise FinetuneError(
            f"ONNX cannot hold this network: {first_line(error)}",
            hint="--format torch holds any operation of torch",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and onnxscript print and log about their own progress."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _session(path: Path) -> Any:
    """Return a session of onnxruntime on the CPU."""
    runtime: Any = require("onnxruntime", extra="export")
    # On the CPU, as the predictor that it is compared with.
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _code(source: ExportSource, taken: set[str]) -> str:
    """Return code that runs the model on an example."""
    names = argument_names(source.run.columns)
    entries = [
        f'    "{names[name]}": numpy.{"zeros" if tensor.is_floating_point() else "ones"}'
        f'({tuple(tensor.shape)}, dtype="{str(tensor.dtype).removeprefix("torch.")}"),'
        for name, tensor in source.example().items()
        if names[name] in taken
    ]
    return "\n".join(
        [
            "import numpy",
            "import onnxruntime",
            "",
            "session = onnxruntime.InferenceSession(",
            f'    "{FILE}", providers=["CPUExecutionProvider"]',
            ")",
            "inputs = {",
            *entries,
            "}",
            "output = session.run(None, inputs)[0]",
        ]
    )


def _sizes(session: Any) -> str:
    """Return a sentence on inputs and outputs and their sizes."""
    inputs, outputs = map(_named, (session.get_inputs(), session.get_outputs()))
    return f"Inputs, as the network takes them after all transforms: {inputs}. Outputs: {outputs}."


def _named(values: Any) -> str:
    """Return names, sizes and types of inputs or outputs."""
    texts = []
    for one in values:
        sizes = [str(size) if isinstance(size, int) else "any" for size in one.shape]
        texts.append(f"`{one.name}` ({', '.join(sizes)}) {one.type}")
    return "; ".join(texts)
