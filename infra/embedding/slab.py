"""Slabs: arrays that grow without moving.

Address space for `max_rows` is reserved once (anonymous memory, MAP_NORESERVE) and the system hands out pages as rows
are first written. So a row number stays good for ever, growth copies no vector, and a view taken early sees what is
written late. Lists of blocks were decided against: every kernel would pay a second look-up per row.
"""

import math
import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from infra.errors import ConfigError

# Rows that a table may hold: 2^26 rows of dimension 16 reserve 5 GiB of addresses, and no memory.
MAX_ROWS = 1 << 26

_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
# CPython names the constant since 3.13 only; 0x4000 is Linux's, on every architecture but mips, alpha and powerpc.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def reserve(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros of this shape that take memory only where written. Raises ConfigError where the system refuses."""
    kind = np.dtype(dtype)
    size = max(1, math.prod(shape)) * kind.itemsize
    try:
        block = mmap.mmap(-1, size, flags=_FLAGS | _NO_RESERVE)
    except OSError as error:
        raise ConfigError(
            f"cannot reserve {size} bytes of address space for a table: {error}; "
            "lower its max_rows, or lift the limit (ulimit -v, vm.overcommit_memory)"
        ) from error
    return np.frombuffer(block, dtype=kind, count=math.prod(shape)).reshape(shape)


class Heap:
    """Which row numbers are free: `head` is [numbers ever given out, numbers on the free stack].

    Kernels pop them in place; `give` pushes them back.
    """

    __slots__ = ("free", "head", "max_rows")

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.free: NDArray[np.int32] = reserve((max_rows,), np.int32)
        self.head: NDArray[np.int64] = np.zeros(2, np.int64)

    @property
    def high(self) -> int:
        """Rows [0, high) have been given out at some time."""
        return int(self.head[0])

    def take(self, n: int) -> NDArray[np.int32] | None:
        """n free row numbers, or None (and nothing taken) where fewer are left."""
        high, spare = int(self.head[0]), int(self.head[1])
        reused = min(n, spare)
        if high + n - reused > self.max_rows:
            return None
        rows = np.empty(n, np.int32)
        rows[:reused] = self.free[spare - reused : spare]
        rows[reused:] = np.arange(high, high + n - reused)
        self.head[:] = high + n - reused, spare - reused
        return rows

    def give(self, rows: NDArray[np.int32]) -> None:
        """Rows that are free again."""
        n = int(self.head[1])
        self.free[n : n + len(rows)] = rows
        self.head[1] = n + len(rows)

    def copy_from(self, other: "Heap") -> None:
        n = int(other.head[1])
        self.free[:n] = other.free[:n]
        self.head[:] = other.head

    def clear(self) -> None:
        self.head[:] = 0
