"""The admission sketch of a table as tensors of versions and snapshots, which fold like rows do.

    admission/<table>/keys    int64 (n,)   window · 2³² + cell
    admission/<table>/count   uint32 (n,)  occurrences counted there
    admission/<table>/tombstones           cells of windows that no longer count, in a delta only
    admission/<table>.sketch  int64 (4,)   the running window and the sketch's shape

A sketch itself numbers its cells by the parity of their window and clears them when they age. A delta cannot clear, so
here a cell carries its window, and what ages is named: last writer wins, and a snapshot is the deltas before it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.embedding import SegmentedTable

Tensors = dict[str, NDArray[Any]]
_CELL_BITS = 32
_CELL = (1 << _CELL_BITS) - 1
_NONE = np.empty(0, np.int64)


class SketchTensors:
    """Follows one table's sketch from version to version. Owned by the slot that moves the table's tick."""

    def __init__(self, name: str, table: SegmentedTable) -> None:
        self._name, self._table = name, table
        self._window_ticks = table.policy.admit_window_ticks
        self._aged = _NONE
        self._running = 0  # the running window, once a tick has come
        self._told: int | None = None  # … as the newest version has it

    def before_advance(self, tick: int) -> None:
        """Remember which cells will have aged at `tick`."""
        if not self._window_ticks or tick // self._window_ticks <= self._running:
            return
        self._running = tick // self._window_ticks
        keys = self._coded(self._sketch.export())
        self._aged = np.concatenate((self._aged, keys[keys >> _CELL_BITS < self._running - 1]))

    def delta(self) -> Tensors:
        """What changed since the last call."""
        raw = self._sketch.take_delta()
        if not raw and not len(self._aged) and self._running == self._told:
            return {}
        raw = raw or self._sketch.export() | {"cells": _NONE, "counts": np.empty(0, np.uint32)}
        out = self._tensors(raw)
        self._told = self._running
        if len(self._aged):
            out[f"admission/{self._name}/tombstones"] = np.unique(self._aged)
            self._aged = _NONE
        return out

    def export(self) -> Tensors:
        """The whole sketch, sorted by key."""
        out = self._tensors(self._sketch.export())
        keys, count = (out[f"admission/{self._name}/{c}"] for c in ("keys", "count"))
        order = np.argsort(keys)
        return out | {f"admission/{self._name}/keys": keys[order], f"admission/{self._name}/count": count[order]}

    def apply(self, tensors: Mapping[str, NDArray[Any]], *, whole: bool) -> None:
        """Redo a delta, or become what a snapshot holds. Raises ConfigError where the sketch has another shape."""
        header = tensors.get(f"admission/{self._name}.sketch")
        if header is None:
            return
        raw = {
            "sketch": header,
            "cells": tensors[f"admission/{self._name}/keys"] & _CELL,
            "counts": tensors[f"admission/{self._name}/count"],
        }
        (self._sketch.load if whole else self._sketch.apply_delta)(raw)
        self._sketch.take_delta()
        self._aged, self._running, self._told = _NONE, int(header[0]), int(header[0])

    def of(self, table: SegmentedTable) -> "SketchTensors":
        """The same place in the chain of versions, for a copy of the table."""
        twin = SketchTensors(self._name, table)
        twin._aged, twin._running, twin._told = self._aged, self._running, self._told
        return twin

    @property
    def _sketch(self) -> Any:
        return self._table.admission

    def _coded(self, raw: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        window, generations, lines, width = raw["sketch"].tolist()
        cells = raw["cells"]
        behind = (cells // (lines * width) != window & 1) if generations > 1 else np.zeros(len(cells), np.bool_)
        coded: NDArray[np.int64] = ((window - behind.astype(np.int64)) << _CELL_BITS) | cells
        return coded

    def _tensors(self, raw: Mapping[str, NDArray[Any]]) -> Tensors:
        return {
            f"admission/{self._name}/keys": self._coded(raw),
            f"admission/{self._name}/count": raw["counts"],
            f"admission/{self._name}.sketch": raw["sketch"],
        }
