"""The readable reference: the same table over a Python dict. Slow, obvious, and the oracle in tests."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.embedding.base import ABSENT, Rows, as_keys
from infra.embedding.gather import checked_out
from infra.embedding.initial import initial_vectors
from infra.embedding.slab import MAX_ROWS, reserve
from infra.errors import ConfigError


class DictTable:
    """See `base.Table` for every method's contract."""

    def __init__(
        self,
        *,
        slot: str,
        dim: int,
        state_dim: int = 1,
        seed: int = 0,
        init_scale: float,
        state_init: float = 0.0,
        capacity_hint: int = 1024,
        max_rows: int = MAX_ROWS,
    ) -> None:
        if dim < 1 or state_dim < 0 or max_rows < 1:
            raise ValueError(f"slot {slot!r}: dim {dim}, state_dim {state_dim}, max_rows {max_rows}")
        self.slot, self.dim, self.state_dim = slot, dim, state_dim
        self._seed, self._init_scale, self._state_init = seed, init_scale, state_init
        self._max_rows = max_rows
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self._high = 0
        self.values: NDArray[np.float32] = reserve((max_rows, dim), np.float32)
        self.state: NDArray[np.float32] = reserve((max_rows, state_dim), np.float32)
        self.last_seen: NDArray[np.int32] = reserve((max_rows,), np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        return np.array([self._rows.get(key, ABSENT) for key in as_keys(keys).tolist()], np.int32)

    def assign(self, keys: NDArray[np.int64], tick: int) -> NDArray[np.int32]:
        rows = [self._assign_one(key, tick) for key in as_keys(keys).tolist()]
        return np.array(rows, np.int32)

    def _assign_one(self, key: int, tick: int) -> int:
        row = self._rows.get(key)
        if row is not None:
            self.last_seen[row] = max(int(self.last_seen[row]), tick)
            return row
        if not self._free:
            if self._high == self._max_rows:
                raise ConfigError(
                    f"table {self.slot!r} holds {len(self)} rows, its max_rows; raise max_rows or expire rows sooner"
                )
            self._free.append(self._high)
            self._high += 1
        row = self._rows[key] = self._free.pop()
        one = np.array([key], np.int64)
        self.values[row] = initial_vectors(one, self.slot, self._seed, self.dim, self._init_scale)[0]
        self.state[row] = self._state_init
        self.last_seen[row] = tick
        return row

    def gather(self, rows: NDArray[np.int32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        result = checked_out(out, len(rows), self.dim)
        if len(rows) and (rows.min() < ABSENT or rows.max() >= self._high):
            raise ValueError(f"row numbers from {rows.min()} to {rows.max()}; given out: [0, {self._high})")
        for i, row in enumerate(rows.tolist()):
            result[i] = self.values[row] if row != ABSENT else 0.0
        return result

    def lookup(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows = self.find(keys)
        return self.gather(rows), rows >= 0

    def put(
        self, keys: NDArray[np.int64], values: ArrayLike, state: ArrayLike, last_seen: ArrayLike
    ) -> NDArray[np.int32]:
        n = len(keys)
        new_values = np.asarray(values, np.float32).reshape(n, self.dim)
        new_state = np.asarray(state, np.float32).reshape(n, self.state_dim)
        new_seen = np.asarray(last_seen, np.int32).reshape(n)
        rows = self.assign(keys, 0)
        for i, row in enumerate(rows.tolist()):
            self.values[row], self.state[row], self.last_seen[row] = new_values[i], new_state[i], new_seen[i]
        return rows

    def remove(self, keys: NDArray[np.int64]) -> int:
        gone = [self._rows.pop(key) for key in as_keys(keys).tolist() if key in self._rows]
        self._free.extend(gone)
        return len(gone)

    def export(self) -> Rows:
        keys = sorted(self._rows)
        rows = np.array([self._rows[key] for key in keys], np.int32)
        return Rows(np.array(keys, np.int64), self.values[rows], self.state[rows], self.last_seen[rows])

    def digest(self) -> bytes:
        return self.export().digest(self.slot)

    def copy(self) -> "DictTable":
        twin = DictTable(
            slot=self.slot, dim=self.dim, state_dim=self.state_dim, seed=self._seed,
            init_scale=self._init_scale, state_init=self._state_init, max_rows=self._max_rows,
        )  # fmt: skip
        twin.put(*self.export())
        return twin

    def clear(self) -> None:
        self._rows.clear()
        self._free.clear()
        self._high = 0
