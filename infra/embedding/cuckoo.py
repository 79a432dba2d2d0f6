"""The collisionless table: a cuckoo index over stable rows in slabs that never move (see `base` for its laws).

The index may be thrown away and hashed anew at any time; rows, once given, stay. So growth moves 12 bytes a key and no
vector. Layout and hashing are in `index`, the rows' memory in `store`, who gets a row and who loses it in `life`.

A key that expired keeps its memory until a sweep, an eviction or its return frees it. Whoever looks meanwhile compares
`last_seen` with the horizon: absent is absent, swept or not.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.embedding.base import Rows, as_keys, as_last_seen, as_occurrences, as_tick, digest_of
from infra.embedding.gather import checked_out, unique_inverse
from infra.embedding.insert import CHUNK_BITS, FULL, GROW, hide_expired, insert, insert_and_copy, touch
from infra.embedding.life.admission import AdmissionSketch, draw, sketch_base
from infra.embedding.life.eviction import candidates, least, scores_of
from infra.embedding.life.expiry import Tombstones, collect_expired, count_expired
from infra.embedding.life.policy import FREE, NEVER, Counts, Memory, Policy, room_to_leave
from infra.embedding.lookup import look_up
from infra.embedding.machine import Int
from infra.embedding.slab import MAX_ROWS
from infra.embedding.store import RowStore
from infra.errors import ConfigError

Keys = NDArray[np.int64]
RowNumbers = NDArray[np.int32]


class EmbeddingTable(RowStore):
    """One slot's rows. See `base.Table` for every method's contract.

    `index_seed` changes only where keys lie, never what anyone sees; tests vary it to prove that. A table whose
    tombstones nobody takes is made with `tombstones=False`: else it remembers every key that it ever lost.
    """

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
        super().__init__(
            slot=slot, dim=dim, state_dim=state_dim, seed=seed, init_scale=init_scale, state_init=state_init,
            capacity_hint=capacity_hint, max_rows=max_rows, index_seed=index_seed, policy=policy,
        )  # fmt: skip
        self.row_limit = self.policy.row_limit(dim, state_dim, max_rows)
        self.admission = AdmissionSketch(self.policy, slot, seed) if self.policy.counts else None
        self.counts = Counts()
        self.tick = NEVER
        self._tombstones = Tombstones() if tombstones else None

    def __len__(self) -> int:
        if not self.policy.expiry_ticks:
            return len(self._index)
        return len(self._index) - count_expired(self.last_seen, self._bounds, self._heap.high, self._horizon)

    @property
    def _horizon(self) -> int:
        return self.policy.horizon(self.tick)

    def find(self, keys: Keys) -> RowNumbers:
        rows = self._index.find(as_keys(keys))
        if self.policy.expiry_ticks:
            hide_expired(self.last_seen, self._horizon, rows)
        return rows

    def lookup(
        self, keys: Keys, out: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        keys, index = as_keys(keys), self._index
        result, found = checked_out(out, len(keys), self.dim), np.empty(len(keys), np.bool_)
        horizon = self._horizon if self.policy.expiry_ticks else NEVER
        look_up(index.words, index.cells, index.head, keys, self.values, self.last_seen, horizon, result, found)
        return result, found

    # --- rows come ----------------------------------------------------------------------------------------------

    def assign(self, keys: Keys, tick: int, occurrences: NDArray[np.int64] | None = None) -> RowNumbers:
        return self._assign(as_keys(keys), as_tick(tick), occurrences)

    def lookup_or_insert(
        self,
        keys: Keys,
        tick: int,
        occurrences: NDArray[np.int64] | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], RowNumbers]:
        keys = as_keys(keys)
        result = checked_out(out, len(keys), self.dim)
        return result, self._assign(keys, as_tick(tick), occurrences, result)

    def _assign(
        self, keys: Keys, tick: int, occurrences: NDArray[np.int64] | None, out: NDArray[np.float32] | None = None
    ) -> RowNumbers:
        if tick > self.tick:
            self.advance(tick)
        if self._takes_all(len(keys)) and tick >= self._horizon:
            return self._insert(keys, tick, out)
        rows = self._assign_by_policy(keys, tick, as_occurrences(occurrences, len(keys)))
        if out is not None:
            self.gather(rows, out)
        return rows

    def _takes_all(self, n: int) -> bool:
        """Whether n keys get their rows whatever they are, so that one pass does it."""
        policy = self.policy
        roomy = not policy.byte_budget or len(self._index) + n <= self.row_limit
        return roomy and policy.admits_all and not policy.frequency

    def _assign_by_policy(self, keys: Keys, tick: int, occurrences: NDArray[np.int64]) -> RowNumbers:
        rows, missing = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
        absent = touch(
            self._index.words, self._index.cells, self._index.head, self.last_seen, self._frequency,
            keys, occurrences, self._horizon, tick, rows, missing,
        )  # fmt: skip
        if not absent:
            return rows
        at = missing[:absent]
        new, inverse = unique_inverse(keys[at])
        often = np.zeros(len(new), np.int64)
        np.add.at(often, inverse, occurrences[at])
        if self.policy.expiry_ticks:
            self._expire(new)  # absent keys that still have a row are expired ones that return
        wanted = self._admit(new, often, tick)
        self.counts.rejected += int(often[~wanted].sum())
        fits = self._make_way(new[wanted], rows)
        self.counts.refused += int(often[wanted][~fits].sum())
        wanted[wanted] = fits
        got = np.full(len(new), -1, np.int32)
        got[wanted] = self._insert(new[wanted], tick)
        if len(self._frequency):
            self._frequency[got[wanted]] = np.minimum(often[wanted], 2**32 - 1)
        rows[at] = got[inverse]
        return rows

    def _admit(self, keys: Keys, occurrences: NDArray[np.int64], tick: int) -> NDArray[np.bool_]:
        """Which of these absent, distinct keys get a row."""
        if self.admission is not None:
            return self.admission.admit(keys, occurrences)
        admitted = np.ones(len(keys), np.bool_)
        if not self.policy.admits_all:
            base = sketch_base(self.slot, self._seed)
            draw(keys, occurrences, base, tick, self.policy.admit_probability, admitted)
        return admitted

    def _make_way(self, new: Keys, rows: RowNumbers) -> NDArray[np.bool_]:
        """Evict so that new keys fit, but none of `rows`; which of the new keys do: the least, if not all."""
        fits = np.ones(len(new), np.bool_)
        if not self.policy.byte_budget or len(self._index) + len(new) <= self.row_limit:
            return fits
        self.sweep()
        protected = np.unique(rows[rows >= 0])
        go = room_to_leave(self.row_limit, len(self._index), len(new), len(protected))
        if go:
            self._evict(go, protected)
        room = self.row_limit - len(self._index)
        if room < len(new):
            fits[np.argsort(new)[room:]] = False
        return fits

    def _insert(self, keys: Keys, tick: int, out: NDArray[np.float32] | None = None) -> RowNumbers:
        """Rows of keys, made where absent; their vectors in `out`, if given.

        Raises ConfigError where no row is left; keys before that one are in.
        """
        rows = np.empty(len(keys), np.int32)
        index, heap = self._index, self._heap
        before = len(index)
        if before + len(keys) > heap.max_rows:
            self.sweep()  # not later: a row of this very call may be one that has expired already
            before = len(index)
        if len(self._bounds):
            self._expect_rows(len(keys))
        done: Int = 0
        while done < len(keys):
            arrays = (
                index.words, index.cells, index.head, heap.free, heap.head, self.values, self.state, self.last_seen,
                self._row_keys, self._bounds, keys, rows,
            )  # fmt: skip
            options = (done, self._horizon, tick, self._base, self._units, self._state_init)
            if out is None:
                at, why, returned = insert(*arrays, *options)
            else:
                at, why, returned = insert_and_copy(*arrays, out, *options)
            after = len(index)
            self.counts.inserted += after - before + returned
            self.counts.expired += returned
            if why == FULL:
                raise self._full()
            before, done = after, at
            if why == GROW:
                index.grow()
        return rows

    def _full(self) -> ConfigError:
        return ConfigError(
            f"table {self.slot!r} holds {len(self)} rows, its max_rows; raise max_rows or expire rows sooner"
        )

    def put(
        self,
        keys: Keys,
        values: ArrayLike,
        state: ArrayLike,
        last_seen: ArrayLike | None = None,
        frequency: ArrayLike | None = None,
    ) -> RowNumbers:
        keys = as_keys(keys)
        n = len(keys)
        new_values = np.asarray(values, np.float32).reshape(n, self.dim)
        new_state = np.asarray(state, np.float32).reshape(n, self.state_dim)
        new_seen = as_last_seen(last_seen, n, self.tick, self.policy)
        self._expect(keys)
        inserted = self.counts.inserted
        rows = self._insert(keys, FREE - 1)  # any tick at which none of them has expired
        self.counts.inserted = inserted
        self.values[rows] = new_values
        self.state[rows] = new_state
        if len(self.last_seen):
            self.last_seen[rows] = new_seen
        if len(self._frequency):
            often = np.ones(0, np.uint32) if frequency is None else np.asarray(frequency, np.uint32)
            self._frequency[rows] = often.reshape(n) if len(often) else 1
        if len(self._bounds):
            np.minimum.at(self._bounds, rows >> CHUNK_BITS, new_seen)
        if self.policy.byte_budget and len(self._index) > self.row_limit:
            self.sweep()
            self._evict(room_to_leave(self.row_limit, len(self._index), 0, 0), np.empty(0, np.int32))
            rows = self.find(keys)
        return rows

    def _expect(self, keys: Keys) -> None:
        """Raise ConfigError where keys do not fit, before anything is changed; else make room for them at once."""
        if len(self._index) + len(keys) > self._heap.max_rows:
            self.sweep()
            absent = np.unique(keys[self._index.find(keys) < 0])
            if len(self._index) + len(absent) > self._heap.max_rows:
                raise self._full()
        self._index.expect(len(keys))

    # --- rows go ------------------------------------------------------------------------------------------------

    def advance(self, tick: int) -> None:
        if as_tick(tick) < self.tick:
            raise ValueError(f"slot {self.slot!r}: tick {tick} is before tick {self.tick}; event time never goes back")
        self.tick = as_tick(tick)
        if self.admission is not None:
            self.admission.advance(tick)

    def sweep(self, limit: int | None = None) -> int:
        if not self.policy.expiry_ticks:
            return 0
        high = self._heap.high
        gone = np.empty(high if limit is None else min(limit, high), np.int64)
        n = collect_expired(self.last_seen, self._row_keys, self._bounds, high, self._horizon, gone)
        self._expire(gone[:n])
        return n

    def _expire(self, keys: Keys) -> None:
        rows = self._drop(keys)
        self.counts.expired += len(rows)
        self._bury(self._row_keys[rows])

    def _bury(self, keys: Keys) -> None:
        if self._tombstones is not None:
            self._tombstones.add(keys)

    def _evict(self, n: int, protected: RowNumbers) -> None:
        rows = candidates(self.last_seen[: self._heap.high], protected)
        scores = scores_of(self.policy.evict, rows, self.values, self.last_seen, self._frequency)
        gone = least(scores, self._row_keys[rows], n)
        self.counts.evicted += len(self._drop(gone))
        self._bury(gone)

    def remove(self, keys: Keys) -> int:
        keys = as_keys(keys)
        if self.policy.expiry_ticks:
            self._expire(keys[self.find(keys) < 0])
        if self._tombstones is not None:
            self._bury(keys[self._index.find(keys) >= 0])
        return len(self._drop(keys))

    def take_tombstones(self) -> Keys:
        if self._tombstones is None:
            raise ValueError(f"slot {self.slot!r}: this table was made with tombstones=False")
        self.sweep()
        return self._tombstones.take(self._index.find)

    def compact(self) -> int:
        self.sweep()
        return self._pack()

    # --- the whole ----------------------------------------------------------------------------------------------

    def export(self) -> Rows:
        keys, rows = self._index.items()
        if self.policy.expiry_ticks:
            here = self.last_seen[rows] >= self._horizon
            keys, rows = keys[here], rows[here]
        return self._whole(keys, rows)

    def pick(self, keys: Keys) -> Rows:
        keys, rows = as_keys(keys), self.find(keys)
        here = rows >= 0
        return self._whole(keys.copy(), rows) if here.all() else self._whole(keys[here], rows[here])

    def _whole(self, keys: Keys, rows: NDArray[np.int32]) -> Rows:
        seen = self.last_seen[rows] if len(self.last_seen) else self.last_seen.copy()
        often = self._frequency[rows] if len(self._frequency) else np.empty(0, np.uint32)
        return Rows(keys, self.gather(rows), self.state[rows], seen, often)

    def digest(self) -> bytes:
        return digest_of(self.slot, self.export(), self.admission)

    def memory(self) -> Memory:
        memory = super().memory()
        sketch = self.admission.nbytes if self.admission is not None else 0
        keys = self._tombstones.nbytes if self._tombstones is not None else 0
        return replace(memory, bookkeeping=memory.bookkeeping + keys, sketch=sketch)

    def copy(self) -> "EmbeddingTable":
        twin = EmbeddingTable.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._copy_rows(self)
        twin.admission = self.admission.copy() if self.admission is not None else None
        twin.counts = self.counts.copy()
        twin._tombstones = self._tombstones.copy() if self._tombstones is not None else None
        return twin

    def clear(self) -> None:
        self._index.clear()
        self._heap.clear()
        self._bounds[:] = FREE
        if self.admission is not None:
            self.admission.clear()
        self.tick = NEVER
        self._tombstones = Tombstones() if self._tombstones is not None else None
