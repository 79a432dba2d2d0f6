"""The schedule of a replay: which record follows which, as a function of (data, seed, configuration) alone.

An impression is ingested a jitter below the disorder bound after its time; each clicked item becomes an engagement a
log-normal delay later (cut off at an hour), ingested after a jitter of its own. Rows are sorted by ingest time. Slot
u holds what is ingested in [u·T + bound, (u + 1)·T + bound) and ends with a heartbeat at its end, which moves the
watermark to (u + 1)·T and so closes tick u. A record is one slot of one partition, cut at `rows_per_record`.

`source` of a row is its place in the data, `source` of a record its place in the schedule, so that a replay resumes
after any record. Random numbers are hashes of (seed, source of the row): no order of generation can change them.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.config import ReplayConfig
from infra.ticks import Timeline
from stream.columns import I64, Lists
from stream.events import (
    EventColumns,
    ItemColumns,
    ItemKind,
    RecordMeta,
    encode_events,
    encode_items,
    encode_meta,
    engagements,
    heartbeats,
    impressions,
    item_heartbeats,
)
from stream.mind.news import NewsTable
from stream.mind.reader import ImpressionRows

MAX_DELAY_MS = 3_600_000
CHUNK_ROWS = 4_096  # parsed at a time
CHUNK_SLOTS = 1_024  # made into records at a time: bounds what a gap of empty slots holds in memory
ITEMS_PER_RECORD = 4_096
ITEMS_BEFORE_MS = 86_400_000  # the catalogue precedes the first event by this
_SOURCE_BITS = 16  # room for the items of a row, and for the cuts of a slot


class Scheduled(NamedTuple):
    """One record to append."""

    topic: str
    partition: int
    source: int
    timestamp_ms: int
    rows: int  # heartbeats not counted
    meta: bytes
    value: bytes


class Rows(Protocol):
    """What the schedule needs of `MindIndex`."""

    time_ms: I64

    def rows(self, lo: int, hi: int, *, partitions: int = 1) -> ImpressionRows: ...


class Schedule:
    """Records of `events` and `items` in the order in which a replay appends them."""

    def __init__(self, index: Rows, news: NewsTable, timeline: Timeline, config: ReplayConfig, partitions: int) -> None:
        self._index, self._news, self._timeline, self._config = index, news, timeline, config
        self._partitions = partitions
        self._bound = timeline.disorder_bound_ms
        self.first_ms, self.last_ms = int(index.time_ms[0]), int(index.time_ms[-1])
        self._first_slot = self._slot(self.first_ms)

    def records(self, done: Mapping[tuple[str, int], int] | None = None) -> Iterator[Scheduled]:
        """Every record whose `source` is above what is done in its (topic, partition)."""
        places = [("events", p) for p in range(self._partitions)] + [("items", 0)]
        after = {place: (done or {}).get(place, -1) for place in places}
        yield from self._catalogue(after["items", 0])
        slot = max(self._first_slot, min(after.values()) >> _SOURCE_BITS)
        for block, lo, hi, last in self._blocks(slot):
            yield from self._cut(block, lo, hi, last, after)

    def _slot(self, ingested_ms: int) -> int:
        return (ingested_ms - self._bound) // self._timeline.tick_ms

    def _slot_end_ms(self, slot: int) -> int:
        return (slot + 1) * self._timeline.tick_ms + self._bound

    def _catalogue(self, done: int) -> Iterator[Scheduled]:
        when = self.first_ms - ITEMS_BEFORE_MS
        for number, lo in enumerate(range(0, len(self._news), ITEMS_PER_RECORD)):
            if number > done:
                columns = _item_columns(self._news, lo, min(lo + ITEMS_PER_RECORD, len(self._news)), when)
                meta = encode_meta(RecordMeta(source=number))
                yield Scheduled("items", 0, number, when, len(columns), meta, encode_items(columns))

    def _blocks(self, slot: int) -> Iterator[tuple["_Block", int, int, bool]]:
        """(sorted rows of slots lo ≤ u < hi, lo, hi, whether they are the last), from `slot` on."""
        times, t = self._index.time_ms, self._timeline
        reach = MAX_DELAY_MS + self._bound
        at = int(np.searchsorted(times, min(slot * t.tick_ms, self.last_ms) - reach))
        pool, newest = _Block.empty(), 0
        while at < len(times):
            rows = self._index.rows(at, at + CHUNK_ROWS, partitions=self._partitions)
            fresh = _events_of(rows, at, self._config, self._bound)
            newest = max(newest, int(fresh.events.time_ms.max()))
            pool = _Block.concat([pool, fresh])
            at += len(rows)
            over = at >= len(times)
            stop = t.tick_of(newest) + t.attribution_ticks + 1 if over else self._slot(int(times[at]))
            while slot < stop:
                hi = min(stop, slot + CHUNK_SLOTS)
                slots = (pool.events.ingested_ms - self._bound) // t.tick_ms
                block = pool.take(np.flatnonzero((slots >= slot) & (slots < hi)))
                pool = pool.take(np.flatnonzero(slots >= hi))
                yield block, slot, hi, over and hi == stop
                slot = hi

    def _cut(
        self, block: "_Block", lo: int, hi: int, last: bool, after: Mapping[tuple[str, int], int]
    ) -> Iterator[Scheduled]:
        """Records of slots lo ≤ u < hi, heartbeats included; those done are left out."""
        slots = np.repeat(np.arange(lo, hi), self._partitions)
        beats = _Block(
            heartbeats((slots + 1) * self._timeline.tick_ms + self._bound),
            np.tile(np.arange(self._partitions), hi - lo),
        )
        own = (block.events.ingested_ms - self._bound) // self._timeline.tick_ms
        whole, slots = _Block.concat([block, beats]), np.concatenate([own, slots])
        order = np.lexsort((whole.events.source, whole.events.ingested_ms, whole.partition, slots))
        events, partition, slots = whole.events.take(order), whole.partition[order], slots[order]
        group = slots * self._partitions + partition
        starts = np.flatnonzero(np.diff(group, prepend=group[0] - 1)).tolist()
        for start, stop in zip(starts, [*starts[1:], len(group)], strict=True):
            slot, p = int(slots[start]), int(partition[start])
            if p == 0:
                yield from self._item_beat(slot, last and slot == hi - 1, after["items", 0])
            ends = last and slot == hi - 1
            yield from self._slot_records(events.slice(start, stop), slot, p, ends, after["events", p])

    def _slot_records(self, events: EventColumns, slot: int, p: int, ends: bool, done: int) -> Iterator[Scheduled]:
        size = self._config.rows_per_record
        for number, lo in enumerate(range(0, len(events), size)):
            source = slot << _SOURCE_BITS | number
            if source > done:
                over = lo + size >= len(events)
                cut = events.slice(lo, min(lo + size, len(events)))
                meta = encode_meta(RecordMeta(source=source, end=ends and over))
                when = int(cut.ingested_ms[-1])
                yield Scheduled("events", p, source, when, len(cut) - over, meta, encode_events(cut))

    def _item_beat(self, slot: int, ends: bool, done: int) -> Iterator[Scheduled]:
        source, when = slot << _SOURCE_BITS, self._slot_end_ms(slot)
        if source > done:
            value = encode_items(item_heartbeats(np.array([when], dtype=np.int64)))
            yield Scheduled("items", 0, source, when, 0, encode_meta(RecordMeta(source=source, end=ends)), value)


class _Block(NamedTuple):
    """Rows and the partition of each."""

    events: EventColumns
    partition: I64

    @classmethod
    def empty(cls) -> "_Block":
        return cls(heartbeats(np.empty(0, dtype=np.int64)), np.empty(0, dtype=np.int64))

    @classmethod
    def concat(cls, blocks: list["_Block"]) -> "_Block":
        events = EventColumns.concat([block.events for block in blocks])
        return cls(events, np.concatenate([block.partition for block in blocks]))

    def take(self, rows: I64) -> "_Block":
        return _Block(self.events.take(rows), self.partition[rows])


def _events_of(rows: ImpressionRows, first: int, config: ReplayConfig, bound_ms: int) -> _Block:
    """Impression rows and engagement rows of a window of the data that begins at row `first`."""
    n = len(rows)
    source = np.arange(first, first + n) << _SOURCE_BITS
    shown = impressions(
        ingested_ms=rows.time_ms + _jitter(config.seed, source, bound_ms),
        time_ms=rows.time_ms,
        impression=rows.impression,
        user=rows.user,
        history=rows.history,
        items=rows.items,
        source=source,
    )
    clicked = np.flatnonzero(rows.labels)
    row = np.searchsorted(rows.items.offsets, clicked, side="right") - 1
    origin = source[row] + 1 + clicked - rows.items.offsets[row]
    when = rows.time_ms[row] + _delay(config, origin)
    engaged = engagements(
        ingested_ms=when + _jitter(config.seed, origin, bound_ms),
        time_ms=when,
        impression=rows.impression[row],
        user=rows.user[row],
        item=rows.items.values[clicked],
        action=np.zeros(len(row), dtype=np.uint8),
        source=origin,
    )
    return _Block.concat([_Block(shown, rows.partition), _Block(engaged, rows.partition[row])])


def _uniform(seed: int, source: I64, stream: int) -> NDArray[np.float64]:
    """Uniform in (0, 1): splitmix64 (Steele, Lea, Flood 2014) of (seed, source, stream)."""
    with np.errstate(over="ignore"):
        x = source.astype(np.uint64) * np.uint64(4) + np.uint64(stream)
        x = (x + np.uint64(seed & (2**64 - 1)) * np.uint64(0xD1342543DE82EF95)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    unit: NDArray[np.float64] = ((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    return unit


def _jitter(seed: int, source: I64, bound_ms: int) -> I64:
    """Milliseconds from an event to its ingestion, below the disorder bound."""
    return (_uniform(seed, source, 0) * bound_ms).astype(np.int64)


def _delay(config: ReplayConfig, source: I64) -> I64:
    """Milliseconds from impression to engagement: log-normal by Box and Muller (1958), cut off at an hour."""
    radius = np.sqrt(-2.0 * np.log(_uniform(config.seed, source, 1)))
    normal = radius * np.cos(2.0 * np.pi * _uniform(config.seed, source, 2))
    delay_ms = 1000.0 * config.engagement_delay_median_s * np.exp(config.engagement_delay_sigma * normal)
    return np.minimum(delay_ms, MAX_DELAY_MS).astype(np.int64)


def _item_columns(news: NewsTable, lo: int, hi: int, when: int) -> ItemColumns:
    n = hi - lo
    return ItemColumns(
        kind=np.full(n, ItemKind.ITEM, dtype=np.uint8),
        ingested_ms=np.full(n, when, dtype=np.int64),
        item=news.item[lo:hi],
        category=news.category[lo:hi],
        subcategory=news.subcategory[lo:hi],
        published_ms=np.full(n, -1, dtype=np.int64),
        words=Lists(news.words.offsets, news.words.values).slice(lo, hi),
        item_id=news.item_id[lo:hi],
        category_name=news.category_name[lo:hi],
        subcategory_name=news.subcategory_name[lo:hi],
        title=news.title[lo:hi],
    )
