"""The verb `serve`."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import Overrides, Trust
from finetune.cli.output import results
from finetune.process import loading
from finetune.visible import tell


def serve_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of runs.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    public: Annotated[
        bool, typer.Option("--public", help="Allow an address that other machines can reach.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of one pass.")] = None,
    batch_wait_ms: Annotated[
        float,
        typer.Option(min=0, max=10_000, help="Wait for requests that share a batch; 0: none does."),
    ] = 5.0,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes of a request.")] = 16 * 2**20,
    max_items: Annotated[int, typer.Option(min=1, help="Most samples of a request.")] = 256,
    max_requests: Annotated[int, typer.Option(min=1, help="Most requests at a time.")] = 256,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="Seconds until an answer.")
    ] = 30.0,
    read_timeout: Annotated[
        float,
        typer.Option(
            min=0.001, max=86_400, help="Seconds for headers to come, and then for the body."
        ),
    ] = 10.0,
    override: Overrides = None,
    trust: Trust = None,
) -> None:
    """Answer HTTP requests with trained runs, on this machine.

    Runs over one frozen prefix share its pass. SIGTERM stops it when all accepted requests are
    answered; SIGHUP looks at the folders again: new runs are loaded, gone ones dropped.
    """
    note = partial(tell, file=sys.stderr)
    with results():
        with loading():
            from finetune.serve.refusal import ServiceLimits
            from finetune.serve.served_runs import Loading, ServedRuns
            from finetune.serve.server import bound_socket, refuse_public, serve

        refuse_public(host, is_public=public)
        limits = ServiceLimits(
            max_bytes, max_items, max_requests, timeout, read_timeout, batch_wait_ms
        )
        # Before the runs are loaded, which takes seconds each.
        with bound_socket(host, port) as bound:
            if public:
                note(
                    f"warning: whoever reaches {host} may use the service, and it asks nobody's "
                    "name"
                )
            served = ServedRuns(runs, Loading(trust or (), override or (), batch_size), note)
            served.load_all()
            serve(served, bound, limits, is_public=public, tell=note)
