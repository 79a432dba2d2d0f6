"""Schema v1 of events and catalogue items as others send them; `infra/docs/events.md` is its manual.

One schema for every text-like format, and for what clients post. Unknown fields are ignored, so that a newer
producer is read; `v` says which rules an event was written by, and a version that this build does not know is a dead
letter, never a guess. An id is a string (its key is `hash64`) or an integer (which is its key): 42 and "42" differ.
"""

from datetime import datetime
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

VERSION = 1  # the newest version of the schema that this build reads
TIME_LIMIT = 2**52  # ms: what the join takes for a time at all; the configuration's limits lie inside

Id: TypeAlias = str | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Ms: TypeAlias = Annotated[int, Meta(ge=-TIME_LIMIT, le=TIME_LIMIT)]
Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]  # RFC 3339; in msgpack also its timestamp extension
Version: TypeAlias = Annotated[int, Meta(ge=1, le=VERSION)]
Action: TypeAlias = Literal["click", "like", "share", "dwell"]


class Impression(msgspec.Struct, tag_field="type", tag="impression", gc=False):
    """Items were shown to a user; `id` is the client's, and unique with `user`."""

    id: Id
    user: Id
    items: list[Id]
    history: list[Id] = []
    time_ms: Ms | None = None
    time: Moment | None = None
    ingested_ms: Ms | None = None
    v: Version = VERSION


class Engagement(msgspec.Struct, tag_field="type", tag="engagement", gc=False):
    """The user did something with an item of an impression."""

    impression: Id
    user: Id
    item: Id
    kind: Action = "click"
    time_ms: Ms | None = None
    time: Moment | None = None
    ingested_ms: Ms | None = None
    v: Version = VERSION


class Heartbeat(msgspec.Struct, tag_field="type", tag="heartbeat", gc=False):
    """Time has come this far in this partition, whether anything happened or not."""

    time_ms: Ms | None = None
    time: Moment | None = None
    ingested_ms: Ms | None = None
    v: Version = VERSION


class Item(msgspec.Struct, tag_field="type", tag="item", gc=False):
    """An item of the catalogue, whole: what is sent again replaces what was known."""

    id: Id
    category: str = ""
    subcategory: str = ""
    title: str = ""
    published_ms: Ms | None = None
    published: Moment | None = None
    ingested_ms: Ms | None = None
    v: Version = VERSION


Event: TypeAlias = Impression | Engagement | Heartbeat
CatalogueRow: TypeAlias = Item | Heartbeat
