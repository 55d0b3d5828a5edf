"""The verb `certify`: a statement on a run, and its check on a machine that has no run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import Json, Overrides, Trust
from finetune.cli.output import results
from finetune.errors import FinetuneError
from finetune.outfile import (
    check_place,
    is_regular,
    output_file,
    refuse_foreign,
    refuse_replacing,
)
from finetune.process import loading
from finetune.visible import tell, tell_json


def certify_command(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run.", metavar="[RUN]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Certificate of RUN to write; an older one is replaced."),
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
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Private key (PEM) that signs it, in a file FILE.sig."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="With --check: key (PEM) that must have signed it."),
    ] = None,
    as_json: Json = False,
    override: Overrides = None,
    trust: Trust = None,
) -> None:
    """Write a certificate of a run: config, data, plan, proof, digests of all tensors; or check it.

    A check needs neither the run nor torch. Exit code 0 if all agrees, 2 otherwise.
    """
    if check is not None:
        idle: dict[str, object] = {
            "RUN": run,
            "--out": out,
            "--sign": sign,
            "-o": override,
            "--trust": trust,
        }
        _refuse_idle(idle, "--check")
        _check(check, base, weights, public_key, as_json=as_json)
        return
    idle = {"--base": base, "--weights": weights, "--public-key": public_key, "--json": as_json}
    _refuse_idle(idle, None)
    if run is None or out is None:
        raise FinetuneError(
            "needs a run and a file to write, or a certificate to check",
            where="certify",
            hint="finetune certify runs/first --out first.json, or finetune certify --check "
            "first.json --weights model.safetensors",
        )
    check_place(out)
    with results():
        _write(run, out, sign, overrides=override or (), trust=trust or ())


def _write(
    run: Path, out: Path, key: Path | None, *, overrides: Sequence[str], trust: Sequence[str]
) -> None:
    """Write the certificate of a run, and its signature if there is a key."""
    from finetune.export.signing import BEGINNING as SIGNATURE, signature_of, signature_place

    with loading():
        from finetune.export.certifying import certificate_of
        from finetune.export.statement import BEGINNING
        from finetune.runs.saved_runs import saved_folder

    if key is not None and not is_regular(out):
        raise FinetuneError("needs a certificate in a regular file", where="--sign")
    signature = signature_place(out)
    places = [(out, BEGINNING, "certificate"), (signature, SIGNATURE, "signature")]
    for place, beginning, what in places if key is not None else places[:1]:
        refuse_foreign(place, beginning, what)
        refuse_replacing(place, saved_folder(run).files())
    text = certificate_of(run, trust=trust, overrides=overrides)
    # Before anything is written: a key that cannot be used must cost no certificate.
    signed = None if key is None else signature_of(text, key)
    # Asked while the older certificate is still there.
    is_left = key is None and _is_left_behind(signature, out, text)
    with output_file(out) as file:
        file.write(text)
    tell(f"{out}: certificate of {run}", sys.stderr)
    if signed is not None:
        with output_file(signature) as file:
            file.write(signed)
        tell(f"{signature}: signature by {key}", sys.stderr)
    elif is_left:
        tell(f"{signature}: is older than this certificate; --sign KEY signs it", sys.stderr)


def _is_left_behind(signature: Path, out: Path, text: str) -> bool:
    """Tell whether there is a signature, of a certificate at `out` that is not this text."""
    raw = text.encode("utf-8", "backslashreplace")
    try:
        if not signature.exists():
            return False
        if not is_regular(out) or not out.exists():
            return True
        with out.open("rb") as file:
            # One byte more: a longer file is another certificate as well.
            return file.read(len(raw) + 1) != raw
    except OSError:  # a name to which `.sig` is too much
        return False


def _refuse_idle(given: dict[str, object], used: str | None) -> None:
    """Raise if an option is given that has no effect.

    Raises:
        FinetuneError: one is.
    """
    if name := next((name for name, value in given.items() if value), None):
        when = f"has no effect with {used}" if used else "has an effect only with --check"
        raise FinetuneError(when, where=name)


def _check(
    path: Path, base: Path | None, weights: Path | None, key: Path | None, *, as_json: bool
) -> None:
    """Check a certificate and print what was found."""
    from finetune.export.certified_files import check_certificate  # it loads numpy
    from finetune.export.signing import fault_of_signature

    with results() as out:
        done = check_certificate(path, base=base, weights=weights)
        fault = None if key is None else fault_of_signature(done.raw, path, key)
        found = [*([("signature", fault)] if fault else []), *done.faults]
        if as_json:
            faults = [{"name": name, "fault": told} for name, told in found]
            plain = {"tensors": done.tensors, "frozen": done.frozen, "compared": done.compared}
            signed = {"signed": None if key is None else fault is None}
            tell_json({"sound": not faults, "faults": faults} | plain | signed, out)
        else:
            for name, told in found:
                tell(f"{name}: {told}", out)
            tell(_verdict(len(found), done.tensors, done.frozen), out)
            for side in ("base", "weights"):
                number = done.compared.get(side)
                what = "not compared" if number is None else f"{number} tensors compared"
                tell(f"{side}: {what}", out)
            if fault is None:
                tell(f"signature: {'not checked' if key is None else f'by {key}'}", out)
    if found:
        raise typer.Exit(FinetuneError.exit_code)


def _verdict(faults: int, tensors: int, frozen: int) -> str:
    """Return in words whether a certificate holds."""
    if faults:
        return f"certificate: {faults} {'fault' if faults == 1 else 'faults'}"
    return (
        f"certificate: holds for {tensors} tensors of the weights, of which {frozen} are frozen "
        "and bit-identical"
    )
