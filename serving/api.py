"""The HTTP API: rank, post events, health, readiness, metrics.

    POST /v1/rank     {"user", "items", "history"?}  -> items in order with scores, version, age
    POST /v1/events   {"events": [impression | engagement, …]}  -> what becomes of each; durable when answered
    GET  /healthz     the process is alive     GET /readyz   200, or 503 and why     GET /metrics   Prometheus text

A refusal is JSON: {"error": {"path": "$.items[3]", "message": …}}. Ranking takes well under a millisecond, so it runs
in the event loop: a thread pool would cost more than it gives. There are no tokens yet, therefore only loopback
addresses may be bound, only loopback names are answered (a page in a browser cannot rebind its name to us), and bodies
must say that they are JSON (a page cannot post them without asking first).
"""

import asyncio
import ipaddress
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.config import ServeConfig, WireConfig
from infra.errors import ConfigError, RetryableError
from infra.metrics import Metrics
from infra.ticks import Timeline
from serving.clock import EventClock
from serving.fates import Expected, explain
from serving.feedback import Feedback, Receipt
from serving.follower import Follower
from serving.requests import BadRequestError, parse_events, parse_rank
from serving.scorer import Scorer

JSON = "application/json"
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
ROUTES = ("/v1/rank", "/v1/events", "/healthz", "/readyz", "/metrics")


@dataclass(frozen=True, slots=True)
class Services:
    """What the handlers stand on; wired by `serving.commands.serve`."""

    follower: Follower
    scorer: Scorer
    feedback: Feedback
    clock: EventClock
    timeline: Timeline
    metrics: Metrics
    limits: ServeConfig
    wire: WireConfig


def check_host(host: str) -> str:
    """The host, if it is a loopback address. Raises ConfigError for any other: TLS and tokens come first."""
    if host == "localhost":
        return host
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConfigError(
            f"serve.host is {host!r}: without TLS and tokens the API binds loopback addresses only, such as "
            f"127.0.0.1; put a proxy that has both in front of it"
        )
    return host


