"""The same events in every format; and at least one malformed record or event of every kind."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from infra.config import WireConfig
from stream.events import ActionKind, encode_events
from stream.wire.dead import Reason
from tests.join import scenes

# Scenes have times around 1970, integer users, and no partitions: what their rows break is switched off.
WIRE = WireConfig(min_time_ms=0, any_partition=True)
NOW = 1_573_525_000_000  # a Tuesday in 2019, ms
FORMS = ("json", "msgpack")


def pack(event: Any, form: str) -> bytes:
    if form == "json":
        return json.dumps(event, ensure_ascii=False).encode()
    return msgspec.msgpack.encode(event)


def event_of(row: scenes.Row) -> dict[str, Any]:
    """A scene's row as another producer would send it; ids are integers, so that keys are the row's numbers."""
    times = {"time_ms": row.time_ms, "ingested_ms": row.ingested_ms}
    if row.kind == 2:
        return {"type": "heartbeat", "ingested_ms": row.ingested_ms}
    if row.kind == 1:
        names = {"impression": row.impression, "user": row.user, "item": row.item}
        return {"type": "engagement", **names, "kind": ActionKind(row.action).name.lower(), **times}
    lists = {"items": list(row.items), "history": list(row.items[:2])}
    return {"type": "impression", "id": row.impression, "user": row.user, **lists, **times}


def readable(log: Sequence[Sequence[scenes.Row]]) -> list[list[scenes.Row]]:
    """A scene without what no producer can say: unknown kinds and actions, repeated items, times that are none."""
    kept = [[_tidy(row) for row in record if row.kind < 3 and row.action < 4] for record in log]
    return [[row for row in rows if row.time_ms <= WIRE.max_time_ms and (row.kind or row.items)] for rows in kept]


def _tidy(row: scenes.Row) -> scenes.Row:
    if row.kind == 2:
        return scenes.Row(2, row.ingested_ms, row.ingested_ms)
    return row._replace(items=tuple(dict.fromkeys(row.items)))


def render(rows: Sequence[scenes.Row], form: str) -> bytes:
    """Rows as one record; a single row as a single event."""
    if form == "arrow":
        return encode_events(scenes.columns(list(rows)))
    events = [event_of(row) for row in rows]
    return pack(events[0] if len(events) == 1 else events, form)


def impression(**changes: Any) -> dict[str, Any]:
    event = {"type": "impression", "id": "i1", "user": "u1", "items": ["a", "b"], "history": ["c"], "time_ms": NOW}
    return {name: value for name, value in (event | changes).items() if value is not ...}


def engagement(**changes: Any) -> dict[str, Any]:
    event = {"type": "engagement", "impression": "i1", "user": "u1", "item": "a", "kind": "click", "time_ms": NOW}
    return {name: value for name, value in (event | changes).items() if value is not ...}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class Bad(NamedTuple):
    """An event that is dead, and why; `value` where no format-independent event says it."""

    reason: Reason
    event: Any = None
    json: bytes = b""
    msgpack: bytes = b""

    def raw(self, form: str) -> bytes:
        ready = self.json if form == "json" else self.msgpack
        return ready or (pack(self.event, form) if self.event is not None else b"")


MAP = msgspec.msgpack.encode({"type": "heartbeat"})
EVENTS = (  # each is dead as a single event, and alone in a batch
    Bad(Reason.TYPE, 3),
    Bad(Reason.TYPE, "click"),
    Bad(Reason.TYPE, [impression()]),
    Bad(Reason.TYPE, impression(id=1.5)),
    Bad(Reason.TYPE, impression(user=True)),
    Bad(Reason.TYPE, impression(user=None)),
    Bad(Reason.TYPE, impression(items="a")),
    Bad(Reason.TYPE, impression(items=["a", {}])),
    Bad(Reason.MISSING, {}),
    Bad(Reason.MISSING, impression(type=...)),
    Bad(Reason.MISSING, impression(id=...)),
    Bad(Reason.MISSING, engagement(user=...)),
    Bad(Reason.VALUE, impression(type="view")),
    Bad(Reason.VALUE, engagement(kind="purchase")),
    Bad(Reason.VALUE, impression(items=[])),
    Bad(Reason.VALUE, impression(items=["a", "b", "a"])),
    Bad(Reason.VALUE, impression(id=2**63)),
    Bad(Reason.VALUE, impression(**{f"extra{i}": i for i in range(80)})),
    Bad(Reason.VERSION, impression(v=2)),
    Bad(Reason.VERSION, engagement(v=0)),
    Bad(Reason.TIME, impression(time_ms=NOW // 1000)),
    Bad(Reason.TIME, impression(time_ms=NOW * 1000)),
    Bad(Reason.TIME, impression(time_ms=-5)),
    Bad(Reason.TIME, impression(time_ms="yesterday")),
    Bad(Reason.TIME, impression(time_ms=float(NOW) + 0.5)),
    Bad(Reason.TIME, impression(time_ms=..., time="12 Nov 2019")),
    Bad(Reason.TIME, impression(time_ms=..., time="2019-11-12T02:14:46")),
    Bad(Reason.TIME, impression(time="2019-11-12T02:14:46Z")),
    Bad(Reason.TIME, impression(ingested_ms=NOW + 3_600_000)),
    Bad(Reason.TIME, {"type": "heartbeat", "time_ms": NOW + 3_600_000}),
    Bad(Reason.TIME, {"type": "heartbeat", "time": "soon"}),
    Bad(Reason.ID_LENGTH, impression(id="x" * 129)),
    Bad(Reason.ID_LENGTH, impression(history=["ok", "ü" * 65])),
    Bad(Reason.EMPTY_ID, engagement(item="")),
    Bad(Reason.LIST_LENGTH, impression(items=[f"n{i}" for i in range(1_001)])),
    Bad(Reason.LIST_LENGTH, impression(history=[f"n{i}" for i in range(1_001)])),
    Bad(Reason.NESTING, impression(extra=nested(20))),
    Bad(
        Reason.DUPLICATE_FIELD,
        json=b'{"type": "engagement", "user": "u1", "user": "u2", "impression": "i1", "item": "a"}',
        msgpack=b"\x82" + MAP[1:] + MAP[1:],
    ),
    Bad(Reason.DUPLICATE_FIELD, json=b'{"type": "heartbeat", "ingested_ms": 1, "ingested_\\u006ds": 2}'),
    Bad(
        Reason.NOT_UTF8,
        json=b'{"type": "heartbeat", "note": "\xff\xfe"}',
        msgpack=pack(engagement(user="zz"), "msgpack").replace(b"zz", b"\xff\xfe"),
    ),
    Bad(Reason.TYPE, msgpack=pack(engagement(user=b"bytes"), "msgpack")),
    Bad(Reason.TIME, msgpack=pack(engagement(time_ms=float("nan")), "msgpack")),
)
RECORDS = (  # each is dead as a record
    (Reason.FORMAT, b""),
    (Reason.FORMAT, b"hello"),
    (Reason.FORMAT, b"\xef\xbb\xbf{}"),
    (Reason.FORMAT, b"\x00\x00\x00\x00\x07avro"),
    (Reason.FORMAT, b"\x1f\x8b\x08gzip"),
    (Reason.SYNTAX, b'{"type": "heartbeat"'),
    (Reason.SYNTAX, b'{"type": "heartbeat"} {"type": "heartbeat"}'),
    (Reason.SYNTAX, b'[{"type": "heartbeat"}, {"type": }]'),
    (Reason.SYNTAX, b'{"type": "heartbeat", "x": NaN}'),
    (Reason.SYNTAX, b'{"type": "heartbeat", "x": "\\ud800"}'),
    (Reason.SYNTAX, b"  "),
    (Reason.SYNTAX, MAP[:-3]),
    (Reason.SYNTAX, MAP + b"\x00"),
    (Reason.SYNTAX, b"\xdd\xff\xff\xff\xff"),
    (Reason.SYNTAX, b"\xdf\xff\xff\xff\xff\xa1a"),
    (Reason.SYNTAX, b"\x81\xc1\x01"),
    (Reason.SYNTAX, b"\xff\xff\xff\xff no arrow"),
    (Reason.NESTING, b"[" * 5_000),
    (Reason.NESTING, b"\x91" * 5_000 + b"\x01"),
    (Reason.TOO_LARGE, pack(impression(note="x" * (1 << 20)), "json")),
    (Reason.TOO_LARGE, pack([{"type": "heartbeat"}] * 10_001, "msgpack")),
)


def some_impressions(n: int, *, seed: int = 1, first: int = 0) -> list[dict[str, Any]]:
    """Impressions of 8 items, a tenth with one engagement each behind it, 100 ms apart; ids are strings."""
    rng = np.random.default_rng(seed)
    events: list[dict[str, Any]] = []
    while len(events) < n:
        at, user = NOW + 100 * (first + len(events)), f"u{rng.integers(50)}"
        items = [f"N{k}" for k in rng.choice(1_000, size=8, replace=False)]
        events.append(impression(id=f"i{first + len(events)}", user=user, items=items, history=items[:3], time_ms=at))
        if rng.random() < 0.5:
            click = engagement(impression=events[-1]["id"], user=user, item=items[0], time_ms=at + 50)
            events.append(click)
    return events[:n]
