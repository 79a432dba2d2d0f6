"""The face of an embedding table, and the laws that every implementation keeps.

One table per slot: 64-bit keys, one row per key, never shared. A row is a vector (`dim` float32), its optimizer state
(`state_dim` float32) and the tick in which it was last assigned. The laws, held by `tests/embedding/test_contract.py`:

1. A lookup never inserts.
2. For any sequence of calls the table agrees with a dict; no two keys share a row.
3. A row keeps its number until it is removed, and the slabs never move: a view of them stays good while it grows.
4. A new row is a function of (seed, slot, key) alone: a key that was evicted and returns, a replica, a replay agree.
5. Where a row lies never reaches the outside: exports are sorted by key, digests are taken over exports. Row numbers
   are handles for this process; nothing may be ordered, cut or hashed by them.

A table has one writer and no lock; `ServingTable` is the one that threads may read while it changes.
"""

import hashlib
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

ABSENT = -1  # the row number of an absent key


class Rows(NamedTuple):
    """Whole rows, n of them, sorted by key."""

    keys: NDArray[np.int64]  # (n,)
    values: NDArray[np.float32]  # (n, dim)
    state: NDArray[np.float32]  # (n, state_dim)
    last_seen: NDArray[np.int32]  # (n,) ticks

    def digest(self, slot: str) -> bytes:
        """32 bytes that name this content: blake2b over slot, shapes, and the arrays as little-endian bytes."""
        n, dim = self.values.shape
        h = hashlib.blake2b(f"{slot}/{n}/{dim}/{self.state.shape[1]}\n".encode(), digest_size=32)
        h.update(np.ascontiguousarray(self.keys, "<i8").data)
        h.update(np.ascontiguousarray(self.values, "<f4").data)
        h.update(np.ascontiguousarray(self.state, "<f4").data)
        h.update(np.ascontiguousarray(self.last_seen, "<i4").data)
        return h.digest()


class Table(Protocol):
    """What `EmbeddingTable` and its readable reference `DictTable` both are."""

    slot: str
    dim: int
    state_dim: int
    # The slabs: (max_rows, …) views of reserved address space, of which only touched pages take memory. Index them by
    # row numbers; never copy or reduce them whole.
    values: NDArray[np.float32]
    state: NDArray[np.float32]
    last_seen: NDArray[np.int32]

    def __len__(self) -> int:
        """Rows present."""

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Row of each key, -1 where it is absent. Never inserts."""

    def assign(self, keys: NDArray[np.int64], tick: int) -> NDArray[np.int32]:
        """Row of each key, made where it was absent: initial vector, `state_init`. Equal keys share one row.

        `last_seen` becomes the greater of itself and `tick`. Raises ConfigError at the first key for which no row is
        left; those before it are in.
        """

    def gather(self, rows: NDArray[np.int32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Vectors (n, dim) of row numbers; -1 reads as zeros. Raises ValueError on a number never given out."""

    def lookup(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors (n, dim) and found (n,); absent keys read as zeros. Never inserts."""

    def put(
        self, keys: NDArray[np.int64], values: ArrayLike, state: ArrayLike, last_seen: ArrayLike
    ) -> NDArray[np.int32]:
        """Upsert whole rows, (n, dim), (n, state_dim) and (n,); of equal keys the last one counts."""

    def remove(self, keys: NDArray[np.int64]) -> int:
        """Forget keys; how many were present. Their row numbers may be given out again."""

    def export(self) -> Rows:
        """A copy of all rows, sorted by key."""

    def digest(self) -> bytes:
        """`Rows.digest` of the export."""

    def copy(self) -> "Table":
        """An independent table with the same content and options."""

    def clear(self) -> None:
        """Forget all keys; the slabs stay where they are."""


def as_keys(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same keys as a contiguous, writable int64 vector, so that kernels are compiled for one type only."""
    if keys.dtype == np.int64 and keys.ndim == 1 and keys.flags.carray:
        return keys
    if keys.dtype.kind not in "iu" and keys.size:
        raise ValueError(f"keys are {keys.dtype}; a table takes int64")
    return np.array(keys, dtype=np.int64).reshape(-1)


def as_rows(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """The same row numbers as a contiguous, writable int32 vector."""
    if rows.dtype == np.int32 and rows.ndim == 1 and rows.flags.carray:
        return rows
    return np.array(rows, dtype=np.int32).reshape(-1)
