"""The collisionless table: a cuckoo index over stable rows in slabs that never move (see `base` for its laws).

The index may be thrown away and hashed anew at any time; rows, once given, stay. So growth moves 12 bytes a key and no
vector. Layout and hashing are in `buckets`, reserved memory in `slab`, initial vectors in `initial`.
"""

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from infra.embedding import buckets as bk
from infra.embedding.base import Rows, as_keys, as_rows
from infra.embedding.gather import gather_rows
from infra.embedding.index import CuckooIndex
from infra.embedding.initial import stream_base, write_initial
from infra.embedding.machine import Int
from infra.embedding.slab import MAX_ROWS, Heap, reserve
from infra.errors import ConfigError

_FULL = -1
_U = np.uint64


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
    start: Int,
    tick: int,
    base: int,
    unit: float,
    state_init: float,
) -> Int:
    """Look up or insert keys[start:]; n when done, the first i that needs a larger index, -1 when no row is left."""
    near, far = bk.block()
    lo = start
    while lo < len(keys):
        hi = bk.approach(words, head, keys, lo, near, far)
        for i in range(lo, hi):
            a, b, key = near[_U(i - lo)], far[_U(i - lo)], keys[_U(i)]
            spot = bk.locate(words, cells, a, b, key)
            if spot >= 0:
                row = np.int64(cells[bk.cell_of(spot)]) - 1
                rows[_U(i)] = row
                last_seen[_U(row)] = max(last_seen[_U(row)], np.int32(tick))
                continue
            reused = heap[1] > 0
            row = np.int64(free[_U(heap[1] - 1)]) if reused else heap[0]
            if row >= len(free):
                return _FULL
            spot = bk.make_room(words, cells, head, a, b)
            if spot < 0:
                return i
            bk.occupy(words, cells, head, spot, key, row)
            heap[1 if reused else 0] += -1 if reused else 1
            rows[_U(i)] = row
            last_seen[_U(row)] = tick
            write_initial(base, key, unit, values, row)
            for j in range(state.shape[1]):
                state[_U(row), j] = state_init
        lo = hi
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
        index, heap = self._index, self._heap
        done: Int = 0
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
        self._index.expect(n)
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
        self._index.clear()
        self._heap.clear()
