"""The face of an embedding table, and the laws that every implementation keeps.

One table per slot: 64-bit keys, one row per key, never shared. A row is a vector (`dim` float32), its optimizer state
(`state_dim` float32) and the tick in which it was last assigned. The laws, held by
`tests/embedding/test_table_contract.py` and `test_table_machine.py`:

1. A lookup never inserts.
2. For any sequence of calls the table agrees with a dict; no two keys share a row.
3. A row keeps its number until it is removed, and the slabs never move: a view of them stays good while it grows.
4. A new row is a function of (seed, slot, key) alone: a key that was evicted and returns, a replica, a replay agree.
5. Where a row lies never reaches the outside: exports are sorted by key, digests are taken over exports. Row numbers
   are handles for this process; nothing may be ordered, cut or hashed by them.

6. Who has a row is a function of the calls' keys and ticks, and never of wall time, of rows, or of what was swept: a
   table restored from its export and its admission, with its rows elsewhere, goes on to exactly the same content.

A table has one writer and no lock; `ServingTable` is the one that threads may read while it changes.
"""

import hashlib
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.embedding.life.admission import Sketch
from infra.embedding.life.policy import FREE, NEVER, Counts, Memory, Policy

ABSENT = -1  # the row number of an absent key
_NO_TICKS = np.empty(0, np.int32)
_NO_FREQUENCY = np.empty(0, np.uint32)


class Rows(NamedTuple):
    """Whole rows, n of them, sorted by key."""

    keys: NDArray[np.int64]  # (n,)
    values: NDArray[np.float32]  # (n, dim)
    state: NDArray[np.float32]  # (n, state_dim)
    last_seen: NDArray[np.int32] = _NO_TICKS  # (n,); (0,) where not kept
    frequency: NDArray[np.uint32] = _NO_FREQUENCY  # (n,) occurrences since the row was made; (0,) where not kept

    def digest(self, slot: str) -> bytes:
        """32 bytes that name this content: blake2b over slot, shapes, and the arrays as little-endian bytes."""
        n, dim = self.values.shape
        h = hashlib.blake2b(f"{slot}/{n}/{dim}/{self.state.shape[1]}\n".encode(), digest_size=32)
        h.update(np.ascontiguousarray(self.keys, "<i8").data)
        h.update(np.ascontiguousarray(self.values, "<f4").data)
        h.update(np.ascontiguousarray(self.state, "<f4").data)
        h.update(np.ascontiguousarray(self.last_seen, "<i4").data)
        h.update(np.ascontiguousarray(self.frequency, "<u4").data)
        return h.digest()


def digest_of(slot: str, rows: Rows, admission: Sketch | None) -> bytes:
    """The digest of rows, and of the counts of keys not yet admitted where there are any kept."""
    if admission is None:
        return rows.digest(slot)
    h = hashlib.blake2b(rows.digest(slot), digest_size=32)
    for name, tensor in admission.export().items():
        h.update(f"{name}/{len(tensor)}\n".encode())
        h.update(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).data)
    return h.digest()


