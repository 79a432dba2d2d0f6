"""What clients post, checked: JSON in, keys and columns out; every refusal names the path of what is wrong.

Shapes are msgspec structs, unknown fields are refused, every list, text and number has a limit. Ids become 64-bit keys
at once: nothing later sees a client's text, except to give it back.
"""

from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from infra.config import ServeConfig
from infra.hashing import hash64, partition_of
from stream.columns import Lists
from stream.events import ActionKind, EventColumns, engagements, impressions

MAX_EVENTS = 1_000  # events of one post
MAX_TIME_MS = 1 << 50

Id = Annotated[str, msgspec.Meta(min_length=1)]
TimeMs = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)]
Action = Literal["click", "like", "share", "dwell"]
ACTIONS = {"click": ActionKind.CLICK, "like": ActionKind.LIKE, "share": ActionKind.SHARE, "dwell": ActionKind.DWELL}


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


class ImpressionBody(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="impression"):
    """The client shows items to a user; `id` is the client's, unique; `time_ms` defaults to now."""

    id: Id
    user: Id
    items: list[Id]
    history: list[Id] = []
    time_ms: TimeMs | None = None


class EngagementBody(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="engagement"):
    """The user did something with an item of an impression."""

    impression: Id
    user: Id
    item: Id
    kind: Action = "click"
    time_ms: TimeMs | None = None


class EventsBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/events."""

    events: list[ImpressionBody | EngagementBody]


class RankRequest(NamedTuple):
    user: int
    item_ids: list[str]
    items: NDArray[np.int64]
    history: NDArray[np.int64]


class PostedEvents(NamedTuple):
    """Events of one post, in its order, not yet stamped: one entry an event."""

    events: list[ImpressionBody | EngagementBody]

    def __len__(self) -> int:
        return len(self.events)


T = TypeVar("T")
_RANK = msgspec.json.Decoder(RankBody)
_EVENTS = msgspec.json.Decoder(EventsBody)


def parse_rank(body: bytes, limits: ServeConfig) -> RankRequest:
    """Raises BadRequestError."""
    asked = _decode(_RANK, body)
    _check_ids([asked.user], "$.user", limits, single=True)
    _check_list(asked.items, "$.items", limits, may_be_empty=False, distinct=True)
    _check_list(asked.history, "$.history", limits)
    return RankRequest(hash64(asked.user), asked.items, _keys(asked.items), _keys(asked.history))


def parse_events(body: bytes, limits: ServeConfig) -> PostedEvents:
    """Raises BadRequestError: all events of a post are taken, or none."""
    asked = _decode(_EVENTS, body)
    if not 1 <= len(asked.events) <= MAX_EVENTS:
        raise BadRequestError("$.events", f"{len(asked.events)} events; a post takes 1 to {MAX_EVENTS}")
    for i, event in enumerate(asked.events):
        at = f"$.events[{i}]"
        _check_ids([event.user], f"{at}.user", limits, single=True)
        if isinstance(event, ImpressionBody):
            _check_ids([event.id], f"{at}.id", limits, single=True)
            _check_list(event.items, f"{at}.items", limits, may_be_empty=False, distinct=True)
            _check_list(event.history, f"{at}.history", limits)
        else:
            _check_ids([event.impression], f"{at}.impression", limits, single=True)
            _check_ids([event.item], f"{at}.item", limits, single=True)
    return PostedEvents(asked.events)


def columns_by_partition(posts: list[PostedEvents], partitions: int, now_ms: int) -> dict[int, EventColumns]:
    """The rows of each partition, in posting order, stamped with the time of their arrival."""
    rows: dict[int, list[EventColumns]] = {}
    for post in posts:
        for event in post.events:
            rows.setdefault(partition_of(event.user, partitions), []).append(_row(event, now_ms))
    return {partition: EventColumns.concat(parts) for partition, parts in sorted(rows.items())}


def _row(event: ImpressionBody | EngagementBody, now_ms: int) -> EventColumns:
    stamp = _one(now_ms)
    time_ms = _one(now_ms if event.time_ms is None else event.time_ms)
    user = _one(hash64(event.user))
    if isinstance(event, ImpressionBody):
        return impressions(
            ingested_ms=stamp,
            time_ms=time_ms,
            impression=_one(hash64(event.id)),
            user=user,
            history=Lists.of([_keys(event.history)]),
            items=Lists.of([_keys(event.items)]),
        )
    return engagements(
        ingested_ms=stamp,
        time_ms=time_ms,
        impression=_one(hash64(event.impression)),
        user=user,
        item=_one(hash64(event.item)),
        action=np.array([ACTIONS[event.kind]], dtype=np.uint8),
    )


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


def _one(value: int) -> NDArray[np.int64]:
    return np.array([value], dtype=np.int64)
