"""The collisionless table: a cuckoo index over stable rows in slabs that never move (see `base` for its laws).

The index may be thrown away and hashed anew at any time; rows, once given, stay. So growth moves 12 bytes a key and no
vector. Layout and hashing are in `index`, reserved memory in `slab`, initial vectors in `initial`.
"""

import hashlib

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from infra.embedding import index as ix
from infra.embedding.base import Rows, as_keys, as_rows
from infra.embedding.gather import gather_rows
from infra.embedding.initial import stream_base, write_initial
from infra.embedding.slab import MAX_ROWS, Heap, reserve
from infra.errors import ConfigError

_FULL = -1


class CuckooIndex:
    """One index: `words`, `cells` (one memory) and `head` = [buckets − 1, seed, odd multiplier, keys, times hashed]."""

    __slots__ = ("_name", "cells", "head", "words")

    def __init__(self, name: str, capacity_hint: int = 0) -> None:
        self._name = name
        self.head = np.zeros(5, np.int64)
        need = max(2, int(capacity_hint / (ix.MAX_LOAD * ix.WAYS)) + 1)
        self._allocate(1 << (need - 1).bit_length())

    def __len__(self) -> int:
        return int(self.head[3])

    @property
    def places(self) -> int:
        """Keys that would fit if all places were used."""
        return (int(self.head[0]) + 1) * ix.WAYS

    def _allocate(self, buckets: int) -> None:
        raw = np.zeros(buckets * 8 + 8, np.int64)
        skip = (-raw.ctypes.data // 8) % 8  # a bucket is one cache line only if it starts on one
        self.words: NDArray[np.int64] = raw[skip : skip + buckets * 8]
        self.cells: NDArray[np.int32] = self.words.view(np.int32)
        times = int(self.head[4]) + 1
        seeds = hashlib.blake2b(f"index/{self._name}/{times}".encode(), digest_size=16).digest()
        self.head[:] = (
            buckets - 1,
            int.from_bytes(seeds[:8], "little", signed=True),
            int.from_bytes(seeds[8:], "little", signed=True) | 1,
            0,
            times,
        )

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        rows = np.empty(len(keys), np.int32)
        ix.find_rows(self.words, self.cells, self.head, keys, rows)
        return rows

    def set(self, keys: NDArray[np.int64], rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Map keys to rows, in order; the rows they had before, -1 where none."""
        old = np.empty(len(keys), np.int32)
        done = 0
        while (done := ix.set_rows(self.words, self.cells, self.head, keys, rows, old, done)) < len(keys):
            self.grow()
        return old

    def drop(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Forget keys; the rows of those that were present."""
        old = np.empty(len(keys), np.int32)
        return old[: ix.drop_rows(self.words, self.cells, self.head, keys, old)]

    def items(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All keys, sorted, and their rows."""
        keys, rows = self._items()
        order = np.argsort(keys)
        return keys[order], rows[order]

    def _items(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        keys, rows = np.empty(len(self), np.int64), np.empty(len(self), np.int32)
        ix.list_rows(self.words, self.cells, keys, rows)
        return keys, rows

    def grow(self) -> None:
        """Make room for one more key at least: twice the buckets, or new seeds where few keys collide much."""
        keys, rows = self._items()
        old = np.empty(len(keys), np.int32)
        buckets = int(self.head[0]) + 1
        crafted = len(keys) < ix.MIN_RESEED_LOAD * buckets * ix.WAYS
        for attempt in range(64):
            if not crafted or attempt >= ix.MAX_RESEEDS:
                buckets *= 2
            self._allocate(buckets)
            if ix.set_rows(self.words, self.cells, self.head, keys, rows, old, 0) == len(keys):
                return
        raise AssertionError("64 seeds and doublings did not place the keys")

    def copy(self) -> "CuckooIndex":
        twin = CuckooIndex(self._name)
        twin.head[:] = self.head
        twin.head[4] -= 1
        twin._allocate(int(self.head[0]) + 1)
        twin.words[:] = self.words
        twin.head[:] = self.head
        return twin


@njit(cache=True, nogil=True)
def _assign(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    free: NDArray[np.int32],
    heap: NDArray[np.int64],
    values: NDArray[np.float32],
    state: NDArray[np.float32],
    last_seen: NDArray[np.int32],
    keys: NDArray[np.int64],
    rows: NDArray[np.int32],
    start: int,
    tick: int,
    base: int,
    unit: float,
    state_init: float,
) -> int:
    """Look up or insert keys[start:]; the first i that needs a larger index, n when done, -1 when the slabs are full."""
    for i in range(start, len(keys)):
        ix._ahead(words, head, keys, i + ix.AHEAD)
        key = keys[i]
        c = ix._cell(words, cells, head, key)
        if c >= 0:
            row = np.int64(cells[c]) - 1
            rows[i] = row
            last_seen[row] = max(last_seen[row], np.int32(tick))
            continue
        reused = heap[1] > 0
        row = np.int64(free[heap[1] - 1]) if reused else heap[0]
        if row >= len(free):
            return _FULL
        if ix._crowded(words, head) or not ix._insert(words, cells, head, key, row):
            return i
        if reused:
            heap[1] -= 1
        else:
            heap[0] += 1
        rows[i] = row
        last_seen[row] = tick
        write_initial(base, key, unit, values, row)
        for j in range(state.shape[1]):
            state[row, j] = state_init
    return len(keys)


class EmbeddingTable:
    """One slot's rows. See `base.Table` for every method's contract.

    `index_seed` changes only where keys lie, never what anyone sees; tests vary it to prove that.
    """

    def __init__(
        self,
        *,
        slot: str,
        dim: int,
        state_dim: int = 1,
        seed: int = 0,
        init_scale: float,
        state_init: float = 0.0,
        capacity_hint: int = 1024,
        max_rows: int = MAX_ROWS,
        index_seed: int = 0,
    ) -> None:
        if dim < 1 or state_dim < 0 or max_rows < 1:
            raise ValueError(f"slot {slot!r}: dim {dim}, state_dim {state_dim}, max_rows {max_rows}")
        self.slot, self.dim, self.state_dim = slot, dim, state_dim
        self._options = (seed, init_scale, state_init, max_rows, index_seed)
        self._base = stream_base(slot, seed)
        self._unit = init_scale / (1 << 24)
        self._state_init = float(state_init)
        self._index = CuckooIndex(f"{index_seed}/{slot}", capacity_hint)
        self._heap = Heap(max_rows)
        self.values: NDArray[np.float32] = reserve((max_rows, dim), np.float32)
        self.state: NDArray[np.float32] = reserve((max_rows, state_dim), np.float32)
        self.last_seen: NDArray[np.int32] = reserve((max_rows,), np.int32)

    def __len__(self) -> int:
        return len(self._index)

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        return self._index.find(as_keys(keys))

    def assign(self, keys: NDArray[np.int64], tick: int) -> NDArray[np.int32]:
        keys = as_keys(keys)
        rows = np.empty(len(keys), np.int32)
        index, heap, done = self._index, self._heap, 0
        while True:
            done = _assign(
                index.words, index.cells, index.head, heap.free, heap.head,
                self.values, self.state, self.last_seen, keys, rows,
                done, tick, self._base, self._unit, self._state_init,
            )  # fmt: skip
            if done == len(keys):
                return rows
            if done == _FULL:
                raise ConfigError(
                    f"table {self.slot!r} holds {len(self)} rows, its max_rows; raise max_rows or expire rows sooner"
                )
            index.grow()

    def gather(self, rows: NDArray[np.int32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        return gather_rows(self.values, self._heap.high, as_rows(rows), out)

    def lookup(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows = self.find(keys)
        return self.gather(rows), rows >= 0

    def put(
        self, keys: NDArray[np.int64], values: ArrayLike, state: ArrayLike, last_seen: ArrayLike
    ) -> NDArray[np.int32]:
        keys = as_keys(keys)
        n = len(keys)
        new_values = np.asarray(values, np.float32).reshape(n, self.dim)
        new_state = np.asarray(state, np.float32).reshape(n, self.state_dim)
        new_seen = np.asarray(last_seen, np.int32).reshape(n)
        rows = self.assign(keys, 0)
        self.values[rows] = new_values
        self.state[rows] = new_state
        self.last_seen[rows] = new_seen
        return rows

    def remove(self, keys: NDArray[np.int64]) -> int:
        rows = self._index.drop(as_keys(keys))
        self._heap.give(rows)
        return len(rows)

    def export(self) -> Rows:
        keys, rows = self._index.items()
        return Rows(keys, self.values[rows], self.state[rows], self.last_seen[rows])

    def digest(self) -> bytes:
        return self.export().digest(self.slot)

    def copy(self) -> "EmbeddingTable":
        seed, init_scale, state_init, max_rows, index_seed = self._options
        twin = EmbeddingTable(
            slot=self.slot, dim=self.dim, state_dim=self.state_dim, seed=seed, init_scale=init_scale,
            state_init=state_init, max_rows=max_rows, index_seed=index_seed,
        )  # fmt: skip
        n = self._heap.high
        twin._index = self._index.copy()
        twin._heap.copy_from(self._heap)
        twin.values[:n] = self.values[:n]
        twin.state[:n] = self.state[:n]
        twin.last_seen[:n] = self.last_seen[:n]
        return twin

    def clear(self) -> None:
        self._index = CuckooIndex(self._index._name, len(self._index))
        self._heap.clear()
