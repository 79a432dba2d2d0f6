"""How a replica keeps its rows: float32 as trained, float16, or int8 with a scale; always read as float32.

A `Store` is a heap of `max_rows` slots, reserved and not yet taken, that is written by slot and read by key. Errors by
precision are stated, and tested, in `half` and `quantize`. Bytes a row of dimension 16: 64, 32, 20.
"""

from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from infra.embedding.gather import checked_out, gather_rows
from infra.embedding.index.index import CuckooIndex
from infra.embedding.served.half import look_up_half, to_half
from infra.embedding.served.quantize import look_up_int8, row_bytes, to_int8
from infra.embedding.slab import reserve

Precision = Literal["float16", "float32", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Store(Protocol):
    """Rows of one dimension at one precision."""

    dim: int
    row_bytes: int

    def write(self, slots: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Put values (n, dim) into slots (n,), rounded to what the store keeps."""

    def look_up(
        self, index: CuckooIndex, high: int, keys: NDArray[np.int64], out: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Rows of keys (n, dim), zeros where absent. `high`: slots that the index may name lie in [0, high)."""


def make_store(precision: Precision, dim: int, max_rows: int) -> Store:
    """An empty store. Raises ValueError on a precision it does not know."""
    if dim < 1 or precision not in _STORES:
        raise ValueError(f"dim {dim}, precision {precision!r}: rows are served as {', '.join(_STORES)}")
    return _STORES[precision](dim, max_rows)


class SingleRows:
    """float32: what was trained, bit for bit."""

    def __init__(self, dim: int, max_rows: int) -> None:
        self.dim, self.row_bytes = dim, 4 * dim
        self._heap: NDArray[np.float32] = reserve((max_rows, dim), np.float32)

    def write(self, slots: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        self._heap[slots] = values

    def look_up(
        self, index: CuckooIndex, high: int, keys: NDArray[np.int64], out: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        return gather_rows(self._heap, high, index.find(keys), out)


class HalfRows:
    """float16."""

    def __init__(self, dim: int, max_rows: int) -> None:
        self.dim, self.row_bytes = dim, 2 * dim
        self._heap: NDArray[np.uint16] = reserve((max_rows, dim), np.uint16)

    def write(self, slots: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        self._heap[slots] = to_half(values)

    def look_up(
        self, index: CuckooIndex, high: int, keys: NDArray[np.int64], out: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        result = checked_out(out, len(keys), self.dim)
        look_up_half(index.words, index.cells, index.head, keys, self._heap, result)
        return result


class ByteRows:
    """int8 and a scale a row."""

    def __init__(self, dim: int, max_rows: int) -> None:
        self.dim, self.row_bytes = dim, row_bytes(dim)
        self._heap: NDArray[np.int8] = reserve((max_rows, self.row_bytes), np.int8)

    def write(self, slots: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        self._heap[slots] = to_int8(values)

    def look_up(
        self, index: CuckooIndex, high: int, keys: NDArray[np.int64], out: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        result = checked_out(out, len(keys), self.dim)
        look_up_int8(index.words, index.cells, index.head, keys, self._heap, result)
        return result


_STORES: dict[str, type[SingleRows] | type[HalfRows] | type[ByteRows]] = {
    "float16": HalfRows,
    "float32": SingleRows,
    "int8": ByteRows,
}
