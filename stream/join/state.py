"""The joiner's arrays and their growth: what `stream.join.kernels` works on.

Room is made before a record's rows are applied, so that kernels never grow anything. Sizes follow what is open in the
window of event time: back-pressure bounds how fast rows come, `late_ms` how long ids stay.
"""

import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.columns import I64, U8, Lists
from stream.events import EventColumns
from stream.examples import EMPTY, ExampleColumns
from stream.join import kernels as k

_SLOTS = 1 << 12  # first size of the id table: half of it may be filled
_RING = 1 << 6


class JoinState:
    """Pending impressions, known ids and waiting engagements of one partition."""

    def __init__(self, timing: I64) -> None:
        self._timing = timing
        self._table = np.full(_SLOTS, -1, dtype=np.int64)
        self._records = np.empty((_SLOTS // 2, k.R_WIDTH), dtype=np.int64)
        self._pending = np.empty((256, k.P_WIDTH), dtype=np.int64)
        self._history: I64 = np.empty(8_192, dtype=np.int64)
        self._items: I64 = np.empty(8_192, dtype=np.int64)
        self._labels: U8 = np.empty(8_192, dtype=np.uint8)
        self._waiting = np.empty((_RING, k.W_WIDTH), dtype=np.int64)
        self._scalars = np.zeros(k.S_WIDTH, dtype=np.int64)
        self._scalars[[k.S_W, k.S_W_BEFORE]] = k.NO_WATERMARK
        self._scalars[k.S_SECRET] = secrets.randbits(62)
        self.counts = np.zeros(k.C_WIDTH, dtype=np.int64)

    @property
    def watermark_ms(self) -> int:
        """W after the row applied last."""
        return int(self._scalars[k.S_W])

    @watermark_ms.setter
    def watermark_ms(self, value: int) -> None:
        self._scalars[[k.S_W, k.S_W_BEFORE]] = value

    @property
    def before_ms(self) -> int:
        """W before the row applied last."""
        return int(self._scalars[k.S_W_BEFORE])

    def waiting(self) -> dict[str, int]:
        """Impressions that have not left; engagements that joined them or came before their impression."""
        fill = self._scalars
        numbers = np.arange(fill[k.S_WAIT_LO], fill[k.S_WAIT_HI])
        early = self._waiting[numbers & (len(self._waiting) - 1), k.W_OPEN].sum()
        joined = np.bitwise_count(self._labels[: fill[k.S_ITEMS]]).sum()
        return {"impressions": int(fill[k.S_PENDING]), "engagements": int(joined) + int(early)}

    def apply(self, offset: int, events: EventColumns, lo: int, hi: int, *, apart: bool = False) -> int:
        """Apply rows lo:hi up to and including the first that closes a tick; the next row. `reserve` comes before.

        `apart`: row i is all of the record at offset + i.
        """
        row: int = k.apply_rows(
            self._table,
            self._records,
            self._pending,
            self._history,
            self._items,
            self._labels,
            self._waiting,
            self._scalars,
            self.counts,
            self._timing,
            events.kind,
            events.ingested_ms,
            events.time_ms,
            events.impression,
            events.user,
            events.item,
            events.action,
            events.history.offsets,
            events.history.values,
            events.items.offsets,
            events.items.values,
            offset,
            int(apart),
            lo,
            hi,
        )
        return row

    def due(self, closed: int) -> tuple[I64, ExampleColumns]:
        """Close ticks (n,) and columns of the pending impressions that close up to `closed`, by (tick, position)."""
        pending = self._pending[: self._scalars[k.S_PENDING]]
        close = pending[:, k.P_CLOSE]
        rows = np.flatnonzero(close <= closed)
        if not len(rows):
            return close[:0], EMPTY
        rows = rows[np.argsort(close[rows], kind="stable")]
        h_offsets, h_values, i_offsets, i_values, bits = k.gather(
            self._pending, self._history, self._items, self._labels, rows
        )
        fields = np.ascontiguousarray(self._pending[rows].T)
        examples = ExampleColumns(
            impression=fields[k.P_IMPRESSION],
            user=fields[k.P_USER],
            shown_ms=fields[k.P_SHOWN],
            offset=fields[k.P_OFFSET],
            row=fields[k.P_ROW].astype(np.int32),
            first_engaged_ms=fields[k.P_FIRST],
            history=Lists(h_offsets, h_values),
            items=Lists(i_offsets, i_values),
            labels=Lists(i_offsets, bits),
        )
        return fields[k.P_CLOSE], examples

    def drop_closed(self, closed: int) -> None:
        """Forget the impressions that `due` gave."""
        k.drop_closed(self._records, self._pending, self._history, self._items, self._labels, self._scalars, closed)

    def reserve(self, events: EventColumns) -> None:
        """Make room for a record's rows."""
        n, fill = len(events), self._scalars
        if fill[k.S_RECORDS] + n > len(self._records):
            self._purge(n)
        if fill[k.S_PENDING] + n > len(self._pending):
            self._pending = _grown(self._pending, int(fill[k.S_PENDING]), n)
        if fill[k.S_HISTORY] + len(events.history.values) > len(self._history):
            self._history = _grown(self._history, int(fill[k.S_HISTORY]), len(events.history.values))
        if fill[k.S_ITEMS] + len(events.items.values) > len(self._items):
            self._labels = _grown(self._labels, int(fill[k.S_ITEMS]), len(events.items.values))
            self._items = _grown(self._items, int(fill[k.S_ITEMS]), len(events.items.values))
        if fill[k.S_WAIT_HI] + n - fill[k.S_WAIT_LO] > len(self._waiting):
            self._widen_ring(n)

    def _purge(self, n: int) -> None:
        """Drop expired ids; grow where what stays would fill more than a quarter of the table."""
        records = self._records[: self._scalars[k.S_RECORDS]]
        stays = (records[:, k.R_EXPIRY] > self.watermark_ms) | (records[:, k.R_HEAD] >= 0)
        size = len(self._table)
        while (int(stays.sum()) + n) * 4 > size:
            size *= 2
        table = np.full(size, -1, dtype=np.int64)
        fresh = np.empty((size // 2, k.R_WIDTH), dtype=np.int64)
        k.purge(self._table, self._records, self._pending, self._waiting, self._scalars, table, fresh)
        self._table, self._records = table, fresh

    def _widen_ring(self, n: int) -> None:
        lo, hi = int(self._scalars[k.S_WAIT_LO]), int(self._scalars[k.S_WAIT_HI])
        size = len(self._waiting)
        while hi - lo + n > size:
            size *= 2
        ring = np.empty((size, k.W_WIDTH), dtype=np.int64)
        numbers = np.arange(lo, hi)
        ring[numbers & (size - 1)] = self._waiting[numbers & (len(self._waiting) - 1)]
        self._waiting = ring


def malformed_rows(events: EventColumns) -> I64:
    """Rows that the kernels count as `malformed`: the same rule, over columns."""
    ingested, time, n_items = events.ingested_ms, events.time_ms, events.items.lengths
    bad = (events.kind > 2) | (ingested < 0) | (ingested > k.TIME_LIMIT) | (np.abs(time) > k.TIME_LIMIT)
    bad |= (events.kind == 1) & (events.action > 7)
    bad |= (events.kind == 0) & (n_items == 0)
    return np.flatnonzero(bad)


def _grown(array: NDArray[Any], fill: int, more: int) -> NDArray[Any]:
    """A larger copy: at least double."""
    size = max(2 * len(array), fill + more)
    out = np.empty((size, *array.shape[1:]), dtype=array.dtype)
    out[:fill] = array[:fill]
    return out
