"""Ids of many events become keys at once: bytes behind each other, hashed in one call.

The key of a string is `infra.hashing.hash64` of its UTF-8; an integer is its own key, in 64 bits. So an integer and
its decimal text are two ids, and an integer may meet the hash of a string: as likely as two strings' hashes. A
user's partition is murmur2 of the UTF-8, or of an integer's decimal text: what a producer writes into the record's key.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from infra.hashing import hash64_range, partition_range
from stream.columns import I64, offsets_of
from stream.wire.scan import as_bytes


class Ids:
    """n ids: `keys` (n,) int64, `sizes` (n,) bytes of their texts."""

    def __init__(self, ids: Sequence[str | int]) -> None:
        texts: list[Any] = list(ids)
        numbers: list[int] = []
        try:
            text = "".join(texts)
        except TypeError:  # not all are strings
            numbers = [i for i, one in enumerate(ids) if not isinstance(one, str)]
            texts = [str(one) for one in ids]
            text = "".join(texts)
        if text.isascii():
            self._data, _ = as_bytes([text.encode()])
            self._bounds = offsets_of(np.fromiter(map(len, texts), np.int64, len(texts)))
        else:
            self._data, self._bounds = as_bytes([one.encode() for one in texts])
        self.sizes: I64 = np.diff(self._bounds)
        self.keys: I64 = _hash_all(self._data, self._bounds)
        for at in numbers:
            self.keys[at] = int(ids[at])

    def partitions(self, which: I64, partitions: int) -> I64:
        """Partition of each of the ids `which` (m,)."""
        found: I64 = _partition_all(self._data, self._bounds, which, partitions)
        return found


@njit(cache=True, nogil=True)
def _hash_all(data, bounds):  # type: ignore[no-untyped-def]
    keys = np.empty(len(bounds) - 1, dtype=np.int64)
    for i in range(len(keys)):
        keys[i] = hash64_range(data, bounds[i], bounds[i + 1])
    return keys


@njit(cache=True, nogil=True)
def _partition_all(data, bounds, which, partitions):  # type: ignore[no-untyped-def]
    found = np.empty(len(which), dtype=np.int64)
    for i in range(len(which)):
        found[i] = partition_range(data, bounds[which[i]], bounds[which[i] + 1], partitions)
    return found
