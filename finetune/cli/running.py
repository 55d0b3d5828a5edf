"""The verbs that run a network on its own data, train and eval; and `tensorboard`."""

import os
import socket
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from finetune import disk
from finetune.cli.options import Config, Json, Overrides, Run, Trust
from finetune.cli.output import results
from finetune.errors import FinetuneError
from finetune.process import loading
from finetune.streams import unfailing
from finetune.visible import tell


def train_command(
    config: Config,
    override: Overrides = None,
    run: Annotated[
        # torchrun takes `--run` for an option of its own, so the first name is the longer one.
        Path | None, typer.Option("--run-dir", "--run", metavar="DIR", help="The run's folder.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew in the folder.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on from another run's newest checkpoint."),
    ] = None,
    data_changed: Annotated[
        bool,
        typer.Option(
            "--data-changed", help="Go on although the data has changed; old rows keep their part."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Write nothing on standard error but errors.")
    ] = False,
    trust: Trust = None,
) -> None:
    """Train; if the run's folder holds a checkpoint, continue from it."""
    from finetune.config.loader import load_config

    loaded = load_config(config, overrides=override or (), trust=trust or ())
    with results():
        # torch takes seconds to load: a config that is wrong fails before that
        with loading():
            from finetune.terminal import console_for
            from finetune.tracking.live_view import waiting
            from finetune.train.build import located
            from finetune.train.checkpoints.resuming import can_go_on
            from finetune.train.stopping import leaving_at_once
            from finetune.train.wire import build_trainer
            from finetune.which_rank import Ranks, rank_named

        # While it is built there is nothing to save: a signal ends it at once, with a code that
        # tells whether a checkpoint is there to resume from.
        with (
            rank_named(),
            leaving_at_once(partial(can_go_on, loaded, run, fresh=fresh, resume=resume)),
            nullcontext()
            if quiet or not Ranks.of_environment().is_first
            else waiting(console_for(unfailing(sys.stderr)), "reading data, building the network"),
        ):
            trainer = build_trainer(
                loaded,
                run,
                fresh=fresh,
                resume=resume,
                data_changed=data_changed,
            )
        with rank_named(), located(loaded):
            trainer.fit(quiet=quiet)


def eval_command(
    run: Run,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT", help="Other data to evaluate, all of it: a file, a folder, or -."
        ),
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        typer.Option(help="Which part of the run's own data; the test part if left out."),
    ] = None,
    override: Overrides = None,
    data_changed: Annotated[
        bool,
        typer.Option(
            "--data-changed",
            help="Evaluate the run's own data although it has changed; old rows keep their part.",
        ),
    ] = False,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained run on one part of its data, or on all of other data.

    Other data is named by INPUT or by -o data.source.path=FILE. It is read with the columns and
    classes of the run; the number of its rows that were trained on is reported.
    """
    with results() as out:
        with loading():
            from finetune.cli.tables import print_evaluation
            from finetune.train.after.trained import evaluated, load_run

        # Notes go to standard error: standard output holds the metrics alone, for programs to read.
        overrides, note = override or (), partial(tell, file=sys.stderr)
        found = evaluated(
            load_run(run, trust=trust or (), overrides=overrides),
            split,
            source=source,
            overrides=overrides,
            data_changed=data_changed,
            tell=note,
        )
        print_evaluation(run, found, out, as_json=as_json, note=note)


def tensorboard_command(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.", metavar="RUNS")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1.")] = 6006,
) -> None:
    """Show the curves of all runs below a folder on http://127.0.0.1."""
    from finetune.tracking.first_page import first_page  # it loads numpy

    if not runs.is_dir():
        raise FinetuneError("no such folder", where=str(runs), hint="train a run first")
    # Before the server starts: it would serve whatever it reads to any local user.
    _refuse_links_out_of(runs)
    _refuse_used_port(port)
    # TensorBoard has no authentication, so it is never bound to an address that others can reach.
    # Without -P, Python would search what it imports in the script's folder first.
    server = Path(__file__).with_name("shown_runs.py")
    command = [sys.executable, "-P", str(server), str(runs), first_page(runs)]
    # It replaces this process, so whoever ends this process ends the server.
    # It reads the event files itself: the faster reader is a second process, named experimental,
    # and a page that waits for it in vain stays empty.
    own = ["--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"]
    os.execv(sys.executable, [*command, *own])


def _refuse_used_port(port: int) -> None:
    """Raise if another process listens on a port: TensorBoard would only print a warning.

    Raises:
        FinetuneError: the port cannot be used.
    """
    with socket.socket() as probe:
        # as servers do: closed connections of an earlier server do not keep its port in use
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FinetuneError(
                f"cannot listen on port {port}: {disk.reason_of(error).lower()}",
                where="--port",
                hint="name another one; --port 0 takes any that is free",
            ) from error


def _refuse_links_out_of(runs: Path) -> None:
    """Raise if a link leads out of a folder: TensorBoard follows links, maybe without end.

    The only links allowed are those to another run in the same folder, such as `best`.

    Raises:
        FinetuneError: there is any other link, a pipe or a device.
    """
    home = runs.resolve()
    for path in disk.strange_below(runs):
        is_beside = path.is_symlink() and path.parent == runs and path.resolve().parent == home
        if not is_beside:
            raise FinetuneError(
                "is a link that leads elsewhere, a pipe or a device, and TensorBoard would read it",
                where=str(path),
                hint="remove it, or name the folder that it leads to",
            )
