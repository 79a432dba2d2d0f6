"""Compiles and loads everything that a request can reach, before the replica says that it is ready.

A kernel's first use takes up to a second where no cache holds it, and some milliseconds where one does; in the event
loop everybody would wait for it. So one post and one ranking of every shape go through the same functions here, in
the follower's thread. What they make is thrown away: nothing is appended, no table is touched.
"""

import numpy as np
import orjson

from infra.config import ModelConfig, Precision, WireConfig
from infra.ticks import Timeline
from serving.model import ServedModel, View
from serving.requests import columns_by_partition, parse_events
from serving.scorer import Scorer
from stream.events import encode_events, encode_items, heartbeats, item_heartbeats
from stream.features.counter_rows import CounterRows
from stream.features.counters import CounterDelta

ITEMS = (1, 2, 8)
KEYS = 200  # more than the smallest tables hold: growth is compiled as well
_POST = orjson.dumps(
    {
        "events": [
            {"type": "impression", "id": "a", "user": "u", "items": ["x", "é"], "history": ["y"], "time_ms": 10**12},
            {"type": "impression", "id": "b", "user": "v", "items": ["x"], "time": "2019-11-09T00:00:00Z"},
            {"type": "engagement", "impression": "a", "user": "u", "item": "x", "kind": "click"},
        ]
    }
)


def warm_posts(wire: WireConfig, partitions: int) -> None:
    """Whatever POST /v1/events and the heartbeats of the clock run through, but for the append."""
    for rows in columns_by_partition([parse_events(_POST, wire)], partitions, now_ms=10**12).values():
        encode_events(rows)
    stamp = np.array([10**12], np.int64)
    encode_events(heartbeats(stamp))
    encode_items(item_heartbeats(stamp))


def warm_versions(model: ModelConfig, timeline: Timeline, precision: Precision) -> None:
    """Whatever a replica runs through when it takes a version: rows that come and go, counters, growing tables."""
    keys = np.arange(KEYS, dtype=np.int64)
    ticks = np.ones(KEYS, np.int32)
    rows = CounterRows(keys, np.zeros((KEYS, 4), np.float32), ticks, ticks)
    for last in (0, KEYS):  # into empty tables, then over what is there
        served = ServedModel(model, timeline, precision=precision)
        tensors = CounterDelta(1, rows, rows).tensors()
        for name, table in served.tables.items():
            tensors[f"slot/{name}/keys"] = keys
            tensors[f"slot/{name}/values"] = np.zeros((KEYS, table.dim), np.float32)
            tensors[f"slot/{name}/tombstones"] = keys[:last]
        served.apply(tensors)
        served.apply(tensors)


def warm_ranking(scorer: Scorer, view: View, now_ms: int) -> None:
    """Whatever POST /v1/rank runs through: known and unknown items, with a history and without one."""
    known = view.catalogue.index.keys[: min(1, view.catalogue.index.n)]
    for n in ITEMS:
        items = np.unique(np.concatenate([known, np.arange(1, n + 1, dtype=np.int64)]))
        for history in (np.empty(0, np.int64), items):
            scorer.rank(view, user=0, items=items, history=history, time_ms=now_ms)
