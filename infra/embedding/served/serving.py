"""A replica's table: many threads read, one applies versions, and no reader ever waits or sees half of one.

Two indexes over one heap of rows, as left-right (Ramalhete and Correia 2013) does it: `apply` writes new vectors into
free slots of the heap, teaches them to the index that nobody reads, and shows it by one assignment. So an index that is
being read never changes (moving keys in it would hide present ones), and a slot that a view reaches is never written.

- A `TableView` is one version, whole, for as long as it is held. `view()` is one attribute read.
- The last view's delta is kept and applied to the other index at the start of the next `apply`, when its readers have
  mostly gone. If one is still there, the current index is copied instead of waiting for it (`copies` counts that).
- Whether a view is in use is asked of Python itself: the table keeps a weak reference to every view it has shown. Slots
  that a version replaced are freed once it and all views before it are gone (`retired` says how many wait).
- An owner that never holds a view across `apply` (the evaluator) asks for an `exclusive` table: one index, changed in
  place. Its older views show what the newest one does.
"""

import weakref
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.embedding.base import as_keys
from infra.embedding.index.index import CuckooIndex
from infra.embedding.served.stores import Precision, Store, make_store
from infra.embedding.slab import MAX_ROWS, Heap
from infra.errors import RetryableError

_NO_SLOTS = np.empty(0, np.int32)


class TableView:
    """One version of a table, immutable; safe in any thread, also while the table applies the next versions."""

    __slots__ = ("__weakref__", "_high", "_index", "_rows", "dim")

    def __init__(self, index: CuckooIndex, rows: Store, high: int) -> None:
        self._index, self._rows, self._high = index, rows, high
        self.dim = rows.dim

    def __len__(self) -> int:
        return len(self._index)

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Slot of each key, -1 where absent. A slot means something to this view only."""
        return self._index.find(as_keys(keys))

    def gather(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors (n, dim); absent keys read as zeros."""
        return self.gather_into(keys, None)

    def gather_into(self, keys: NDArray[np.int64], out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """The same, into `out` (n, dim) contiguous float32; returns it. Raises ValueError on another `out`."""
        return self._rows.look_up(self._index, self._high, as_keys(keys), out)

    def export(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """All keys, sorted, and their vectors."""
        keys, _ = self._index.items()
        return keys, self.gather(keys)


class _Delta(NamedTuple):
    """What one `apply` did to its index, to be done to the other one too."""

    keys: NDArray[np.int64]
    slots: NDArray[np.int32]
    tombstones: NDArray[np.int64]


class _Retired(NamedTuple):
    """Slots that a version replaced or dropped, and the last view that can reach them."""

    view: "weakref.ref[TableView]"
    slots: NDArray[np.int32]


class ServingTable:
    """The rows of one slot as a replica serves them. One thread applies; any number hold views."""

    def __init__(
        self,
        *,
        dim: int,
        dtype: Precision = "float16",
        capacity_hint: int = 0,
        max_rows: int = MAX_ROWS,
        exclusive: bool = False,
    ) -> None:
        self.dim, self.dtype = dim, dtype
        self.copies = 0
        self._exclusive = exclusive
        self._heap = Heap(max_rows)
        self._rows = make_store(dtype, dim, max_rows)
        self._retired: deque[_Retired] = deque()
        self._standby = CuckooIndex("serving", capacity_hint)
        self._standby_view: weakref.ref[TableView] | None = None  # the last view that read the standby index
        self._pending = _Delta(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))
        self._view = TableView(CuckooIndex("serving", capacity_hint), self._rows, 0)

    def __len__(self) -> int:
        return len(self._view)

    @property
    def retired(self) -> int:
        """Slots that wait for the readers of older views."""
        return sum(len(r.slots) for r in self._retired)

    def view(self) -> TableView:
        """The newest version applied."""
        return self._view

    def apply(
        self, upsert_keys: NDArray[np.int64], upsert_values: NDArray[np.float32], tombstones: NDArray[np.int64]
    ) -> None:
        """Make the next version: drop `tombstones` (t,), then set rows (n,), (n, dim); the last of equal keys counts.

        All or nothing. Raises RetryableError when the heap is full, which old views held for long can bring about.
        """
        keys, dead = as_keys(upsert_keys), as_keys(tombstones)
        values = np.asarray(upsert_values, np.float32).reshape(len(keys), self.dim)
        self._free_unreachable()
        slots = self._take(len(keys))
        self._rows.write(slots, values)
        if self._exclusive:
            for freed in _teach(self._view._index, _Delta(keys, slots, dead)):
                self._heap.give(freed)
            self._view = TableView(self._view._index, self._rows, self._heap.max_rows)
            return
        delta = _Delta(keys.copy(), slots, dead.copy())
        index = self._catch_up_standby()
        dropped, replaced = _teach(index, delta)
        old, self._view = self._view, TableView(index, self._rows, self._heap.high)
        self._standby, self._pending = old._index, delta
        self._standby_view = weakref.ref(old)
        self._retired.append(_Retired(self._standby_view, np.concatenate((dropped, replaced))))

    def _catch_up_standby(self) -> CuckooIndex:
        """An index that equals the current view's and that nobody reads."""
        read = self._standby_view is not None and self._standby_view() is not None
        self.copies += read
        if read or len(self._pending.keys) + len(self._pending.tombstones) > len(self) // 4:
            return self._view._index.copy()  # also cheaper than to repeat a large delta
        _teach(self._standby, self._pending)
        return self._standby

    def _free_unreachable(self) -> None:
        while self._retired and self._retired[0].view() is None:
            self._heap.give(self._retired.popleft().slots)

    def _take(self, n: int) -> NDArray[np.int32]:
        slots = self._heap.take(n)
        if slots is None:
            raise RetryableError(
                f"no room for {n} rows: {len(self)} live, {self.retired} held by older views, "
                f"max_rows {self._heap.max_rows}; raise max_rows, or try again when readers have let go",
                after_s=1.0,
            )
        return slots


def _teach(index: CuckooIndex, delta: _Delta) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Apply a delta to an index; the slots that it no longer reaches: dropped, and replaced."""
    dropped = index.drop(delta.tombstones) if len(delta.tombstones) else _NO_SLOTS
    old = index.set(delta.keys, delta.slots)
    return dropped, old[old >= 0]
