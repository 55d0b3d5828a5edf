"""Close connections whose headers do not come in time: uvicorn waits for them without an end.

A client that sends a letter now and then ("slowloris") would hold its connection for ever. Bodies
have the same limit in `Doorman`, which sees a request only when its headers are whole.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from finetune.importing import require
from finetune.serve.refusal import Refusal, safe_json


def bounded_protocol(seconds: float, told: Callable[[], None]) -> type[Any]:
    """Return uvicorn's protocol of HTTP with a time limit for the headers of each request.

    Args:
        seconds: Time from the connection, or from the first byte after an answer, to whole headers.
        told: Called for each connection that is closed.
    """
    base: type[Any] = require("uvicorn.protocols.http.auto", extra="serve").AutoHTTPProtocol
    refusal = Refusal(408, f"the headers did not come within {seconds:g} s")
    answer = _whole_answer(refusal)

    def connection_made(self: Any, transport: Any) -> None:
        base.connection_made(self, transport)
        self.headers_timer = HeadersTimer(self, seconds, answer, told)
        self.headers_timer.look()

    def data_received(self: Any, data: bytes) -> None:
        base.data_received(self, data)
        self.headers_timer.look()

    def connection_lost(self: Any, exc: Exception | None) -> None:
        base.connection_lost(self, exc)
        self.headers_timer.stop()

    # Made here: the class that it extends is of an optional package.
    methods: dict[str, Any] = {
        "connection_made": connection_made,
        "data_received": data_received,
        "connection_lost": connection_lost,
    }
    return type("BoundedProtocol", (base,), methods)


class HeadersTimer:
    """Runs while a connection waits for the headers of a request, and closes it when it is over.

    Args:
        connection: uvicorn's protocol of the connection.
        seconds: How long it may wait.
        answer: What the client is told.
        told: Called when the connection is closed.
    """

    def __init__(
        self, connection: Any, seconds: float, answer: bytes, told: Callable[[], None]
    ) -> None:
        self._connection, self._seconds, self._answer = connection, seconds, answer
        self._told = told
        self._running: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Start the timer if the connection waits for headers; stop it during a request."""
        if not self._is_waiting:
            self.stop()
        elif self._running is None:
            self._running = self._connection.loop.call_later(self._seconds, self._close)

    def stop(self) -> None:
        """Stop the timer if it runs."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    @property
    def _is_waiting(self) -> bool:
        """Whether the connection handles no request at present."""
        cycle = self._connection.cycle
        return cycle is None or cycle.response_complete

    def _close(self) -> None:
        self._running = None
        transport = self._connection.transport
        # A request may have become whole in the moment in which the time was over.
        if self._is_waiting and not transport.is_closing():
            transport.write(self._answer)
            transport.close()
            self._told()


def _whole_answer(refusal: Refusal) -> bytes:
    """Return a refusal as bytes of HTTP, for a connection on which no request has come."""
    body = safe_json(refusal.as_data())
    head = (
        f"HTTP/1.1 {refusal.status} Request Timeout\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        "x-content-type-options: nosniff\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
