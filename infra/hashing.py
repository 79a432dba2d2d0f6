"""Ids become 64-bit keys; keys choose partitions.

`keys_of` is how ids of any kind become keys: integers are their own keys, strings are hashed. `hash64` is FNV-1a over
the bytes with murmur3's 64-bit finalizer, as int64: with n distinct ids the chance of any collision is about n² / 2⁶⁵
(2.7e-8 for a million ids, 2.7 % for a billion; infra/docs/keys.md). `murmur2` is Kafka's partition hash
(org.apache.kafka.common.utils.Utils.murmur2, seed 0x9747b28c): any producer that uses it puts a user into the
same partition.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit("int64(uint8[::1], int64, int64)", cache=True, nogil=True)
def hash64_range(data: NDArray[np.uint8], lo: int, hi: int) -> np.int64:
    """Key of the bytes data[lo:hi]."""
    h = np.uint64(0xCBF29CE484222325)
    for i in range(lo, hi):
        h = (h ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return np.int64(h)


@njit("void(uint8[::1], int64[::1], int64[::1])", cache=True, nogil=True)
def _hash64_each(data: NDArray[np.uint8], ends: NDArray[np.int64], keys: NDArray[np.int64]) -> None:
    lo = 0
    for i in range(len(ends)):
        keys[i] = hash64_range(data, lo, ends[i])
        lo = ends[i]


@njit("int32(uint8[::1], int64, int64)", cache=True, nogil=True)
def murmur2_range(data: NDArray[np.uint8], lo: int, hi: int) -> np.int32:
    """Kafka's murmur2 of the bytes data[lo:hi], as the signed 32-bit number that Java computes."""
    n = hi - lo
    m = np.uint32(0x5BD1E995)
    h = np.uint32(0x9747B28C) ^ np.uint32(n)
    i = lo
    while i + 4 <= hi:
        k = (
            np.uint32(data[i])
            | (np.uint32(data[i + 1]) << np.uint32(8))
            | (np.uint32(data[i + 2]) << np.uint32(16))
            | (np.uint32(data[i + 3]) << np.uint32(24))
        )
        k = np.uint32(k * m)
        k ^= k >> np.uint32(24)
        k = np.uint32(k * m)
        h = np.uint32(h * m)
        h ^= k
        i += 4
    rest = hi - i
    if rest == 3:
        h ^= np.uint32(data[i + 2]) << np.uint32(16)
    if rest >= 2:
        h ^= np.uint32(data[i + 1]) << np.uint32(8)
    if rest >= 1:
        h ^= np.uint32(data[i])
        h = np.uint32(h * m)
    h ^= h >> np.uint32(13)
    h = np.uint32(h * m)
    h ^= h >> np.uint32(15)
    return np.int32(h)


@njit("int64(uint8[::1], int64, int64, int64)", cache=True, nogil=True)
def partition_range(data: NDArray[np.uint8], lo: int, hi: int, partitions: int) -> np.int64:
    """Partition of the key bytes data[lo:hi], as Kafka's default partitioner: (murmur2 & 0x7fffffff) mod n."""
    return (np.int64(murmur2_range(data, lo, hi)) & np.int64(0x7FFFFFFF)) % partitions


def _bytes(text: str | bytes) -> NDArray[np.uint8]:
    raw = text.encode() if isinstance(text, str) else text
    return np.frombuffer(raw, dtype=np.uint8) if raw else np.empty(0, dtype=np.uint8)


def hash64(text: str | bytes) -> int:
    """64-bit key (signed) of an id."""
    data = np.array(_bytes(text))
    return int(hash64_range(data, 0, len(data)))


def key_of(id: int | str | bytes) -> int:
    """Key of one id; see `keys_of`."""
    return int(keys_of([id])[0])


def keys_of(ids: NDArray[Any] | Iterable[int | str | bytes]) -> NDArray[np.int64]:
    """Keys (n,) of ids (n,): integers one to one, strings (as UTF-8) and bytes by `hash64`.

    Raises ValueError on an integer outside int64, on anything else than these kinds, and on a mix of integers and
    strings: an integer would meet a hash with a chance that nobody has stated.
    """
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        return _integers(ids.reshape(-1))
    listed = ids.reshape(-1).tolist() if isinstance(ids, np.ndarray) else list(ids)
    kinds = {type(id) for id in listed}
    if kinds <= {str, bytes}:
        raw = [id.encode() if isinstance(id, str) else id for id in listed]
        data = np.frombuffer(bytearray().join(raw), np.uint8) if any(raw) else np.empty(0, np.uint8)
        keys = np.empty(len(raw), np.int64)
        _hash64_each(data, np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw))), keys)
        return keys
    if all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        return _integers(np.array(listed, dtype=object))
    raise ValueError(f"ids are {', '.join(sorted(kind.__name__ for kind in kinds))}; all are integers, or all strings")


def _integers(ids: NDArray[Any]) -> NDArray[np.int64]:
    lowest, highest = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    if len(ids) and not (lowest <= ids.min() and ids.max() <= highest):
        raise ValueError(f"ids from {ids.min()} to {ids.max()}; integers are their own keys, and keys are int64")
    return ids.astype(np.int64)


def partition_of(key: str | bytes, partitions: int) -> int:
    """Partition of a record key among `partitions`."""
    data = np.array(_bytes(key))
    return int(partition_range(data, 0, len(data), partitions))
