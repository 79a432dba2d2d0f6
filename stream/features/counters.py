"""Decayed counters of what was shown and clicked, per item and per category, as they stood at a tick.

    key i64 | shown_fast clicked_fast shown_slow clicked_slow  f32 | last_tick i32 | first_tick i32

A row holds its values as of `last_tick`; whoever reads says the tick to which they are decayed. Counters are a pure
function of examples in tick order: within a tick they add whole numbers, so the order there does not matter. Updates
belong to the tick in which an impression closes; a state never answers for a tick before its newest update
(ValueError), which is what makes a counter read too late an error and not a better score.
Rows are upserts: applying a delta twice equals applying it once.

Learning tick c reads the state through live(c - a). `LaggedCounters` keeps both states, the newest and the one
behind, and between them the deltas of at most a + k ticks (`Timeline.lag_ticks`).
"""

import hashlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.config import ModelConfig
from infra.ticks import Timeline
from stream.features.catalogue import Catalogue
from stream.features.counter_kernels import Floats, powers, read_rows, roll_up, tally, update_rows
from stream.features.counter_rows import COLUMNS, NAMESPACES, CounterDelta, CounterRows, CounterTable, Tensors
from stream.features.keys import own


class CounterState:
    """Both namespaces after the ticks through `tick`: what a replica serves from and a trainer adds to."""

    __slots__ = ("category", "half_lives_ms", "item", "powers", "tick", "tick_ms")

    def __init__(self, half_lives_ms: tuple[int, int], tick_ms: int) -> None:
        self.half_lives_ms, self.tick_ms = half_lives_ms, tick_ms
        self.powers = powers(half_lives_ms, tick_ms)
        self.item, self.category = CounterTable(), CounterTable()
        self.tick = -1  # newest update; a read must not be older

    @staticmethod
    def build(model: ModelConfig, timeline: Timeline) -> "CounterState":
        """An empty state of this configuration."""
        fast_s, slow_s = model.counter_half_life_s
        return CounterState((fast_s * 1000, slow_s * 1000), timeline.tick_ms)

    def table(self, namespace: str) -> CounterTable:
        return self.item if namespace == "item" else self.category

    def update(
        self,
        namespace: str,
        tick: int,
        keys: NDArray[np.int64],
        shown: NDArray[np.int64],
        clicked: NDArray[np.int64],
    ) -> CounterRows:
        """Add counts (n,) of distinct keys (n,) in `tick`; the rows as they are now."""
        if tick < self.tick:
            raise ValueError(f"counters are at tick {self.tick} and cannot learn tick {tick}")
        self.tick = tick
        table = self.table(namespace)
        table.reserve(len(keys))
        n, values, last, first = update_rows(tick, keys, shown, clicked, table.index.n, *table.columns, self.powers)
        table.index.n = n
        return CounterRows(keys, values, last, first)

    def learn(
        self, tick: int, items: NDArray[np.int64], labels: NDArray[np.uint8], catalogue: Catalogue
    ) -> CounterDelta:
        """Count what closes in `tick`: items (n,) shown, labels (n,) as outcomes; all of the tick at once."""
        keys, shown, clicked = tally(own(items), own(labels, np.uint8))
        item = self.update("item", tick, keys, shown, clicked)
        categories = catalogue.categories(keys, tick)
        return CounterDelta(tick, item, self.update("category", tick, *roll_up(categories, shown, clicked)))

    def apply(self, delta: CounterDelta) -> None:
        """Upsert the rows of a delta (also of one that merges several ticks)."""
        self.item.apply(delta.item)
        self.category.apply(delta.category)
        self.tick = max(self.tick, delta.tick)

    def read(self, namespace: str, keys: NDArray[np.int64], tick: int) -> tuple[Floats, NDArray[np.int32]]:
        """Values (n, 4) decayed to `tick` and first_tick (n,), -1 where never shown. Never inserts.

        Raises ValueError for a tick before the newest update: the past is not here any more.
        """
        self.check(tick)
        out, first = read_rows(own(keys), tick, *self.table(namespace).columns, self.powers)
        return out, first

    def check(self, tick: int) -> None:
        """ValueError where the state already holds updates that nobody could have seen at `tick`."""
        if tick < self.tick:
            raise ValueError(f"counters hold tick {self.tick}; reading them as of tick {tick} would leak labels")

    def export(self, prefix: str = "counters") -> Tensors:
        """Named tensors, rows sorted by key."""
        return CounterDelta(self.tick, self.item.export(), self.category.export()).tensors(prefix)

    def digest(self) -> bytes:
        """16 bytes over all rows sorted by (namespace, key): equal counters, equal digest."""
        h = hashlib.blake2b(digest_size=16)
        for name, array in self.export().items():
            h.update(name.encode() + b"\0")
            h.update(np.ascontiguousarray(array).data)
        return h.digest()

    def copy(self) -> "CounterState":
        """An independent state with equal rows."""
        twin = CounterState(self.half_lives_ms, self.tick_ms)
        twin.item, twin.category, twin.tick = self.item.copy(), self.category.copy(), self.tick
        return twin


