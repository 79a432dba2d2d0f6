"""One connection of the API, bounded: uvicorn's HTTP protocol with deadlines, sizes, and a place for who is honest.

    connected, or the last answer sent      a whole head within `head_s` of the first byte, `keep_alive_s` for that byte
    head complete                           the body within `body_s`
    request whole                           one of `max_waiting` that are being answered; beyond it 503 and Retry-After
    beyond `max_connections`                the one that has been without a whole request for longest gives its place

So half-sent requests hold places for seconds, and never the last ones: a new connection always gets one. Health,
readiness and metrics are answered whatever waits. A request is handed to the application when it is whole; until
then it costs its bytes, bounded each and together. uvicorn alone has no deadline for heads and bodies, keeps endless
headers, and answers 503 to health as to everything else.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infra.config import ServeConfig
from infra.metrics import Metrics

UNLIMITED = frozenset({"/healthz", "/readyz", "/metrics"})  # answered whatever waits
HELD_BYTES = 64 << 20  # of bodies that are not whole or not answered yet, over all connections
RETRY_AFTER_S = 1
SLACK = 4  # bytes of a message for each byte it may have: framing of chunks, trailers
REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}
REASONS[503] = b"Service Unavailable"


class Gate:
    """What the connections of a server share."""

    def __init__(self, limits: ServeConfig, metrics: Metrics) -> None:
        self.limits, self._metrics = limits, metrics
        self.open = 0
        self.idle: dict[BoundedProtocol, None] = {}  # without a whole request, longest first
        self.waiting = 0  # whole requests without an answer
        self.held_bytes = 0

    def refused(self, reason: str) -> None:
        self._metrics.add("ouzel_refused_total", reason=reason)


class BoundedProtocol(HttpToolsProtocol):
    """`protocol_of(gate)` is what uvicorn takes as its `http`."""

    def __init__(self, *given: Any, gate: Gate, **more: Any) -> None:
        super().__init__(*given, **more)
        self._gate, self._limits = gate, gate.limits
        self._deadline: asyncio.TimerHandle | None = None
        self._late = ""  # what to say when the deadline passes; "": nothing came, close in silence
        self._in_head, self._whole, self._gone = False, True, False
        self._busy = False  # a request is with the application
        self._bytes = self._head_bytes = self._held = 0
        self._start: Callable[[], None] | None = None  # hands the request over, once it is whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place; beyond the limit, that of the connection that has been without a request for longest."""
        super().connection_made(transport)  # type: ignore[arg-type]
        gate = self._gate
        gate.open += 1
        if gate.open > self._limits.max_connections:
            (next(iter(gate.idle), self)).refuse(503, "connections", "too many connections; try again", now=True)
        self._idle(self._limits.keep_alive_s, "")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._leave()
        if self._deadline is not None:
            self._deadline.cancel()
        self._unset_keepalive_if_required()
        self._start = None
        self._release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, count, and refuse what is too long."""
        if self.transport.is_closing():
            return
        self._bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._bytes > self._limits.max_head_bytes:
            self._refuse_head()
        elif not self._whole and self._bytes > SLACK * (self._limits.max_body_bytes + self._limits.max_head_bytes):
            self.refuse(400, "body_bytes", "the message is longer than any body that is taken", now=True)

    def on_message_begin(self) -> None:
        """The first bytes of a request: its head has a deadline."""
        super().on_message_begin()
        self._in_head, self._whole, self._head_bytes = True, False, 0
        self._arm(self._limits.head_s, "head_time")

    def on_url(self, url: bytes) -> None:
        """Count a part of the target."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; those behind a body are not kept."""
        self._head_bytes += len(name) + len(value) + 4
        if self._in_head and self._head_bytes <= self._limits.max_head_bytes:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: now the body has a deadline."""
        self._in_head = False
        if self.transport.is_closing():
            return
        if self._head_bytes > self._limits.max_head_bytes:
            self._refuse_head()
            return
        self._arm(self._limits.body_s, "body_time")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep the body, up to one byte more than is taken: the application refuses it by that."""
        cycle = self.cycle
        if self.transport.is_closing() or cycle is None or cycle.response_complete:
            return
        if cycle.waiting_for_100_continue:
            cycle.waiting_for_100_continue = False
        room = self._limits.max_body_bytes + 1 - len(cycle.body)
        if room <= 0:
            return
        if self._gate.held_bytes > HELD_BYTES:
            self.refuse(503, "held_bytes", "too much is being sent at once; try again", now=True)
            return
        cycle.body += body[:room]
        self._held += len(body[:room])
        self._gate.held_bytes += len(body[:room])
        if len(body) >= room:
            self._hand_over()

    def on_message_complete(self) -> None:
        """The request is whole: it is answered now, in its turn, or refused."""
        self._whole, self._bytes = True, 0
        if self.transport.is_closing() or self.cycle is None:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        super().on_message_complete()
        self._hand_over()
        if self.cycle.response_complete:
            self._idle(self._limits.keep_alive_s, "")

    def on_response_complete(self) -> None:
        """An answer is out: the next request, or the rest of this one, has its deadline."""
        self._release()
        self._busy = False
        super().on_response_complete()
        if self._busy or self._gone or self.transport.is_closing():
            return
        if self._whole:
            self._idle(self._limits.keep_alive_s, "")
        else:
            self._gate.idle[self] = None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if cycle.waiting_for_100_continue and cycle.more_body:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        self._start = partial(self._begin, cycle, app)
        if not cycle.more_body:
            self._hand_over()

    def _hand_over(self) -> None:
        start, self._start = self._start, None
        if start is not None:
            start()

    def _begin(self, cycle: Any, app: Any) -> None:
        """Hand a request to the application, or say that too many wait."""
        gate = self._gate
        self._busy, cycle.more_body = True, False
        cycle.message_event.set()
        gate.idle.pop(self, None)
        if cycle.scope["path"] in UNLIMITED:
            super()._start_asgi_task(cycle, app)
        elif gate.waiting >= self._limits.max_waiting:
            gate.refused("waiting")
            super()._start_asgi_task(cycle, _overloaded)
        else:
            gate.waiting += 1
            super()._start_asgi_task(cycle, partial(_counted, app, gate))

    def _idle(self, seconds: float, late: str) -> None:
        if self._gone:
            return
        self._gate.idle.pop(self, None)
        self._gate.idle[self] = None
        self._bytes = 0
        self._arm(seconds, late)

    def _arm(self, seconds: float, late: str) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._late = late
        self._deadline = self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        if not self._late or self._busy or self.transport.get_write_buffer_size():
            self.transport.abort()
            return
        what = "head" if self._late == "head_time" else "body"
        limit_s = self._limits.head_s if what == "head" else self._limits.body_s
        self.refuse(408, self._late, f"the {what} of the request took longer than {limit_s:g} s")

    def _refuse_head(self) -> None:
        self.refuse(431, "head_bytes", f"a head of more than {self._limits.max_head_bytes} bytes")

    def refuse(self, status: int, reason: str, message: str, *, now: bool = False) -> None:
        """Say why and close: when the answer is sent, or `now`, with what the socket takes at once."""
        self._gate.refused(reason)
        self._start = None
        if not self._busy:
            self.transport.write(_refusal(status, message))
        self.transport.close()
        if now or self.transport.get_write_buffer_size():
            self._leave()
            self.loop.call_later(RETRY_AFTER_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """As every refusal of the API."""
        self.refuse(400, "not_http", msg)

    def _leave(self) -> None:
        self._gate.idle.pop(self, None)
        if not self._gone:
            self._gone = True
            self._gate.open -= 1

    def _release(self) -> None:
        self._gate.held_bytes -= self._held
        self._held = 0


def protocol_of(gate: Gate) -> Any:
    """What `uvicorn.Config(http=…)` takes: a class that knows its gate."""

    class Protocol(BoundedProtocol):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, gate=gate, **more)

    return Protocol


async def _counted(app: Any, gate: Gate, scope: Any, receive: Any, send: Any) -> None:
    try:
        await app(scope, receive, send)
    finally:
        gate.waiting -= 1


async def _overloaded(scope: Any, receive: Any, send: Any) -> None:
    body = _error("too many requests are waiting; try again")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % RETRY_AFTER_S),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _error(message: str) -> bytes:
    return orjson.dumps({"error": {"path": "$", "message": message}})


def _refusal(status: int, message: str) -> bytes:
    body = _error(message)
    retry = b"retry-after: %d\r\n" % RETRY_AFTER_S if status == 503 else b""
    head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n"
    return head % (status, REASONS[status], len(body), retry) + body
