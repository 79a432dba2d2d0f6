"""When a key gets a row, and when it loses it: the options of a row's life, and what follows from them by arithmetic.

Everything here is a function of event time and of content. Nothing knows rows, indexes or sweeps, so that two tables
with the same keys decide alike wherever their rows lie.
"""

from dataclasses import dataclass, replace
from typing import Literal

from infra.errors import ConfigError

NEVER = -(2**31)  # the tick before every tick; as a horizon: nothing is ever expired
FREE = 2**31 - 1  # `last_seen` of a row that nobody has; no tick reaches it
SLACK = 32  # an eviction makes room for 1/32 of the rows at once, so that its scan is paid by as many inserts

Evict = Literal["least-recent", "least-frequent", "smallest-norm"]
_EVICT = ("least-recent", "least-frequent", "smallest-norm")
_MIN_SKETCH = 256


@dataclass(frozen=True, slots=True)
class Policy:
    """When a key gets a row, and when it loses it. Ticks are event time."""

    admit_after: int = 1  # occurrences before a key gets a row, any number; 1: at once, and no sketch is made
    admit_probability: float = 1.0  # or: the chance of a row per occurrence, drawn by hash; 1: at once
    admit_window_ticks: int = 0  # 0: counts never age; else what counts is the running window and the one before
    sketch_bytes: int = 1 << 20  # of the counts of keys not yet admitted; fewer bytes admit more keys too early
    expiry_ticks: int = 0  # 0: never; else a row is absent once last_seen < tick − expiry_ticks
    byte_budget: int = 0  # 0: none; of rows, state, bookkeeping, index and sketch; `row_limit` is what fits
    evict: Evict = "least-recent"  # whom a full table lets go

    def __post_init__(self) -> None:
        wrong = (
            not 1 <= self.admit_after < 2**32,
            not 0.0 < self.admit_probability <= 1.0,
            self.admit_after > 1 and self.admit_probability < 1.0,
            not 0 <= self.admit_window_ticks < 2**31,
            self.sketch_bytes < _MIN_SKETCH,
            not 0 <= self.expiry_ticks < 2**31,
            self.byte_budget < 0,
            self.evict not in _EVICT,
        )
        if any(wrong):
            raise ValueError(f"{self}: counts in [1, 2^32), or a chance in (0, 1], not both; ticks, bytes ≥ 0")

    @property
    def counts(self) -> bool:
        """Whether keys are counted before they are admitted."""
        return self.admit_after > 1

    @property
    def frequency(self) -> bool:
        """Whether each row keeps how often its key occurred."""
        return self.evict == "least-frequent"

    @property
    def loses_rows(self) -> bool:
        """Whether a row can go without being removed, so that it keeps its key, and when that was last seen."""
        return self.expiry_ticks > 0 or self.byte_budget > 0

    @property
    def admits_all(self) -> bool:
        """Whether a key's first occurrence makes its row."""
        return not self.counts and self.admit_probability == 1.0

    def horizon(self, tick: int) -> int:
        """Rows last seen before this tick are absent at `tick`."""
        return max(NEVER, tick - self.expiry_ticks) if self.expiry_ticks else NEVER

    def row_bytes(self, dim: int, state_dim: int) -> int:
        """Bytes of a row: vector, state, place on the free stack; and last seen, key and frequency where kept."""
        return 4 * (dim + state_dim + 1) + 12 * self.loses_rows + 4 * self.frequency

    def row_limit(self, dim: int, state_dim: int, max_rows: int) -> int:
        """How many rows the byte budget allows. Raises ConfigError where not even one fits.

        The index is counted as a power of two of 128-byte pairs of buckets that take 8.5 keys each, and a sixteenth
        more for the last step of its growth. That is an upper bound for any keys that are not crafted, and the same one
        for every implementation, because content depends on it. (The least step is 1 KB: a table of a few rows may hold
        that much more.)
        """
        if not self.byte_budget:
            return max_rows
        left = self.byte_budget - self.counts * self.sketch_bytes
        rows, pairs = 0, 1
        while (index := 128 * (pairs + pairs // 16)) < left:
            rows = max(rows, min(17 * pairs // 2, (left - index) // self.row_bytes(dim, state_dim)))
            pairs *= 2
        if rows < 1:
            raise ConfigError(f"byte_budget {self.byte_budget} holds no row of {dim} + {state_dim} numbers; raise it")
        return min(rows, max_rows)


def room_to_leave(row_limit: int, live: int, new: int, protected: int) -> int:
    """How many rows to evict so that `new` ones fit under `row_limit` beside the `live` ones; none where they fit.

    When an eviction is needed, it leaves row_limit − row_limit // 32 rows after the insert; rows of the keys that are
    in the call itself are never let go.
    """
    if live + new <= row_limit:
        return 0
    return min(live - protected, live + new - (row_limit - row_limit // SLACK))


@dataclass(slots=True)
class Counts:
    """What became of keys since the table was made, cumulative."""

    inserted: int = 0  # rows made by assign
    rejected: int = 0  # occurrences of keys not admitted
    refused: int = 0  # occurrences of keys for which a full table had no room, because one call held too many
    expired: int = 0  # rows; each is counted when its memory is freed or its key returns: exact after a whole sweep
    evicted: int = 0  # rows

    def copy(self) -> "Counts":
        """The same numbers, of an independent table."""
        return replace(self)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held."""

    index: int
    rows: int
    state: int
    bookkeeping: int
    sketch: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.index + self.rows + self.state + self.bookkeeping + self.sketch
