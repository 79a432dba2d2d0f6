"""Slabs: arrays that grow without moving.

Address space for `max_rows` is reserved once (anonymous memory, MAP_NORESERVE) and the system hands out pages as rows
are first written. So a row number stays good for ever, growth copies no vector, and a view taken early sees what is
written late. Lists of blocks were decided against: every kernel would pay a second look-up per row.

What lies beyond the first `_SMALL` bytes of a slab comes in huge pages where Linux has them. Inserting 8 M rows of 32
then took 78 ns a key instead of 123 (system time 11 instead of 55: page faults), finding and gathering them 40 instead
of 51 (TLB misses). A huge page holds 2 MB however few of them are used, and most tables are small: they stay on small
pages. 36 tables take 48 MB with 1,000 rows of 16 each, with or without huge pages; 435 MB instead of 367 with 100,000.
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


_HUGE = 1 << 21  # bytes of a huge page on x86-64, and on ARM with 4 KB pages
_SMALL = 1 << 22  # bytes at the start of a slab that stay on small pages: a multiple of _HUGE


def reserve(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros of this shape that take memory only where written. Raises ConfigError where the system refuses."""
    kind = np.dtype(dtype)
    size = max(1, math.prod(shape)) * kind.itemsize
    try:
        block = mmap.mmap(-1, size + _HUGE if size > _SMALL else size, flags=_FLAGS | _NO_RESERVE)
    except OSError as error:
        raise ConfigError(
            f"cannot reserve {size} bytes of address space for a table: {error}; "
            "lower its max_rows, or lift the limit (ulimit -v, vm.overcommit_memory)"
        ) from error
    skip = _advise(block) if size > _SMALL else 0
    return np.frombuffer(block, dtype=kind, count=math.prod(shape), offset=skip).reshape(shape)


def _advise(block: mmap.mmap) -> int:
    """Ask for huge pages behind the first _SMALL bytes; where the slab must begin so that those are whole ones."""
    skip = -_address(block) % _HUGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            block.madvise(mmap.MADV_HUGEPAGE, skip + _SMALL)
        except OSError:  # a kernel built without them: everything works, slower
            return skip
    return skip


def release(array: NDArray[Any], lo: int, hi: int) -> int:
    """Give the memory of array[lo:hi] back to the system; the bytes given back.

    Only whole pages go: they read as zeros from then on and take memory again when written. The rest of array[lo:hi]
    keeps what it holds, and so does all of it where the array is not from `reserve` or the system has no such call.
    """
    block = _block_of(array)
    if block is None or hi <= lo or not (sys.platform == "linux" and hasattr(mmap, "MADV_DONTNEED")):
        return 0
    stride = array.strides[0]
    start = array.ctypes.data - _address(block)
    first = -(-(start + lo * stride) // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (start + hi * stride) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if size <= 0:
        return 0
    block.madvise(mmap.MADV_DONTNEED, first, size)
    return size


def _address(block: mmap.mmap) -> int:
    return int(np.frombuffer(block, np.uint8, 1).ctypes.data)


def _block_of(array: NDArray[Any]) -> mmap.mmap | None:
    """The reserved block that an array is a view of; None where it is another's memory."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    owner = base.obj if isinstance(base, memoryview) else base
    return owner if isinstance(owner, mmap.mmap) else None


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
