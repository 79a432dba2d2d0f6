"""Where rows lie: index, free row numbers and slabs of one table. Decides nothing; `cuckoo` says who has a row.

Beside a row's vector and state, the store keeps what the policy asks for: where rows can expire or be evicted, their
keys, when those were last seen, and a lower bound of that for each 1,024 rows; and how often the key occurred.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.embedding.base import as_rows
from infra.embedding.gather import gather_rows
from infra.embedding.index.index import CuckooIndex
from infra.embedding.initial import per_column, stream_base
from infra.embedding.insert import CHUNK_BITS
from infra.embedding.life.expiry import bounds_of
from infra.embedding.life.policy import FREE, Memory, Policy
from infra.embedding.slab import MAX_ROWS, Heap, release, reserve


class RowStore:
    """Rows in slabs that never move, found by an index that may be thrown away and hashed anew at any time."""

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
    ) -> None:
        if dim < 1 or state_dim < 0 or max_rows < 1:
            raise ValueError(f"slot {slot!r}: dim {dim}, state_dim {state_dim}, max_rows {max_rows}")
        self.slot, self.dim, self.state_dim, self.policy = slot, dim, state_dim, policy or Policy()
        # What another table is made with to have the same content; it may differ in capacity_hint and index_seed.
        self.options: dict[str, Any] = {
            "slot": slot, "dim": dim, "state_dim": state_dim, "seed": seed, "init_scale": init_scale,
            "state_init": state_init, "max_rows": max_rows, "policy": self.policy,
        }  # fmt: skip
        self._seed = seed
        self._base = stream_base(slot, seed)
        self._units = per_column(init_scale, dim, f"init_scale of slot {slot!r}") / (1 << 24)
        self._state_init = per_column(state_init, state_dim, f"state_init of slot {slot!r}").astype(np.float32)
        self._index = CuckooIndex(f"{index_seed}/{slot}", capacity_hint, max_keys=max_rows)
        self._reserve(max_rows)

    def _reserve(self, max_rows: int) -> None:
        self._heap = Heap(max_rows)
        self.values: NDArray[np.float32] = reserve((max_rows, self.dim), np.float32)
        self.state: NDArray[np.float32] = reserve((max_rows, self.state_dim), np.float32)
        keyed = max_rows if self.policy.loses_rows else 0
        self.last_seen: NDArray[np.int32] = reserve((keyed,), np.int32)
        self._row_keys: NDArray[np.int64] = reserve((keyed,), np.int64)
        self._bounds = np.full(1 if keyed else 0, FREE, np.int32)  # as many as there are chunks so far
        self._frequency: NDArray[np.uint32] = reserve((max_rows if self.policy.frequency else 0,), np.uint32)

    def gather(self, rows: NDArray[np.int32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """See `base.Table`."""
        return gather_rows(self.values, self._heap.high, as_rows(rows), out)

    def memory(self) -> Memory:
        """See `base.Table`. Rows and what belongs to them are counted up to the highest number in use."""
        high = self._heap.high
        kept = 12 * bool(len(self._row_keys)) + 4 * bool(len(self._frequency))
        return Memory(
            index=self._index.nbytes,
            rows=4 * high * self.dim,
            state=4 * high * self.state_dim,
            bookkeeping=high * kept + 4 * int(self._heap.head[1]) + self._bounds.nbytes,
            sketch=0,
        )

    def _expect_rows(self, n: int) -> None:
        """Have a bound for each chunk that n more rows may reach."""
        chunks = (min(self._heap.high + n, self._heap.max_rows) >> CHUNK_BITS) + 1
        if len(self._bounds) < chunks:
            more = np.full(max(chunks, 2 * len(self._bounds)) - len(self._bounds), FREE, np.int32)
            self._bounds = np.concatenate((self._bounds, more))

    def _drop(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Take their rows away from keys; the rows, whose contents stay until they are given out again."""
        rows = self._index.drop(keys)
        self._heap.give(rows)
        if len(self._row_keys):
            self.last_seen[rows] = FREE
        return rows

    def _pack(self) -> int:
        """Renumber rows as [0, n) and give the memory behind them back; how many numbers that saves."""
        high, n = self._heap.high, len(self._index)
        keys, rows = self._index.listing()
        taken = np.zeros(high, np.bool_)
        taken[rows] = True
        movers = rows >= n
        source, target = rows[movers], np.flatnonzero(~taken[:n]).astype(np.int32)
        slabs = [s for s in (self.values, self.state, self.last_seen, self._row_keys, self._frequency) if len(s)]
        for slab in slabs:
            slab[target] = slab[source]
        self._index.set(keys[movers], target)
        self._index.compact()
        for slab in slabs:
            release(slab, n, high)
        release(self._heap.free, 0, high)
        self._heap.head[:] = n, 0
        if len(self._bounds):
            bounds_of(self.last_seen, n, self._bounds)
        return high - n

    def _copy_rows(self, other: "RowStore") -> None:
        """Become independent of `other`, from which every attribute was taken over."""
        n = other._heap.high
        self._reserve(other._heap.max_rows)
        self._index = other._index.copy()
        self._heap.copy_from(other._heap)
        for mine, theirs in (
            (self.values, other.values),
            (self.state, other.state),
            (self.last_seen, other.last_seen),
            (self._row_keys, other._row_keys),
            (self._frequency, other._frequency),
        ):
            mine[:n] = theirs[:n]
        self._bounds = other._bounds.copy()
