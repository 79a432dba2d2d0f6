"""Kernels of the counters: one decay for everything, counting, upserting, reading.

    row: values f32 (shown_fast, clicked_fast, shown_slow, clicked_slow) as of last_tick i32; first_tick i32

The decay multiplies correctly rounded powers of two in a fixed order, so counters are equal on every machine.
"""

from decimal import Context, Decimal
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream.features.keys import distinct_into, put_row, row_of
from stream.outcomes import LEFT_OUT, POSITIVE

Floats = NDArray[np.float32]
# A factor below this is zero: after 60 half-lives nothing of a float32 count is left, and denormals are slow.
_NEGLIGIBLE = 2.0**-60
_TICK_BITS = 31


@lru_cache(maxsize=16)
def powers(half_lives_ms: tuple[int, int], tick_ms: int) -> NDArray[np.float64]:
    exact = Context(prec=40)
    table = np.empty((2, _TICK_BITS))
    for i, half_life_ms in enumerate(half_lives_ms):
        for bit in range(_TICK_BITS):
            exponent = exact.divide(Decimal(-tick_ms << bit), Decimal(half_life_ms))
            table[i, bit] = float(exact.power(Decimal(2), exponent)) if exponent > -1_000 else 0.0
    return table


@njit(cache=True, nogil=True)
def decay_factor(ticks: int, powers: NDArray[np.float64]) -> float:
    """2^(-ticks / half-life), from powers[j] = 2^(-2^j / half-life): a product over the bits of `ticks`."""
    factor = 1.0
    bit = 0
    while ticks > 0:
        if ticks & 1:
            factor *= powers[bit]
        ticks >>= 1
        bit += 1
    return factor if factor >= _NEGLIGIBLE else 0.0


@njit(cache=True, nogil=True)
def decayed(
    values: Floats, last_tick: NDArray[np.int32], row: int, tick: int, powers: NDArray[np.float64]
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """A row's (shown_fast, clicked_fast, shown_slow, clicked_slow) as of `tick`; row -1 is zeros."""
    if row < 0:
        return np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    ticks = tick - last_tick[row]
    fast = decay_factor(ticks, powers[0])
    slow = decay_factor(ticks, powers[1])
    return (
        np.float32(values[row, 0] * fast),
        np.float32(values[row, 1] * fast),
        np.float32(values[row, 2] * slow),
        np.float32(values[row, 3] * slow),
    )


@njit(cache=True, nogil=True)
def tally(keys: NDArray[np.int64], labels: NDArray[np.uint8]) -> tuple[Any, Any, Any]:
    unique = np.empty(len(keys), np.int64)
    index = np.empty(len(keys), np.int64)
    n = distinct_into(keys, np.bool_(False), unique, index)
    shown = np.zeros(n, np.int64)
    clicked = np.zeros(n, np.int64)
    for i in range(len(keys)):
        if labels[i] & LEFT_OUT:
            continue  # neither shown in vain nor clicked
        shown[index[i]] += 1
        clicked[index[i]] += labels[i] & POSITIVE
    return unique[:n].copy(), shown, clicked


@njit(cache=True, nogil=True)
def roll_up(keys: NDArray[np.int64], shown: NDArray[np.int64], clicked: NDArray[np.int64]) -> tuple[Any, Any, Any]:
    unique = np.empty(len(keys), np.int64)
    index = np.empty(len(keys), np.int64)
    n = distinct_into(keys, np.bool_(True), unique, index)
    total_shown = np.zeros(n, np.int64)
    total_clicked = np.zeros(n, np.int64)
    for i in range(len(keys)):
        if index[i] >= 0:
            total_shown[index[i]] += shown[i]
            total_clicked[index[i]] += clicked[i]
    return unique[:n].copy(), total_shown, total_clicked


@njit(cache=True, nogil=True)
def update_rows(
    tick: int,
    keys: NDArray[np.int64],
    shown: NDArray[np.int64],
    clicked: NDArray[np.int64],
    n: int,
    slots: NDArray[np.int32],
    table_keys: NDArray[np.int64],
    values: Floats,
    last_tick: NDArray[np.int32],
    first_tick: NDArray[np.int32],
    powers: NDArray[np.float64],
) -> tuple[int, Any, Any, Any]:
    out_values = np.empty((len(keys), 4), np.float32)
    out_last = np.empty(len(keys), np.int32)
    out_first = np.empty(len(keys), np.int32)
    for i in range(len(keys)):
        row = row_of(keys[i], slots, table_keys)
        if row < 0:
            row = n
            n += 1
            put_row(keys[i], row, slots, table_keys)
            for j in range(4):
                values[row, j] = np.float32(0.0)
            first_tick[row] = tick
            last_tick[row] = tick
        a, b, c, d = decayed(values, last_tick, row, tick, powers)
        values[row, 0] = a + np.float32(shown[i])
        values[row, 1] = b + np.float32(clicked[i])
        values[row, 2] = c + np.float32(shown[i])
        values[row, 3] = d + np.float32(clicked[i])
        last_tick[row] = tick
        for j in range(4):
            out_values[i, j] = values[row, j]
        out_last[i] = tick
        out_first[i] = first_tick[row]
    return n, out_values, out_last, out_first


@njit(cache=True, nogil=True)
def upsert_rows(
    keys: NDArray[np.int64],
    new_values: Floats,
    new_last: NDArray[np.int32],
    new_first: NDArray[np.int32],
    n: int,
    slots: NDArray[np.int32],
    table_keys: NDArray[np.int64],
    values: Floats,
    last_tick: NDArray[np.int32],
    first_tick: NDArray[np.int32],
) -> int:
    for i in range(len(keys)):
        row = row_of(keys[i], slots, table_keys)
        if row < 0:
            row = n
            n += 1
            put_row(keys[i], row, slots, table_keys)
        for j in range(4):
            values[row, j] = new_values[i, j]
        last_tick[row] = new_last[i]
        first_tick[row] = new_first[i]
    return n


@njit(cache=True, nogil=True)
def read_rows(
    keys: NDArray[np.int64],
    tick: int,
    slots: NDArray[np.int32],
    table_keys: NDArray[np.int64],
    values: Floats,
    last_tick: NDArray[np.int32],
    first_tick: NDArray[np.int32],
    powers: NDArray[np.float64],
) -> tuple[Any, Any]:
    out = np.empty((len(keys), 4), np.float32)
    first = np.empty(len(keys), np.int32)
    for i in range(len(keys)):
        row = row_of(keys[i], slots, table_keys)
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = decayed(values, last_tick, row, tick, powers)
        first[i] = first_tick[row] if row >= 0 else -1
    return out, first