class Table(Protocol):
    """What `EmbeddingTable` and its readable reference `DictTable` both are."""

    slot: str
    dim: int
    state_dim: int
    policy: Policy
    # The slabs: (max_rows, …) views of reserved address space, of which only touched pages take memory. Index them by
    # row numbers; never copy or reduce them whole. `last_seen` is the table's to write, and kept only where rows can
    # go: of length 0 where the policy has neither expiry nor budget.
    values: NDArray[np.float32]
    state: NDArray[np.float32]
    last_seen: NDArray[np.int32]
    tick: int  # event time now; before every tick at first
    row_limit: int  # rows that the byte budget allows, max_rows where there is none
    counts: Counts

    @property
    def admission(self) -> Sketch | None:
        """Counts of keys that have no row yet; None where the policy counts none."""

    def __len__(self) -> int:
        """Rows present."""

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Row of each key, -1 where it is absent or has expired. Never inserts."""

    def assign(
        self, keys: NDArray[np.int64], tick: int, occurrences: NDArray[np.int64] | None = None
    ) -> NDArray[np.int32]:
        """Row of each key, made where it was absent: initial vector, `state_init`. Equal keys share one row.

        `last_seen`, where kept, becomes the greater of itself and `tick`; so does the table's tick, before all else.
        `occurrences` (n,) says how often each key occurred, 1 if None; those of equal keys add up.

        An absent key gets -1 where it is not admitted. Where there is a byte budget and rows would exceed `row_limit`,
        the least by (score, key) are evicted first, down to row_limit − row_limit // 32 after the insert, never one
        whose key is in this call; new keys that exceed `row_limit` all the same get -1, the greatest first. Without a
        budget, raises ConfigError at the first key for which no row is left; those before it are in.
        """

    def lookup_or_insert(
        self,
        keys: NDArray[np.int64],
        tick: int,
        occurrences: NDArray[np.int64] | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Vectors (n, dim), in `out` if given, and rows (n,): `gather` of what `assign` returns, in one pass."""

    def gather(self, rows: NDArray[np.int32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Vectors (n, dim) of row numbers; -1 reads as zeros. Raises ValueError on a number never given out."""

    def lookup(
        self, keys: NDArray[np.int64], out: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors (n, dim), in `out` if given, and found (n,); absent keys read as zeros. Never inserts."""

    def put(
        self,
        keys: NDArray[np.int64],
        values: ArrayLike,
        state: ArrayLike,
        last_seen: ArrayLike | None = None,
        frequency: ArrayLike | None = None,
    ) -> NDArray[np.int32]:
        """Upsert whole rows, (n, dim), (n, state_dim), (n,) and (n,); of equal keys the last one counts.

        Admits every key and moves no tick. Rows that then exceed `row_limit` are evicted as by an assign, whosever.
        Raises ConfigError, and changes nothing, where rows would exceed `max_rows`.
        None or length 0 is unknown: `last_seen` is the table's tick then (ValueError, and nothing changed, where rows
        expire and there was no tick yet), a frequency 1, where the table keeps one.
        """

    def remove(self, keys: NDArray[np.int64]) -> int:
        """Forget keys; how many were present. Their row numbers may be given out again."""

    def advance(self, tick: int) -> None:
        """Event time moves on to `tick`: rows last seen too long before it are absent. ValueError if it goes back."""

    def sweep(self, limit: int | None = None) -> int:
        """Free the memory of expired rows, `limit` at most; how many. What is absent does not change."""

    def take_tombstones(self) -> NDArray[np.int64]:
        """Keys that lost their row since the last call (expired, evicted or removed) and have none now; sorted."""

    def compact(self) -> int:
        """Renumber rows without gaps and give memory back; how many numbers that saved. Older row numbers are void."""

    def export(self) -> Rows:
        """A copy of all rows, sorted by key."""

    def pick(self, keys: NDArray[np.int64]) -> Rows:
        """A copy of the whole rows of those keys that are present, in the order of `keys`."""

    def digest(self) -> bytes:
        """32 bytes that name the content: rows, and the counts of keys not yet admitted."""

    def memory(self) -> Memory:
        """Bytes held."""

    def copy(self) -> "Table":
        """An independent table with the same content and options."""

    def clear(self) -> None:
        """Become as new: no keys, nothing counted, before every tick. Slabs stay, the cumulative `counts` go on."""


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


def as_tick(tick: int) -> int:
    """The tick as a plain int. Raises ValueError where `last_seen` could not hold it."""
    if not NEVER <= tick < FREE:
        raise ValueError(f"tick {tick} is not in [{NEVER}, {FREE})")
    return int(tick)


def as_occurrences(occurrences: NDArray[np.int64] | None, n: int) -> NDArray[np.int64]:
    """Occurrences (n,) int64, each at least 1. Raises ValueError on others."""
    if occurrences is None:
        return np.ones(n, np.int64)
    counted = as_keys(np.asarray(occurrences))
    if len(counted) != n or (n and counted.min() < 1):
        raise ValueError(f"occurrences {counted.shape} of {n} keys; each is at least 1")
    return counted


def as_last_seen(last_seen: ArrayLike | None, n: int, tick: int, policy: Policy) -> NDArray[np.int32]:
    """The ticks (n,) of n rows; `tick` for each where they are unknown: None, or of length 0.

    Raises ValueError where they are unknown, may expire, and `tick` is NEVER: all would go with the first tick to come.
    """
    if last_seen is None or not np.size(last_seen):
        if n and tick == NEVER and policy.expiry_ticks:
            raise ValueError(f"{n} rows of unknown age, and no tick yet: advance the table first, or give last_seen")
        return np.full(n, tick, np.int32)
    return np.asarray(last_seen, np.int32).reshape(n)
