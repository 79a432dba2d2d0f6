"""Initial vectors: a function of (seed, slot, key), so that whoever makes the row first makes the same one.

Component j of key x is uniform in (−scale, scale), a number for the column: the upper 24 bits u of SplitMix64 (Steele,
Lea and Flood 2014), stream mix(x ^ base), step j, give (2u + 1 − 2²⁴) · scale / 2²⁴. The integer is exact in float64
and there is one multiplication, so numba and NumPy round the same way and give the same bits on every machine.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.machine import Int, leaf

_GOLDEN = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB


def stream_base(slot: str, seed: int) -> int:
    """64 bits (as int64) that name the streams of a slot."""
    raw = hashlib.blake2b(f"initial/{seed}/{slot}".encode(), digest_size=8).digest()
    return int.from_bytes(raw, "little", signed=True)


@njit(cache=True, nogil=True)
def mix64(x: np.uint64) -> np.uint64:
    """SplitMix64's finalizer: a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
    return x ^ (x >> np.uint64(31))


@leaf
def write_initial(base: int, key: Int, units: NDArray[np.float64], out: NDArray[np.float32], row: Int) -> None:
    """Write the initial vector of `key` into out[row]; units (dim,) = scale / 2²⁴."""
    x = mix64(np.uint64(key) ^ np.uint64(base))
    for j in range(out.shape[1]):  # no step waits for the one before it: several at a time
        u = np.int64(mix64(x + np.uint64(j + 1) * np.uint64(_GOLDEN)) >> np.uint64(40))
        # + 0.0: a scale of zero gives zeros without a sign
        number = np.float64(2 * u + 1 - (1 << 24)) * units[np.uint64(j)] + 0.0
        out[np.uint64(row), np.uint64(j)] = np.float32(number)


def per_column(numbers: float | Sequence[float], n: int, name: str) -> NDArray[np.float64]:
    """One number for every column, or one for each of n. Raises ValueError on another count."""
    columns = np.array(numbers, np.float64)
    if columns.ndim > 1 or (columns.ndim == 1 and len(columns) != n):
        raise ValueError(f"{name}: {columns.shape} numbers for {n} columns")
    return np.broadcast_to(columns, (n,)).copy()


def _mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
    return x ^ (x >> np.uint64(31))


def initial_vectors(
    keys: NDArray[np.int64], slot: str, seed: int, dim: int, scale: float | Sequence[float]
) -> NDArray[np.float32]:
    """Initial vectors (n, dim) of keys (n,): plain NumPy, the same bits as the kernel's."""
    units = per_column(scale, dim, f"init_scale of slot {slot!r}") / (1 << 24)
    base = np.array(stream_base(slot, seed), np.int64).view(np.uint64)
    x = _mix64(np.array(keys, np.int64).view(np.uint64) ^ base)
    steps = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    u = (_mix64(x[:, None] + steps[None, :]) >> np.uint64(40)).astype(np.int64)
    vectors = ((2 * u + 1 - (1 << 24)).astype(np.float64) * units).astype(np.float32)
    vectors[:, units == 0] = 0  # and not minus zero
    return vectors