class LaggedCounters:
    """The newest counters, and those as of live(c - a) for whoever learns tick c.

    Order for each tick: `as_shown(c)` any number of times, then `learn(c)` once. Ticks without examples may be
    left out; ticks never go back.
    """

    def __init__(self, newest: CounterState, timeline: Timeline) -> None:
        if len(newest.item) or len(newest.category):
            raise ValueError("lagging counters start empty; restore() continues a snapshot")
        self.timeline = timeline
        self.newest = newest
        self.lagged = newest.copy()
        self.lagged_tick = -1  # `lagged` holds every delta through this tick
        self.pending: deque[CounterDelta] = deque()

    @staticmethod
    def build(model: ModelConfig, timeline: Timeline) -> "LaggedCounters":
        return LaggedCounters(CounterState.build(model, timeline), timeline)

    def as_shown(self, close_tick: int) -> CounterState:
        """The state through live(close_tick - a): what every replica held when the impressions were shown.

        Read it decayed to that tick. It stays valid until the next call here or to `learn`.
        """
        return self._advance(self.timeline.live_at_close(close_tick))

    def _advance(self, tick: int) -> CounterState:
        if tick < self.lagged_tick:
            raise ValueError(f"lagging counters are at tick {self.lagged_tick} and cannot go back to tick {tick}")
        while self.pending and self.pending[0].tick <= tick:
            self.lagged.apply(self.pending.popleft())
        self.lagged_tick = tick
        return self.lagged

    def learn(
        self, close_tick: int, items: NDArray[np.int64], labels: NDArray[np.uint8], catalogue: Catalogue
    ) -> CounterDelta:
        """Count what closed in `close_tick`, once and whole; returns the delta to publish."""
        if close_tick <= self.newest.tick:
            raise ValueError(f"tick {close_tick} was counted already: counters are at tick {self.newest.tick}")
        delta = self.newest.learn(close_tick, items, labels, catalogue)
        if len(delta):
            self.pending.append(delta)
        # Nobody asks for an older state than the next tick's: this is what bounds `pending` to a + k deltas.
        self._advance(self.timeline.live_at_close(close_tick + 1))
        return delta

    def export(self) -> Tensors:
        """Both states and what lies between: counters/…, lagged/…, pending/… (there a row's tick is its last_tick)."""
        out = {**self.newest.export("counters"), **self.lagged.export("lagged")}
        out["lagged/tick"] = np.array([self.lagged_tick, self.newest.tick, self.lagged.tick], np.int64)
        for ns in NAMESPACES:
            parts: list[CounterRows] = [getattr(d, ns) for d in self.pending] or [CounterRows.empty()]
            for c in COLUMNS:
                out[f"pending/{ns}/{c}"] = np.concatenate([getattr(p, c) for p in parts])
        return out

    @staticmethod
    def restore(tensors: Mapping[str, NDArray[Any]], model: ModelConfig, timeline: Timeline) -> "LaggedCounters":
        """Continue, bit for bit, what was exported under the same configuration."""
        self = LaggedCounters.build(model, timeline)
        self.newest.apply(CounterDelta.from_tensors(tensors, "counters"))
        self.lagged.apply(CounterDelta.from_tensors(tensors, "lagged"))
        self.lagged_tick, self.newest.tick, self.lagged.tick = (int(t) for t in tensors["lagged/tick"])
        waiting = CounterDelta.from_tensors(tensors, "pending")
        ticks = np.unique(np.concatenate([waiting.item.last_tick, waiting.category.last_tick]))
        for tick in ticks.tolist():
            parts = (CounterRows(*(c[p.last_tick == tick] for c in p)) for p in (waiting.item, waiting.category))
            self.pending.append(CounterDelta(tick, *parts))
        return self

    def copy(self) -> "LaggedCounters":
        """An independent pair that continues from here."""
        twin = LaggedCounters(CounterState(self.newest.half_lives_ms, self.newest.tick_ms), self.timeline)
        twin.newest, twin.lagged = self.newest.copy(), self.lagged.copy()
        twin.lagged_tick, twin.pending = self.lagged_tick, deque(self.pending)
        return twin


__all__ = ["NAMESPACES", "CounterDelta", "CounterRows", "CounterState", "CounterTable", "LaggedCounters"]
