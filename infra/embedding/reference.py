"""The readable reference: the same table over Python dicts. Slow, obvious, and the oracle in tests.

Nothing here is shared with the fast table but hashes and option arithmetic. An expired row is gone the moment the tick
moves, so there is nothing to sweep, and "absent whatever was swept" holds by construction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.embedding.base import ABSENT, Rows, as_keys, as_last_seen, as_occurrences, as_tick, digest_of
from infra.embedding.gather import checked_out
from infra.embedding.initial import initial_vectors, per_column
from infra.embedding.life.admission import QUARTERS, Geometry, Tensors, first_window, sketch_base
from infra.embedding.life.policy import NEVER, Counts, Memory, Policy, room_to_leave
from infra.embedding.slab import MAX_ROWS, reserve
from infra.errors import ConfigError

_WORD = (1 << 64) - 1


def _mix(x: int) -> int:
    """SplitMix64's finalizer, in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)


class DictSketch:
    """See `admission.Sketch`: cells in a dict {place: count}, a generation for each of two windows."""

    def __init__(self, policy: Policy, slot: str, seed: int) -> None:
        self._policy, self._base, self._shape = policy, sketch_base(slot, seed), Geometry.of(policy)
        self.clear()

    def clear(self) -> None:
        self._cells: dict[int, int] = {}
        self._touched: set[int] = set()
        self._window = first_window(self._policy)

    def _places(self, key: int, window: int) -> list[int]:
        h = _mix((key ^ self._base) & _WORD)
        generations, lines, width, _ = self._shape
        line, quarter = (h & 0xFFFFFFFF) * lines >> 32, width // QUARTERS
        first = (window % generations * lines + line) * width
        return [first + i * quarter + (h >> (32 + 4 * i)) % quarter for i in range(QUARTERS)]

    def _least(self, places: list[int]) -> int:
        return min(self._cells.get(place, 0) for place in places)

    def admit(self, keys: NDArray[np.int64], occurrences: NDArray[np.int64]) -> NDArray[np.bool_]:
        pairs = zip(keys.tolist(), occurrences.tolist(), strict=True)
        return np.array([self._admit_one(key, often) for key, often in pairs], np.bool_)

    def _admit_one(self, key: int, occurrences: int) -> bool:
        enough, places = self._policy.admit_after, self._places(key, self._window)
        count = min(self._least(places) + occurrences, enough)
        before = self._least(self._places(key, self._window - 1)) if self._policy.admit_window_ticks else 0
        for place in places:
            if self._cells.get(place, 0) < count:
                self._cells[place] = count
                self._touched.add(place)
        return count + before >= enough

    def advance(self, tick: int) -> None:
        if self._policy.admit_window_ticks:
            self._open(tick // self._policy.admit_window_ticks)

    def _open(self, window: int) -> None:
        if window <= self._window:
            return
        kept = {(window - 1) % 2} if window == self._window + 1 else set()
        size = self._shape.lines * self._shape.width
        self._cells = {place: count for place, count in self._cells.items() if place // size in kept}
        self._touched &= self._cells.keys()
        self._window = window

    def export(self) -> Tensors:
        return self._tensors(sorted(self._cells))

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        window = self._shape.window_of(tensors)
        self.clear()
        self._window = window
        self._set(tensors)

    def take_delta(self) -> Tensors:
        touched, self._touched = sorted(self._touched), set()
        return self._tensors(touched) if touched else {}

    def apply_delta(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        if tensors:
            self._open(self._shape.window_of(tensors))
            self._set(tensors)

    def copy(self) -> "DictSketch":
        twin = DictSketch.__new__(DictSketch)
        twin.__dict__.update(self.__dict__)
        twin._cells, twin._touched = dict(self._cells), set(self._touched)
        return twin

    def _tensors(self, places: list[int]) -> Tensors:
        counts = np.array([self._cells[place] for place in places], np.uint32)
        return {"sketch": self._shape.header(self._window), "cells": np.array(places, np.int64), "counts": counts}

    def _set(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._cells.update(zip(tensors["cells"].tolist(), tensors["counts"].tolist(), strict=True))


class DictTable:
    """See `base.Table` for every method's contract."""

    def __init__(
        self,
        *,
        slot: str,
        dim: int,
        state_dim: int = 1,
        seed: int = 0,
        init_scale: float | Sequence[float],
        state_init: float | Sequence[float] = 0.0,
        capacity_hint: int = 1024,
        max_rows: int = MAX_ROWS,
        index_seed: int = 0,
        policy: Policy | None = None,
        tombstones: bool = True,
    ) -> None:
        if dim < 1 or state_dim < 0 or max_rows < 1:
            raise ValueError(f"slot {slot!r}: dim {dim}, state_dim {state_dim}, max_rows {max_rows}")
        self.slot, self.dim, self.state_dim, self.policy = slot, dim, state_dim, policy or Policy()
        self._seed, self._init_scale = seed, per_column(init_scale, dim, f"init_scale of slot {slot!r}").tolist()
        self._state_init = per_column(state_init, state_dim, f"state_init of slot {slot!r}")
        self._max_rows, self._keeps_tombstones = max_rows, tombstones
        self._rows: dict[int, int] = {}
        self._frequency: dict[int, int] = {}
        self._free: list[int] = []
        self._high = 0
        self._gone: set[int] = set()
        self.values: NDArray[np.float32] = reserve((max_rows, dim), np.float32)
        self.state: NDArray[np.float32] = reserve((max_rows, state_dim), np.float32)
        self.last_seen: NDArray[np.int32] = reserve((max_rows if self.policy.loses_rows else 0,), np.int32)
        self.row_limit = self.policy.row_limit(dim, state_dim, max_rows)
        self.admission = DictSketch(self.policy, slot, seed) if self.policy.counts else None
        self.counts = Counts()
        self.tick = NEVER

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        return np.array([self._rows.get(key, ABSENT) for key in as_keys(keys).tolist()], np.int32)

    def assign(
        self, keys: NDArray[np.int64], tick: int, occurrences: NDArray[np.int64] | None = None
    ) -> NDArray[np.int32]:
        keys = as_keys(keys)
        often: dict[int, int] = {}
        for key, n in zip(keys.tolist(), as_occurrences(occurrences, len(keys)).tolist(), strict=True):
            often[key] = often.get(key, 0) + n
        if as_tick(tick) > self.tick:
            self.advance(tick)
        wanted = [key for key in often if key not in self._rows]
        admitted = [key for key in wanted if self._admits(key, often[key], tick)]
        self.counts.rejected += sum(often[key] for key in wanted) - sum(often[key] for key in admitted)
        if self.policy.byte_budget:
            admitted = self._make_way(admitted, often)
        for key in often.keys() & self._rows.keys():
            if len(self.last_seen):
                self.last_seen[self._rows[key]] = max(int(self.last_seen[self._rows[key]]), tick)
            self._frequency[key] = min(self._frequency[key] + often[key], 2**32 - 1)
        for key in admitted:
            self._insert(key, tick)
            self._frequency[key] = min(often[key], 2**32 - 1)
            self.counts.inserted += 1
        rows = self.find(keys)
        self._expire()
        return rows

    def _admits(self, key: int, occurrences: int, tick: int) -> bool:
        if self.admission is not None:
            return bool(self.admission.admit(np.array([key], np.int64), np.array([occurrences], np.int64))[0])
        if self.policy.admits_all:
            return True
        u = _mix((_mix((key ^ sketch_base(self.slot, self._seed)) & _WORD) + tick) & _WORD) >> 11
        chance_not, factor = 1.0, 1.0 - self.policy.admit_probability
        while occurrences:
            chance_not *= factor if occurrences & 1 else 1.0
            factor *= factor
            occurrences >>= 1
        return u < (1.0 - chance_not) * 2.0**53

    def _make_way(self, new: list[int], called: dict[int, int]) -> list[int]:
        """Evict for the new keys; those of them that fit."""
        others = sorted(self._rows.keys() - called.keys(), key=self._score)
        protected = len(self._rows) - len(others)
        self._evict(others[: room_to_leave(self.row_limit, len(self._rows), len(new), protected)])
        fits = set(sorted(new)[: self.row_limit - len(self._rows)])
        self.counts.refused += sum(called[key] for key in new if key not in fits)
        return [key for key in new if key in fits]

    def _score(self, key: int) -> tuple[float, int]:
        row = self._rows[key]
        if self.policy.evict == "least-recent":
            return int(self.last_seen[row]), key
        if self.policy.evict == "least-frequent":
            return self._frequency[key], key
        norm = 0.0
        for x in self.values[row].tolist():
            norm += x * x
        return (-1.0 if norm != norm else norm), key

    def _evict(self, keys: list[int]) -> None:
        for key in keys:
            self._forget(key)
        self.counts.evicted += len(keys)

    def _insert(self, key: int, tick: int) -> None:
        if not self._free:
            if self._high == self._max_rows:
                raise self._full()
            self._free.append(self._high)
            self._high += 1
        row = self._rows[key] = self._free.pop()
        one = np.array([key], np.int64)
        self.values[row] = initial_vectors(one, self.slot, self._seed, self.dim, self._init_scale)[0]
        self.state[row] = self._state_init
        if len(self.last_seen):
            self.last_seen[row] = tick

    def _full(self) -> ConfigError:
        return ConfigError(
            f"table {self.slot!r} holds {len(self)} rows, its max_rows; raise max_rows or expire rows sooner"
        )

    def _forget(self, key: int) -> None:
        self._free.append(self._rows.pop(key))
        self._frequency.pop(key)
        if self._keeps_tombstones:
            self._gone.add(key)

    def _expire(self) -> None:
        if not self.policy.expiry_ticks:
            return
        horizon = self.policy.horizon(self.tick)
        expired = [key for key, row in self._rows.items() if self.last_seen[row] < horizon]
        for key in expired:
            self._forget(key)
        self.counts.expired += len(expired)

    def gather(self, rows: NDArray[np.int32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        result = checked_out(out, len(rows), self.dim)
        if len(rows) and (rows.min() < ABSENT or rows.max() >= self._high):
            raise ValueError(f"row numbers from {rows.min()} to {rows.max()}; given out: [0, {self._high})")
        for i, row in enumerate(rows.tolist()):
            result[i] = self.values[row] if row != ABSENT else 0.0
        return result

    def lookup(
        self, keys: NDArray[np.int64], out: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows = self.find(keys)
        return self.gather(rows, out), rows >= 0

    def lookup_or_insert(
        self,
        keys: NDArray[np.int64],
        tick: int,
        occurrences: NDArray[np.int64] | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        result = checked_out(out, len(keys), self.dim)
        rows = self.assign(keys, tick, occurrences)
        return self.gather(rows, result), rows

    def put(
        self,
        keys: NDArray[np.int64],
        values: ArrayLike,
        state: ArrayLike,
        last_seen: ArrayLike | None = None,
        frequency: ArrayLike | None = None,
    ) -> NDArray[np.int32]:
        n = len(keys)
        new_values = np.asarray(values, np.float32).reshape(n, self.dim)
        new_state = np.asarray(state, np.float32).reshape(n, self.state_dim)
        new_seen = as_last_seen(last_seen, n, self.tick, self.policy)
        often = np.ones(n, np.uint32) if frequency is None or not np.size(frequency) else np.asarray(frequency)
        if len(self._rows.keys() | set(as_keys(keys).tolist())) > self._max_rows:
            raise self._full()
        for i, key in enumerate(as_keys(keys).tolist()):
            if key not in self._rows:
                self._insert(key, NEVER)
            row = self._rows[key]
            self.values[row], self.state[row] = new_values[i], new_state[i]
            if len(self.last_seen):
                self.last_seen[row] = new_seen[i]
            self._frequency[key] = int(often[i])
        rows = self.find(keys)
        self._expire()
        if self.policy.byte_budget and len(self._rows) > self.row_limit:
            self._evict(sorted(self._rows, key=self._score)[: room_to_leave(self.row_limit, len(self._rows), 0, 0)])
            rows = self.find(keys)
        return rows

    def remove(self, keys: NDArray[np.int64]) -> int:
        gone = self._rows.keys() & set(as_keys(keys).tolist())
        for key in gone:
            self._forget(key)
        return len(gone)

    def advance(self, tick: int) -> None:
        if as_tick(tick) < self.tick:
            raise ValueError(f"slot {self.slot!r}: tick {tick} is before tick {self.tick}; event time never goes back")
        self.tick = tick
        self._expire()
        if self.admission is not None:
            self.admission.advance(tick)

    def sweep(self, limit: int | None = None) -> int:
        return 0

    def take_tombstones(self) -> NDArray[np.int64]:
        if not self._keeps_tombstones:
            raise ValueError(f"slot {self.slot!r}: this table was made with tombstones=False")
        gone, self._gone = self._gone - self._rows.keys(), set()
        return np.array(sorted(gone), np.int64)

    def compact(self) -> int:
        rows = self.export()
        before, self._high = self._high, 0
        self._rows, self._free = {}, []
        for i, key in enumerate(rows.keys.tolist()):
            self._insert(key, int(rows.last_seen[i]) if len(rows.last_seen) else self.tick)
            self.values[i], self.state[i] = rows.values[i], rows.state[i]
        return before - self._high

    def export(self) -> Rows:
        return self._whole(sorted(self._rows))

    def pick(self, keys: NDArray[np.int64]) -> Rows:
        keys = as_keys(keys)
        return self._whole(keys[self.find(keys) >= 0].tolist())

    def _whole(self, keys: list[int]) -> Rows:
        rows = np.array([self._rows[key] for key in keys], np.int32)
        seen = self.last_seen[rows] if len(self.last_seen) else self.last_seen.copy()
        often = [self._frequency[key] for key in keys] if self.policy.frequency else []
        return Rows(np.array(keys, np.int64), self.values[rows], self.state[rows], seen, np.array(often, np.uint32))

    def digest(self) -> bytes:
        return digest_of(self.slot, self.export(), self.admission)

    def memory(self) -> Memory:
        rows, kept = self._high, self.policy.row_bytes(self.dim, self.state_dim) - 4 * (self.dim + self.state_dim)
        sketch = 16 * len(self.admission.export()["cells"]) if self.admission is not None else 0
        return Memory(100 * len(self._rows), 4 * rows * self.dim, 4 * rows * self.state_dim, rows * kept, sketch)

    def copy(self) -> "DictTable":
        twin = DictTable(
            slot=self.slot, dim=self.dim, state_dim=self.state_dim, seed=self._seed, init_scale=self._init_scale,
            state_init=self._state_init.tolist(), max_rows=self._max_rows, policy=self.policy,
            tombstones=self._keeps_tombstones,
        )  # fmt: skip
        twin.put(*self.export())
        twin._frequency, twin._gone = dict(self._frequency), set(self._gone)
        twin.tick, twin.counts = self.tick, self.counts.copy()
        twin.admission = self.admission.copy() if self.admission is not None else None
        return twin

    def clear(self) -> None:
        self._rows.clear()
        self._frequency.clear()
        self._free.clear()
        self._gone.clear()
        self._high = 0
        self.tick = NEVER
        if self.admission is not None:
            self.admission.clear()
