"""Listen on a socket, and react to signals: stop without losing a request, look at runs again."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from finetune import disk
from finetune.errors import FinetuneError
from finetune.importing import require
from finetune.process import unanswered
from finetune.serve.refusal import ServiceLimits
from finetune.serve.routes import Service
from finetune.serve.served_runs import ServedRuns
from finetune.serve.slow_headers import bounded_protocol

_LOCAL = ("127.0.0.1", "localhost", "::1")


def refuse_public(host: str, *, is_public: bool) -> None:
    """Raise if others could reach an address and the user has not said that they may.

    Raises:
        FinetuneError: they could.
    """
    if host in _LOCAL or is_public:
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    raise FinetuneError(
        f"{host} can be reached by other machines, and the service asks nobody who they are",
        where="--host",
        hint="with --public it listens there; better a proxy with authentication before 127.0.0.1",
    )


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        FinetuneError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with contextlib.ExitStack() as closed_if_not_bound:
            found = closed_if_not_bound.enter_context(socket.socket(family, socket.SOCK_STREAM))
            # Else the address stays taken for a minute after a service that had open connections.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
            closed_if_not_bound.pop_all()
    except OSError as error:
        raise FinetuneError(
            f"cannot listen on {host}, port {port}: {disk.reason_of(error).lower()}",
            where="--port",
            hint="name another one; --port 0 takes any that is free",
        ) from error
    return found


def serve(
    runs: ServedRuns,
    bound: socket.socket,
    limits: ServiceLimits,
    *,
    is_public: bool,
    tell: Callable[[str], None],
) -> None:
    """Answer requests until SIGTERM or SIGINT; those that were accepted are answered first.

    SIGHUP looks at the folders of the runs again.

    Raises:
        Interrupted: a signal came while the runs were loaded, and a library has caught it.
    """
    if (end := unanswered()) is not None:
        raise end
    uvicorn = require("uvicorn", extra="serve")
    # `--host 127.0.0.2` is an address of this machine as well.
    hosts = () if is_public else (*_LOCAL, bound.getsockname()[0])
    service = Service(runs.predictors, limits, hosts)
    # Whoever was accepted has its own time limits; the server only needs one for broken clients.
    patience = int(limits.timeout_s + limits.read_timeout_s) + 5

    def told_slow() -> None:
        service.counters.answered("other", 408, limits.read_timeout_s)

    settings = uvicorn.Config(
        service.app,
        http=bounded_protocol(limits.read_timeout_s, told_slow),
        lifespan="off",
        log_level="warning",
        # `/metrics` counts requests.
        access_log=False,
        # Versions of libraries are no business of a stranger.
        server_header=False,
        timeout_graceful_shutdown=patience,
        log_config=None,
    )
    try:
        asyncio.run(_serve(uvicorn.Server(settings), service, runs, bound, tell))
    finally:
        service.close()
        bound.close()


async def _serve(
    server: Any,
    service: Service,
    runs: ServedRuns,
    bound: socket.socket,
    tell: Callable[[str], None],
) -> None:
    loop = asyncio.get_running_loop()
    # One thread, so that two signals in a row are two looks, one after the other.
    with ThreadPoolExecutor(1, "loading") as reader:

        def stop() -> None:
            if not server.should_exit:
                tell("stopping: requests that were accepted are answered")
            service.app.is_stopping = True
            server.should_exit = True

        def look_again() -> None:
            def call(errand: Callable[[], None]) -> None:
                service.queue.between_batches(errand).result()

            reader.submit(_looked, runs, call, tell)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, look_again)
        # uvicorn would take the signals, and raise them again when it has ended.
        server.capture_signals = contextlib.nullcontext
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        # From here on clients may connect; the loop answers them as soon as it runs.
        bound.listen(2048)
        count = f"{len(runs.predictors)} {'run' if len(runs.predictors) == 1 else 'runs'}"
        tell(f"serving {count} on http://{shown}:{port}")
        await server.serve(sockets=[bound])
    tell("stopped")


def _looked(
    runs: ServedRuns, call: Callable[[Callable[[], None]], None], tell: Callable[[str], None]
) -> None:
    """Look at the runs again; a bug in that must not pass in silence."""
    try:
        runs.look_again(call)
    except Exception as error:
        tell(f"the runs could not be looked at again: {type(error).__name__}: {error}")
        raise
