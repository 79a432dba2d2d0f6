"""One bucket of the cuckoo index, which is one cache line, and the two buckets of a key.

    byte  0   8   16  24  32  40   44   48   52   56   60   64
          key key key key key row  row  row  row  row  spare       row holds row + 1; 0 marks a free place

`words` sees the index as int64 (8 a bucket, keys at 0..4), `cells` sees the same memory as int32 (16 a bucket, rows
at 10..14); a spot is bucket · 8 + place. Zeroed memory is an empty index. `head` is what else there is to know:

    0      1     2               3             4             5                        6
    pairs  seed  odd multiplier  keys present  times hashed  keys at which it grows   2^⌈log2 pairs⌉ − 1

Buckets come in pairs: the near bucket of a key is the even one of one pair, its far bucket the odd one of another (or
the same), chosen by the two halves of one seeded hash. So the two are never the same bucket, and whoever finds a key in
a bucket knows by its number which of the two that is.

The number of pairs need not be a power of two: linear hashing (Litwin 1980) takes one bit more of the hash than the
pairs need, and one bit less where that names a pair that is not there yet. Growth splits one pair after the other.
"""

import numpy as np
from numpy.typing import NDArray

from infra.embedding.initial import mix64
from infra.embedding.machine import Int, lanes_equal, lanes_filled, leaf, lowest_bit

WAYS = 5  # places in a bucket
PAIR_WORDS = 16  # int64 of a pair of buckets

_U = np.uint64  # indices are unsigned: numba spends a branch on each signed one, to let -1 mean the last
_PLACES = (1 << WAYS) - 1


@leaf
def pair_of(pairs: np.uint64, wide: np.uint64, half: np.uint64) -> np.uint64:
    """The pair that half a hash names."""
    pair = half & wide
    return pair if pair < pairs else pair & (wide >> _U(1))


@leaf
def hash_of(seed: np.uint64, odd: np.uint64, key: Int) -> np.uint64:
    """64 bits: the near half below, the far half above. The seeds need not be known to whoever makes keys."""
    x = (_U(key) ^ seed) * odd
    return mix64(x ^ (x >> _U(32)))


@leaf
def near_of(pairs: np.uint64, wide: np.uint64, h: np.uint64) -> np.uint64:
    return pair_of(pairs, wide, h & _U(0xFFFFFFFF)) << _U(1)


@leaf
def far_of(pairs: np.uint64, wide: np.uint64, h: np.uint64) -> np.uint64:
    return pair_of(pairs, wide, h >> _U(32)) << _U(1) | _U(1)


@leaf
def bucket_of(head: NDArray[np.int64], key: Int, far: np.uint64) -> np.uint64:
    """The near (far = 0) or the far bucket (far = 1) of a key."""
    h = hash_of(_U(head[1]), _U(head[2]), key)
    return pair_of(_U(head[0]), _U(head[6]), (h >> _U(32)) if far else h & _U(0xFFFFFFFF)) << _U(1) | far


@leaf
def cell_of(spot: Int) -> np.uint64:
    """Index in `cells` of the row at `spot` = bucket · 8 + place, an index in `words`."""
    return ((_U(spot) >> _U(3)) << _U(4)) + _U(10) + (_U(spot) & _U(7))


@leaf
def _filled(cells: NDArray[np.int32], bucket: np.uint64) -> np.uint64:
    """Bit i is set where place i of the bucket is taken."""
    return (lanes_filled(cells, np.int64(bucket << _U(4))) >> _U(10)) & _U(_PLACES)


@leaf
def _places_of(words: NDArray[np.int64], cells: NDArray[np.int32], bucket: np.uint64, key: Int) -> np.uint64:
    """Bit i is set where place i of the bucket holds the key: a free place may still show a key that has left."""
    return lanes_equal(words, np.int64(bucket << _U(3)), np.int64(key)) & _filled(cells, bucket)


@leaf
def locate(words: NDArray[np.int64], cells: NDArray[np.int32], a: np.uint64, b: np.uint64, key: Int) -> Int:
    """Where the key stands, -1 where it is absent. Both buckets are read: which one it is in is a coin toss."""
    at = _places_of(words, cells, a, key) | _places_of(words, cells, b, key) << _U(8)
    place = lowest_bit(at)
    spot = np.int64((a if place < _U(8) else b) << _U(3) | place & _U(7))
    return spot if at != _U(0) else np.int64(-1)


@leaf
def row_at(words: NDArray[np.int64], cells: NDArray[np.int32], a: np.uint64, b: np.uint64, key: Int) -> np.int32:
    """The row of the key, -1 where it is absent. No branch: present or absent, near or far would be guessed wrong."""
    at = _places_of(words, cells, a, key) | _places_of(words, cells, b, key) << _U(8)
    place = lowest_bit(at | _U(1 << 16))
    row = cells[((a if place < _U(8) else b) << _U(4)) + _U(10) + (place & _U(7))]
    return (row if at != _U(0) else np.int32(0)) - np.int32(1)


@leaf
def room_in(cells: NDArray[np.int32], bucket: np.uint64) -> Int:
    """A free spot in this bucket, -1 where it is full."""
    place = lowest_bit(~_filled(cells, bucket))
    return np.int64(bucket << _U(3) | place) if place < _U(WAYS) else np.int64(-1)


@leaf
def room_in_emptier(cells: NDArray[np.int32], a: np.uint64, b: np.uint64) -> Int:
    """A free spot in the emptier of two buckets, -1 where both are full.

    Places fill from the lowest on, so the smaller mask is the emptier bucket, but for what has left since.
    """
    return room_in(cells, a if _filled(cells, a) <= _filled(cells, b) else b)
