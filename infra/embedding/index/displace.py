"""Making room for a key whose two buckets are full: other keys step into their other buckets.

The search is breadth-first over buckets, from the two full ones, each full bucket leading to the five where its keys
could stand instead; it ends at the first bucket with a free place (libcuckoo, Li et al. 2014). Nothing moves before the
whole chain is known, so a search that fails has changed nothing. Five buckets that one move leads to are tried before
there is a tree, and an insert of many keys prefetches them for its whole block (`fetch_others`). Its bound:

- at most SEARCH = 512 buckets are looked at, each one cache line: 2 + 10 + 50 + 250 in depths 0 to 3, and 200 of
  depth 4. So a chain has at most MOVES = 4 moves, and an insert writes at most 4 + 1 places.
- A chain names no bucket twice: its second visit would have been reached, with all that follows, from the first one.
- Were a bucket full with probability p, independently, a search would fail with p^512: at a load of 0.95, where
  four buckets in five are full, 10^-49. What makes searches fail is keys that share few buckets, so that
  all 512 visits are to the same ones: an accident in an index of a few buckets, or keys crafted for it.
"""

import numpy as np
from numpy.typing import NDArray

from infra.embedding.index.bucket import WAYS, bucket_of, cell_of, hash_of, room_in
from infra.embedding.machine import Int, leaf, prefetch

SEARCH = 512  # buckets that a search may visit
TREE = 8  # where the visited buckets stand in `head`
MOVES = 4  # keys that an insert may move

_U = np.uint64


@leaf
def displace(
    words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], a: np.uint64, b: np.uint64
) -> Int:
    """Free a spot in bucket a or b by moving keys to their other buckets; the spot, or -1 and nothing moved."""
    for i in range(WAYS):  # most searches end here: one of five others has room, and they are on their way already
        spot = a << _U(3) | _U(i)
        free = room_in(cells, bucket_of(head, words[spot], (a & _U(1)) ^ _U(1)))
        if free >= 0:
            return _move(words, cells, np.int64(spot), free)
    # A tree without pointers, in head[TREE:]: the keys of node i lead to the nodes from 2 + 5 i on, in order of place.
    head[TREE], head[TREE + 1] = a, b
    seen, at = 2, 0
    while at < seen:
        here = _U(head[_U(TREE + at)])
        free = room_in(cells, here)
        if free >= 0:
            return _shift(words, cells, head, at, free)
        for i in range(min(WAYS, SEARCH - seen)):
            other = bucket_of(head, words[here << _U(3) | _U(i)], (here & _U(1)) ^ _U(1))
            prefetch(words, np.int64(other << _U(3)))
            head[_U(TREE + seen)] = other
            seen += 1
        at += 1
    return -1


@leaf
def _shift(words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], at: Int, free: Int) -> Int:
    """Walk a chain back to its start: each key steps into the spot freed before it. The spot that is free at last."""
    while at >= 2:
        at, place = (at - 2) // WAYS, (at - 2) % WAYS
        free = _move(words, cells, head[_U(TREE + at)] * 8 + place, free)
    return free


@leaf
def _move(words: NDArray[np.int64], cells: NDArray[np.int32], spot: Int, free: Int) -> Int:
    """The key at `spot` steps into a free one; the spot that is free now."""
    words[_U(free)] = words[_U(spot)]
    cells[cell_of(free)] = cells[cell_of(spot)]
    cells[cell_of(spot)] = 0
    return spot


@leaf
def fetch_others(
    words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], a: np.uint64, b: np.uint64
) -> None:
    """Prefetch where the keys of bucket a could stand instead, if a and b are full and a new key is to come."""
    if room_in(cells, a) < 0 and room_in(cells, b) < 0:
        for i in range(WAYS):
            other = bucket_of(head, words[a << _U(3) | _U(i)], (a & _U(1)) ^ _U(1))
            prefetch(words, np.int64(other << _U(3)))


@leaf
def split_pairs(words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], count: Int) -> None:
    """Add `count` pairs of buckets, each taking its share of one that is there; the memory behind the last one is zero.

    A pair splits into itself and the one half of all pairs away, by one bit more of the hash. What leaves a bucket goes
    to the place of the same number in the new one, where nobody else comes: a split moves few keys and never fails.
    """
    seed, odd = _U(head[1]), _U(head[2])
    for _ in range(count):
        new = _U(head[0])
        if head[0] == head[6] + 1:  # every pair is split: all go by one bit more
            head[6] = 2 * head[6] + 1
        bit = _U(head[6] + 1) >> _U(1)  # of half a hash: whoever has it leaves
        head[0] += 1
        for far in range(2):
            source, target = (new - bit) << _U(1) | _U(far), new << _U(1) | _U(far)
            for i in range(WAYS):  # every key is copied, and one of its two rows is 0: half of all branches were wrong
                spot, free = source << _U(3) | _U(i), target << _U(3) | _U(i)
                leaves = (hash_of(seed, odd, words[spot]) >> _U(32 * far)) & bit != _U(0)
                words[free] = words[spot]
                row = cells[cell_of(spot)]
                cells[cell_of(free)] = row if leaves else np.int32(0)
                cells[cell_of(spot)] = np.int32(0) if leaves else row
