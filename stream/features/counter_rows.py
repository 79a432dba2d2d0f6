"""Rows of counters: as data that travels (`CounterRows`, `CounterDelta`) and as a table that holds them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.features.counter_kernels import Floats, upsert_rows
from stream.features.keys import KeyIndex, grown, own

Tensors = dict[str, NDArray[Any]]
NAMESPACES = ("item", "category")
COLUMNS = ("keys", "values", "last_tick", "first_tick")


class CounterRows(NamedTuple):
    """Whole rows of one namespace, to be upserted."""

    keys: NDArray[np.int64]
    values: Floats
    last_tick: NDArray[np.int32]
    first_tick: NDArray[np.int32]

    @staticmethod
    def empty(n: int = 0) -> "CounterRows":
        return CounterRows(
            np.empty(n, np.int64), np.empty((n, 4), np.float32), np.empty(n, np.int32), np.empty(n, np.int32)
        )


@dataclass(frozen=True, slots=True)
class CounterDelta:
    """What one tick changed: the new rows of both namespaces."""

    tick: int
    item: CounterRows
    category: CounterRows

    def __len__(self) -> int:
        return len(self.item.keys) + len(self.category.keys)

    def tensors(self, prefix: str = "counters") -> Tensors:
        """counters/item/keys, …: the counter section of a version."""
        return {f"{prefix}/{ns}/{c}": a for ns in NAMESPACES for c, a in zip(COLUMNS, getattr(self, ns), strict=True)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, NDArray[Any]], prefix: str = "counters") -> "CounterDelta":
        """The delta of (merged) tensors; a missing namespace is empty. Its tick is that of its newest row, or -1."""
        parts = {}
        for ns in NAMESPACES:
            present = f"{prefix}/{ns}/keys" in tensors
            parts[ns] = (
                CounterRows(*(tensors[f"{prefix}/{ns}/{c}"] for c in COLUMNS)) if present else CounterRows.empty()
            )
        newest = max((int(p.last_tick.max()) for p in parts.values() if len(p.keys)), default=-1)
        return CounterDelta(newest, parts["item"], parts["category"])


class CounterTable:
    """The rows of one namespace. Kernels elsewhere take `columns`."""

    __slots__ = ("first_tick", "index", "last_tick", "values")

    def __init__(self) -> None:
        self.index = KeyIndex()
        self._columns(self.index.capacity)

    def _columns(self, capacity: int) -> None:
        self.values: Floats = np.zeros((capacity, 4), np.float32)
        self.last_tick: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.first_tick: NDArray[np.int32] = np.zeros(capacity, np.int32)

    def __len__(self) -> int:
        return self.index.n

    @property
    def columns(self) -> tuple[NDArray[np.int32], NDArray[np.int64], Floats, NDArray[np.int32], NDArray[np.int32]]:
        """(slots, keys, values, last_tick, first_tick), at capacity."""
        return self.index.slots, self.index.keys, self.values, self.last_tick, self.first_tick

    def reserve(self, more: int) -> None:
        if self.index.reserve(more):
            for name in ("values", "last_tick", "first_tick"):
                setattr(self, name, grown(getattr(self, name), self.index.capacity))

    def apply(self, rows: CounterRows) -> None:
        """Upsert whole rows."""
        self.reserve(len(rows.keys))
        self.index.n = upsert_rows(
            own(rows.keys), own(rows.values, np.float32), own(rows.last_tick, np.int32),
            own(rows.first_tick, np.int32), self.index.n, *self.columns,
        )  # fmt: skip

    def export(self) -> CounterRows:
        """All rows, sorted by key."""
        n = self.index.n
        order = np.argsort(self.index.keys[:n])
        return CounterRows(
            self.index.keys[:n][order], self.values[:n][order], self.last_tick[:n][order], self.first_tick[:n][order]
        )

    def copy(self) -> "CounterTable":
        twin = CounterTable.__new__(CounterTable)
        twin.index, twin.values = self.index.copy(), self.values.copy()
        twin.last_tick, twin.first_tick = self.last_tick.copy(), self.first_tick.copy()
        return twin
