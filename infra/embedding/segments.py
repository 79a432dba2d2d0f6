"""One slot, several segments in a row: a bias with its rule beside a vector with another, the vector only when it pays.

A segment is a few columns of the row with their own initializer and optimizer state. Segments with `admit_after` 1
make up the base row, which every admitted key has. Others are *grown*: they lie in further tables with the same keys,
one for each threshold, so that a rare key costs the small row only.

    table ""        keys → [bias | …]            state [bias's | … | occurrences]
    table "vector"  keys → [vector | …]          state [vector's | …]        only keys that occurred admit_after times

Laws, beside those of `base.Table`, which hold for each table and so for the whole:

1. A grown row without its base row is never seen: it goes when the base row is evicted or removed, expires no later,
   and a base row that is made anew finds none.
2. A grown row is made by `assign` alone, once its key has occurred `admit_after` times *since its base row was made*,
   the call that made it included. The count is one float32 beside the base row's state: exact to 2^24, exported,
   restored and lost with the row. A sketch was decided against: it cannot forget a key when its base row goes.
3. A segment's initial vector is a function of (seed, slot, group, column, key).
4. Where a grown table is full, its own least rows go and the base rows stay: such a key reads as zeros in the grown
   columns until it returns, then as its initial vector.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from infra.embedding.base import ABSENT, Rows, Table, as_keys, as_occurrences
from infra.embedding.cuckoo import EmbeddingTable
from infra.embedding.gather import checked_out
from infra.embedding.layout import BASE, MOST, Columns, Segment, groups_of, options_of, place_of, policies_of
from infra.embedding.life.admission import Sketch
from infra.embedding.life.expiry import Tombstones
from infra.embedding.life.policy import Counts, Memory, Policy
from infra.embedding.slab import MAX_ROWS

Keys = NDArray[np.int64]
GroupRows = Mapping[str, NDArray[np.int32]]  # group → row numbers (n,), -1 where the key has no row there

_U = np.uint64


class SegmentedTable:
    """One slot's tables: "" for the base rows, and one for each threshold above 1, named by its first segment.

    `policy` is the base rows'; the grown ones take over its expiry and its choice of whom to evict. Of its byte budget
    the grown tables get `grown_share`, in equal parts. `make` makes the tables; tests pass the reference.
    """

    def __init__(
        self,
        *,
        slot: str,
        segments: Sequence[Segment],
        seed: int = 0,
        policy: Policy | None = None,
        grown_share: float = 0.5,
        capacity_hint: int = 1024,
        max_rows: int = MAX_ROWS,
        index_seed: int = 0,
        make: Callable[..., Table] = EmbeddingTable,
    ) -> None:
        self.slot, self.segments, self.policy = slot, tuple(segments), policy or Policy()
        self.dim = sum(s.dim for s in segments)
        groups = groups_of(slot, self.segments)
        self._grows = {g: members[0].admit_after for g, members in groups.items() if g != BASE}
        self._columns = {
            s.name: place_of(g, members, i) for g, members in groups.items() for i, s in enumerate(members)
        }
        if not 0.0 < grown_share < 1.0:
            raise ValueError(f"slot {slot!r}: grown_share is {grown_share}; it must be in (0, 1)")
        policies = policies_of(self.policy, list(self._grows), grown_share)
        self.tables: dict[str, Table] = {
            group: make(
                slot=f"{slot}+{group}" if group else slot, seed=seed, policy=policies[group],
                capacity_hint=0 if group else capacity_hint, max_rows=max_rows, index_seed=index_seed,
                **options_of(members, counted=bool(self._grows) and not group),
            )
            for group, members in groups.items()
        }  # fmt: skip
        self._gone = Tombstones()  # of the base rows, taken from their table and not yet from here
        self._evicted = 0  # base rows whose grown rows have been dropped

    def __len__(self) -> int:
        """Base rows present."""
        return len(self._base)

    @property
    def _base(self) -> Table:
        return self.tables[BASE]

    @property
    def tick(self) -> int:
        """Event time now."""
        return self._base.tick

    @property
    def admission(self) -> Sketch | None:
        """Counts of keys that have no base row yet."""
        return self._base.admission

    @property
    def counts(self) -> dict[str, Counts]:
        """What became of keys, by group. A grown row that went with its base row counts as none of these."""
        return {group: table.counts for group, table in self.tables.items()}

    def columns(self, name: str) -> Columns:
        """Where the segment `name` lies. KeyError where there is none."""
        return self._columns[name]

    # --- reading ------------------------------------------------------------------------------------------------

    def find(self, keys: Keys) -> dict[str, NDArray[np.int32]]:
        """Row numbers (n,) by group, -1 where absent. Never inserts."""
        keys = as_keys(keys)
        rows = {group: table.find(keys) for group, table in self.tables.items()}
        for group in self._grows:
            rows[group][rows[BASE] < 0] = ABSENT
        return rows

    def gather(self, rows: GroupRows, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Vectors (n, dim), segments side by side in their order; zeros where a segment is absent."""
        if len(self.tables) == 1:
            return self._base.gather(rows[BASE], out)
        result = checked_out(out, len(rows[BASE]), self.dim)
        parts = {group: table.gather(rows[group]) for group, table in self.tables.items()}
        to = 0
        for segment in self.segments:
            group, at, dim, _, _ = self._columns[segment.name]
            result[:, to : to + dim] = parts[group][:, at : at + dim]
            to += dim
        return result

    def lookup(self, keys: Keys) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors (n, dim), and found (n,): whether there is a base row. Never inserts."""
        rows = self.find(keys)
        return self.gather(rows), rows[BASE] >= 0

    # --- rows come ----------------------------------------------------------------------------------------------

    def assign(
        self, keys: Keys, tick: int, occurrences: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[np.int32]]:
        """Row numbers (n,) by group, made where they are due; see `base.Table.assign`, and the laws above."""
        keys = as_keys(keys)
        if not self._grows:
            return {BASE: self._base.assign(keys, tick, occurrences)}
        often = as_occurrences(occurrences, len(keys))
        base = self._base.assign(keys, tick, often)
        rows = {BASE: base}
        count, fresh = np.zeros(len(keys), np.float32), np.zeros(len(keys), np.bool_)
        _count(self._base.state, self._base.state_dim - 1, base, often, count, fresh)
        self._follow(keys[fresh])
        for group, enough in self._grows.items():
            due = count >= enough
            rows[group] = np.full(len(keys), ABSENT, np.int32)
            rows[group][due] = self.tables[group].assign(keys[due], tick, often[due])
        return rows

    def put(
        self,
        group: str,
        keys: Keys,
        values: ArrayLike,
        state: ArrayLike,
        last_seen: ArrayLike | None = None,
        frequency: ArrayLike | None = None,
    ) -> None:
        """Upsert whole rows of one group, as `export` has them, the base first. ValueError where a base row lacks."""
        if group != BASE and (self._base.find(keys) < 0).any():
            raise ValueError(f"slot {self.slot!r}: rows of {group!r} without their base rows")
        self.tables[group].put(keys, values, state, last_seen, frequency)
        self._follow(keys[:0])

    # --- rows go ------------------------------------------------------------------------------------------------

    def _follow(self, fresh: Keys) -> None:
        """Drop the grown rows of base rows that were evicted, and what may be left of keys whose base row is new."""
        gone = fresh
        if self._grows and self._base.counts.evicted != self._evicted:
            self._evicted = self._base.counts.evicted
            buried = self._base.take_tombstones()
            self._gone.add(buried)
            gone = np.concatenate((gone, buried))
        if len(gone):
            for group in self._grows:
                self.tables[group].remove(gone)

    def remove(self, keys: Keys) -> int:
        """Forget keys, in every group; how many had a base row."""
        for group in self._grows:
            self.tables[group].remove(keys)
        return self._base.remove(keys)

    def advance(self, tick: int) -> None:
        """Event time moves on to `tick`. ValueError if it goes back."""
        self._base.advance(tick)
        for group in self._grows:
            self.tables[group].advance(tick)

    def sweep(self, limit: int | None = None) -> int:
        """Free the memory of expired rows, `limit` a group at most; how many in all. Decides nothing."""
        return sum(table.sweep(limit) for table in self.tables.values())

    def take_tombstones(self) -> dict[str, Keys]:
        """By group, keys that lost their row there since the last call and have none now; sorted."""
        if not self._grows:
            return {BASE: self._base.take_tombstones()}
        buried = self._base.take_tombstones()
        self._gone.add(buried)
        for group in self._grows:
            self.tables[group].remove(buried)
        gone = {group: self.tables[group].take_tombstones() for group in self._grows}
        return {BASE: self._gone.take(self._base.find)} | gone

    def compact(self) -> int:
        """Renumber rows without gaps; how many numbers that saved. Older row numbers are void."""
        return sum(table.compact() for table in self.tables.values())

    # --- the whole ----------------------------------------------------------------------------------------------

    def export(self) -> dict[str, Rows]:
        """A copy of all rows by group, the base first, each sorted by key."""
        exported = {group: table.export() for group, table in self.tables.items()}
        for group in self._grows:
            rows = exported[group]
            here = self._base.find(rows.keys) >= 0
            seen = rows.last_seen[here] if len(rows.last_seen) else rows.last_seen
            often = rows.frequency[here] if len(rows.frequency) else rows.frequency
            exported[group] = Rows(rows.keys[here], rows.values[here], rows.state[here], seen, often)
        return exported

    def digest(self) -> bytes:
        """32 bytes that name the content; of a slot without grown segments, those of its one table."""
        if not self._grows:
            return self._base.digest()
        h = hashlib.blake2b(self._base.digest(), digest_size=32)
        exported = self.export()
        for group in self._grows:
            h.update(exported[group].digest(self.tables[group].slot))
        return h.digest()

    def memory(self) -> dict[str, Memory]:
        """Bytes held by group."""
        return {group: table.memory() for group, table in self.tables.items()}

    def copy(self) -> "SegmentedTable":
        """An independent table with the same content and options."""
        twin = SegmentedTable.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.tables = {group: table.copy() for group, table in self.tables.items()}
        twin._gone = self._gone.copy()
        return twin

    def clear(self) -> None:
        """Become as new; the slabs stay where they are."""
        for table in self.tables.values():
            table.clear()
        self._gone = Tombstones()


@njit(cache=True, nogil=True)
def _count(
    state: NDArray[np.float32],
    column: int,
    rows: NDArray[np.int32],
    occurrences: NDArray[np.int64],
    count: NDArray[np.float32],
    fresh: NDArray[np.bool_],
) -> None:
    """Add occurrences (n,) to state[rows, column]; what they are after the call, and which rows were new in it."""
    for i in range(len(rows)):
        row = rows[_U(i)]
        if row >= 0:
            fresh[_U(i)] = state[_U(row), _U(column)] == 0
            total = np.int64(state[_U(row), _U(column)]) + min(occurrences[_U(i)], MOST)
            state[_U(row), _U(column)] = min(total, MOST)
    for i in range(len(rows)):
        if rows[_U(i)] >= 0:
            count[_U(i)] = state[_U(rows[_U(i)]), _U(column)]