def build_app(services: Services) -> Starlette:
    """The ASGI application."""
    app = Starlette(
        routes=[
            Route("/v1/rank", _Rank(services), methods=["POST"]),
            Route("/v1/events", _Events(services), methods=["POST"]),
            Route("/healthz", _healthz, methods=["GET"]),
            Route("/readyz", _Ready(services), methods=["GET"]),
            Route("/metrics", _MetricsPage(services), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _refuse},
    )
    app.add_middleware(_Guard, metrics=services.metrics)
    return app


class _Rank:
    def __init__(self, services: Services) -> None:
        self._s = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(self._rank, scope, receive, send, self._s.limits)

    async def _rank(self, body: bytes) -> Response:
        s = self._s
        asked = parse_rank(body, s.limits)
        view = s.follower.view()
        if view is None:
            return _unavailable(s.follower.readiness().reason, after_s=1.0)
        now_ms = s.clock.now_ms()
        ranking = s.scorer.rank(view, user=asked.user, items=asked.items, history=asked.history, time_ms=now_ms)
        scores = ranking.probability.tolist()
        through = max(s.follower.replica.through, view.version.tick)
        return _json(
            {
                "items": [{"id": asked.item_ids[i], "score": scores[i]} for i in ranking.order.tolist()],
                "version": {"generation": view.version.generation, "tick": view.version.tick},
                "age_s": max(0.0, (now_ms - s.timeline.end_ms(through)) / 1000),
            }
        )


class _Events:
    def __init__(self, services: Services) -> None:
        self._s = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(self._post, scope, receive, send, self._s.limits)

    async def _post(self, body: bytes) -> Response:
        if not self._s.follower.takes_posts.is_set():
            return _unavailable("warming up", after_s=1.0)
        posts = parse_events(body, self._s.wire)
        try:
            receipt = await asyncio.wrap_future(self._s.feedback.submit(posts))
        except RetryableError as error:
            return _unavailable(str(error), after_s=error.after_s)
        return _json(_told(receipt, self._s.timeline.skew_ms))


def _told(receipt: Receipt, skew_ms: int) -> dict[str, object]:
    """The answer to a post: how many events are accepted, unknown and certain to be dropped, and which."""
    events: list[dict[str, str]] = []
    for fate, time_ms in zip(receipt.fates, receipt.times_ms, strict=True):
        message = explain(fate, time_ms, receipt.ingested_ms, skew_ms)
        events.append({"outcome": fate.value} | ({"message": message} if message else {}))
    accepted, unknown = receipt.fates.count(Expected.ACCEPTED), receipt.fates.count(Expected.UNKNOWN)
    return {
        "accepted": accepted,
        "unknown": unknown,
        "dropped": len(events) - accepted - unknown,
        "time_ms": receipt.ingested_ms,
        "events": events,
    }


class _Ready:
    def __init__(self, services: Services) -> None:
        self._s = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._s.follower.readiness()
        version = self._s.follower.replica.version
        content = {
            "ready": state.ready,
            "reason": state.reason,
            "degraded": list(state.degraded),
            "lag_ticks": state.lag_ticks,
            "version": None if version is None else {"generation": version.generation, "tick": version.tick},
        }
        await _json(content, status=200 if state.ready else 503)(scope, receive, send)


class _MetricsPage:
    def __init__(self, services: Services) -> None:
        self._s = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = Response(self._s.metrics.render(), media_type="text/plain; version=0.0.4")
        await page(scope, receive, send)


async def _healthz(request: Request) -> Response:
    return _json({"alive": True})


def _refuse(request: Request, error: Exception) -> Response:
    """What no route takes: another path, another method."""
    assert isinstance(error, HTTPException)
    return _error(error.status_code, "$", f"{error.detail}; here are {', '.join(ROUTES)}")


async def _answer(
    handler: Callable[[bytes], Awaitable[Response]], scope: Scope, receive: Receive, send: Send, limits: ServeConfig
) -> None:
    request = Request(scope, receive)
    try:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            response = _error(415, "$", f"say `content-type: {JSON}`")
        else:
            response = await handler(await _body(request, limits.max_body_bytes))
    except BadRequestError as error:
        response = _error(400, error.path, str(error))
    except _TooLargeError as error:
        response = _error(413, "$", str(error))
    except ClientDisconnect:
        return
    await response(scope, receive, send)


class _TooLargeError(Exception):
    pass


async def _body(request: Request, limit: int) -> bytes:
    """The body, never more than `limit` bytes of it in memory."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _TooLargeError(f"a body of more than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _json(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status_code=status, media_type=JSON, headers=headers)


def _error(status: int, path: str, message: str) -> Response:
    return _json({"error": {"path": path, "message": message}}, status=status)


def _unavailable(message: str, *, after_s: float) -> Response:
    retry = {"Retry-After": str(max(1, math.ceil(after_s)))}
    return _json({"error": {"path": "$", "message": message}}, status=503, headers=retry)


class _Guard:
    """Counts every request by route and status, times it, and refuses hosts that are not this machine."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        route = scope["path"] if scope["path"] in ROUTES else "other"

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if _is_local(scope):
                await self._app(scope, receive, noting)
            else:
                await _error(421, "$", "this API answers to loopback names only")(scope, receive, noting)
        finally:
            self._metrics.add("ouzel_requests_total", route=route, status=str(status))
            self._metrics.observe("ouzel_request_seconds", time.perf_counter() - started, route=route)


def _is_local(scope: Scope) -> bool:
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        return False
    name = hosts[0] if hosts[0].endswith("]") else hosts[0].rpartition(":")[0] or hosts[0]
    return name in LOCAL_NAMES or (name.startswith("127.") and name.replace(".", "").isdigit())
