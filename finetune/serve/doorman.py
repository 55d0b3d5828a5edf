"""Reads a request within limits before any route sees it, and counts every answer."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from finetune.serve.counters import Counters
from finetune.serve.refusal import Refusal, ServiceLimits, safe_json

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_ROUTES = ("/predict/files", "/predict", "/runs", "/health", "/ready", "/metrics", "/docs", "/")
"""Known routes: counts of others would let a stranger make as many as they like."""
_MIB = 1 << 20
_DROPPING_S = 30.0
"""Time in which a body that is too large may go on coming, before its connection is closed."""


class Doorman:
    """An ASGI application around another one: hosts, sizes, numbers and times of requests.

    Args:
        app: The application.
        limits: Of the service.
        counters: Receive every answer.
        hosts: Names under which the service may be addressed; empty for any. A page of a stranger
            can make a browser call this machine by a name of its own (DNS rebinding).
    """

    def __init__(
        self, app: App, limits: ServiceLimits, counters: Counters, hosts: Collection[str]
    ) -> None:
        self._app, self._limits, self._counters, self._hosts = app, limits, counters, hosts
        self.at_work = 0
        """Requests that are read, wait or are answered."""
        self.is_stopping = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        # Only these run networks. Health and counts are answered also where too many of them are at
        # work.
        takes_part = scope["method"] == "POST"
        self.at_work += takes_part
        try:
            self._check(scope, takes_part=takes_part)
            # No other method has a body here: it would come past the number of requests.
            given = _given(await self._read(receive), receive) if takes_part else receive
            await self._app(scope, given, counted)
        except Refusal as refusal:
            await refuse(refusal, counted)
        finally:
            self.at_work -= takes_part
            route = scope["path"] if scope["path"] in _ROUTES else "other"
            self._counters.answered(route, status, time.perf_counter() - began)

    def _check(self, scope: Message, *, takes_part: bool) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = _host(headers.get(b"host", ""))
        if self._hosts and host not in self._hosts:
            raise Refusal(421, "this service is not addressed by that name", "use 127.0.0.1")
        # Browsers name the page that asks. Without this any page could use the service of its
        # visitor's machine.
        origin = headers.get(b"origin")
        if origin is not None and _host(origin.partition("://")[2]) != host:
            raise Refusal(403, "a page of another site may not use this service")
        if takes_part and self.is_stopping:
            raise Refusal(503, "the service stops")
        if takes_part and self.at_work > self._limits.requests:
            raise Refusal(
                429, f"{self._limits.requests} requests are at work already", "try again later"
            )

    async def _read(self, receive: Receive) -> bytes:
        """Return the whole body.

        Raises:
            Refusal: it is too large or too slow.
        """
        reader = _BodyReader(self._limits.body_bytes)
        try:
            async with asyncio.timeout(self._limits.read_timeout_s):
                await reader.read(receive)
        except TimeoutError:
            seconds = f"{self._limits.read_timeout_s:g} s"
            raise Refusal(408, f"the body did not come within {seconds}") from None
        if reader.is_over:
            return bytes(reader.body)
        # Read on and dropped: a client that still sends does not read the answer.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DROPPING_S):
                await reader.drop(receive)
        most = self._limits.body_bytes
        size = f"{most / _MIB:g} MiB" if most >= _MIB else f"{most:,} bytes"
        raise Refusal(413, f"the body has more than {size}", "send parts")


class _BodyReader:
    """Reads a body up to a limit; what comes after it is dropped."""

    def __init__(self, limit: int) -> None:
        self.body, self._limit = bytearray(), limit
        self._is_last = False
        self.is_over = False
        """Whether all of it was read within the limit."""

    async def read(self, receive: Receive) -> None:
        """Read to the end, or past the limit."""
        while not self.is_over:
            part, is_last = await _part(receive)
            self.body += part
            if len(self.body) > self._limit:
                self.body.clear()
                self._is_last = is_last
                return
            self.is_over = is_last

    async def drop(self, receive: Receive) -> None:
        """Read to the end, and keep nothing."""
        while not self._is_last:
            _, self._is_last = await _part(receive)


async def _part(receive: Receive) -> tuple[bytes, bool]:
    """Return the next part of a body, and whether it is the last.

    Raises:
        Refusal: the client has gone.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Refusal(400, "the client has gone")
    return message.get("body", b""), not message.get("more_body", False)


async def refuse(refusal: Refusal, send: Send) -> None:
    """Send the answer to a refused request."""
    body = safe_json(refusal.as_data())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-content-type-options": "nosniff",
        **refusal.headers,
    }
    # A part of the body may still come, which would be read as the next request.
    if refusal.status in (408, 413):
        headers["connection"] = "close"
    pairs = [(name.encode(), value.encode("ascii")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _given(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives a body that was read already, then what comes after it."""
    parts = [body]

    async def give() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await receive()

    return give


def _host(address: str) -> str:
    """Return the host of `host:port`, in small letters."""
    # An address of IPv6 has colons of its own.
    if address.startswith("["):
        return address.partition("]")[0].removeprefix("[").lower()
    return address.partition(":")[0].lower()
