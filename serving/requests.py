"""What clients post, checked: JSON in, keys and columns out; every refusal names the path of what is wrong.

Events are those of `stream.wire`, by its schema, its rules and its limits (`wire.*`); a post is stricter where it can
answer: unknown fields are refused, ids are strings, and when an event was ingested is the server's to say. Every list,
text and number has a limit. Ids become 64-bit keys at once: nothing later sees a client's text, except to give it back.
"""

from dataclasses import replace
from typing import Annotated, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from infra.config import ServeConfig, WireConfig
from infra.hashing import hash64, partition_of
from stream.events import EventColumns
from stream.wire.dead import Fault
from stream.wire.formats import Form
from stream.wire.limits import Rules
from stream.wire.parse import Parser
from stream.wire.rows import Stamped, event_rows
from stream.wire.schema import Engagement, Impression

MAX_EVENTS = 1_000  # events of one post

Id = Annotated[str, msgspec.Meta(min_length=1)]


class BadRequestError(Exception):
    """The client's mistake: `path` says where in the body, the message what."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


class RankBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/rank."""

    user: Id
    items: list[Id]
    history: list[Id] = []


class PostedImpression(Impression, forbid_unknown_fields=True, tag_field="type", tag="impression"):
    """As on the wire, without fields that nobody knows; the time defaults to now."""


class PostedEngagement(Engagement, forbid_unknown_fields=True, tag_field="type", tag="engagement"):
    """As on the wire, without fields that nobody knows; the time defaults to now."""


Posted: TypeAlias = PostedImpression | PostedEngagement


class EventsBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/events."""

    events: msgspec.Raw


class RankRequest(NamedTuple):
    user: int
    item_ids: list[str]
    items: NDArray[np.int64]
    history: NDArray[np.int64]


class PostedEvents:
    """Events of one post, in its order, not yet stamped: `len` is their number."""

    def __init__(self, rows: EventColumns, users: list[str], timed: NDArray[np.bool_]) -> None:
        """`users`: whose each event is (n,). `timed`: which events say their time (n,)."""
        self._rows, self._timed = rows, timed
        self._users = users

    def __len__(self) -> int:
        return len(self._rows)

    def stamped(self, partitions: int, now_ms: int) -> dict[int, EventColumns]:
        """The rows of each partition, in posting order, ingested now."""
        rows, homes = self.rows_at(now_ms), self.homes(partitions)
        return {int(p): rows.take(np.flatnonzero(homes == p)) for p in np.unique(homes)}

    def rows_at(self, now_ms: int) -> EventColumns:
        """The rows in posting order, ingested now."""
        now = np.full(len(self), now_ms, dtype=np.int64)
        return replace(self._rows, ingested_ms=now, time_ms=np.where(self._timed, self._rows.time_ms, now))

    def homes(self, partitions: int) -> NDArray[np.int64]:
        """The partition of each event (n,): its user's."""
        return np.array([partition_of(user, partitions) for user in self._users], dtype=np.int64)


T = TypeVar("T")
_RANK = msgspec.json.Decoder(RankBody)
_EVENTS = msgspec.json.Decoder(EventsBody)
_POSTED: Parser[Posted] = Parser(Posted, Form.JSON)


def parse_rank(body: bytes, limits: ServeConfig) -> RankRequest:
    """Raises BadRequestError."""
    asked = _decode(_RANK, body)
    _check_ids([asked.user], "$.user", limits, single=True)
    _check_list(asked.items, "$.items", limits, may_be_empty=False, distinct=True)
    _check_list(asked.history, "$.history", limits)
    return RankRequest(hash64(asked.user), asked.items, _keys(asked.items), _keys(asked.history))


def parse_events(body: bytes, wire: WireConfig) -> PostedEvents:
    """Raises BadRequestError: all events of a post are taken, or none."""
    raw = bytes(_decode(_EVENTS, body).events)
    if not raw.startswith(b"["):
        raise BadRequestError("$.events", "Expected `array` of events")
    parsed = _POSTED.records([raw], wire)[0]
    if parsed.whole:
        raise _refusal("$.events", parsed.events[0])
    if not 1 <= len(parsed.events) <= MAX_EVENTS:
        raise BadRequestError("$.events", f"{len(parsed.events)} events; a post takes 1 to {MAX_EVENTS}")
    events = [_alive(event, f"$.events[{i}]") for i, event in enumerate(parsed.events)]
    unstamped = max(wire.min_time_ms, 0)
    rows, faults = event_rows([Stamped(event, unstamped, unstamped) for event in events], Rules(wire, 0))
    for i, fault in sorted(faults.items()):
        raise _refusal(f"$.events[{i}]", fault)
    timed = np.array([event.time_ms is not None or event.time is not None for event in events], dtype=np.bool_)
    return PostedEvents(rows, [str(event.user) for event in events], timed)


def columns_by_partition(posts: list[PostedEvents], partitions: int, now_ms: int) -> dict[int, EventColumns]:
    """The rows of each partition, in posting order, stamped with the time of their arrival."""
    rows: dict[int, list[EventColumns]] = {}
    for post in posts:
        for partition, part in post.stamped(partitions, now_ms).items():
            rows.setdefault(partition, []).append(part)
    return {partition: EventColumns.concat(parts) for partition, parts in sorted(rows.items())}


def _alive(event: Posted | Fault, path: str) -> Posted:
    """An event that a client may post. Raises BadRequestError."""
    if isinstance(event, Fault):
        raise _refusal(path, event)
    if event.ingested_ms is not None:
        raise BadRequestError(f"{path}.ingested_ms", "the server says when a post was ingested; leave it out")
    for name in ("id", "impression", "user", "item"):
        if isinstance(getattr(event, name, ""), int):
            raise BadRequestError(f"{path}.{name}", 'Expected `str`, got `int`: 7 and "7" would be two ids')
    for name in ("items", "history"):
        for j, one in enumerate(getattr(event, name, ())):
            if isinstance(one, int):
                raise BadRequestError(f"{path}.{name}[{j}]", 'Expected `str`, got `int`: 7 and "7" would be two ids')
    return event


def _refusal(path: str, fault: Fault | Posted) -> BadRequestError:
    """What the wire says of an event, with its path in the body."""
    assert isinstance(fault, Fault)
    message, _, inner = fault.detail.partition(" - at `$")
    return BadRequestError(path + inner.rstrip("`"), message)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        raise BadRequestError(path.rstrip("`") or "$", message) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError("$", f"the body is not JSON: {error}") from error


def _check_list(
    ids: list[str], path: str, limits: ServeConfig, *, may_be_empty: bool = True, distinct: bool = False
) -> None:
    if len(ids) > limits.max_candidates:
        raise BadRequestError(path, f"{len(ids)} ids; at most {limits.max_candidates}")
    if not ids and not may_be_empty:
        raise BadRequestError(path, "empty; name at least one item")
    _check_ids(ids, path, limits)
    if distinct and len(set(ids)) != len(ids):
        at = next(i for i, item in enumerate(ids) if item in ids[:i])
        raise BadRequestError(f"{path}[{at}]", f"repeats {path}[{ids.index(ids[at])}]")


def _check_ids(ids: list[str], path: str, limits: ServeConfig, *, single: bool = False) -> None:
    for i, text in enumerate(ids):
        if len(text) > limits.max_id_chars:
            where = path if single else f"{path}[{i}]"
            raise BadRequestError(where, f"an id of {len(text)} characters; at most {limits.max_id_chars}")


def _keys(ids: list[str]) -> NDArray[np.int64]:
    return np.array([hash64(text) for text in ids], dtype=np.int64)
