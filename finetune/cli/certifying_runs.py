"""The verb `certify`: a statement on a run, and its check on a machine that has no run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import Json, Overrides, Trust
from finetune.cli.output import results
from finetune.errors import FinetuneError
from finetune.outfile import check_place, output_file, refuse_foreign, refuse_replacing
from finetune.process import loading
from finetune.visible import tell, tell_json


def certify_command(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run.", metavar="[RUN]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the certificate of RUN.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A certificate to check instead.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --check: safetensors that the run began with."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --check: safetensors of the trained network."),
    ] = None,
    as_json: Json = False,
    override: Overrides = None,
    trust: Trust = None,
) -> None:
    """Write a certificate of a run: config, data, plan, proof, digests of all tensors; or check it.

    A check needs neither the run nor torch. Exit code 0 if all agrees, 2 otherwise.
    """
    if check is not None:
        _refuse_idle({"RUN": run, "--out": out, "-o": override, "--trust": trust}, "--check")
        _check(check, base, weights, as_json=as_json)
        return
    _refuse_idle({"--base": base, "--weights": weights, "--json": as_json}, None)
    if run is None or out is None:
        raise FinetuneError(
            "needs a run and a file to write, or a certificate to check",
            where="certify",
            hint="finetune certify runs/first --out first.json, or finetune certify --check "
            "first.json --weights model.safetensors",
        )
    check_place(out)
    with results():
        with loading():
            from finetune.export.certifying import certificate_of
            from finetune.export.statement import BEGINNING
            from finetune.runs.folder import saved_folder

        refuse_foreign(out, BEGINNING, "certificate")
        refuse_replacing(out, saved_folder(run).files())
        text = certificate_of(run, trust=trust or (), overrides=override or ())
        with output_file(out) as file:
            file.write(text)
        tell(f"{out}: certificate of {run}", sys.stderr)


def _refuse_idle(given: dict[str, object], used: str | None) -> None:
    """Raise if an option is given that has no effect.

    Raises:
        FinetuneError: one is.
    """
    if name := next((name for name, value in given.items() if value), None):
        when = f"has no effect with {used}" if used else "has an effect only with --check"
        raise FinetuneError(when, where=name)


def _check(path: Path, base: Path | None, weights: Path | None, *, as_json: bool) -> None:
    """Check a certificate and print what was found."""
    from finetune.export.certified_files import check_certificate  # it loads numpy

    with results() as out:
        done = check_certificate(path, base=base, weights=weights)
        if as_json:
            faults = [{"name": name, "fault": fault} for name, fault in done.faults]
            plain = {"tensors": done.tensors, "frozen": done.frozen, "compared": done.compared}
            tell_json({"sound": not faults, "faults": faults} | plain, out)
        else:
            for name, fault in done.faults:
                tell(f"{name}: {fault}", out)
            tell(_verdict(len(done.faults), done.tensors, done.frozen), out)
            for side in ("base", "weights"):
                number = done.compared.get(side)
                what = "not compared" if number is None else f"{number} tensors compared"
                tell(f"{side}: {what}", out)
    if done.faults:
        raise typer.Exit(FinetuneError.exit_code)


def _verdict(faults: int, tensors: int, frozen: int) -> str:
    """Return in words whether a certificate holds."""
    if faults:
        return f"certificate: {faults} {'fault' if faults == 1 else 'faults'}"
    return f"certificate: holds for {tensors} tensors, {frozen} of them frozen, bit-identical"
