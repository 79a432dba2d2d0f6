"""The cuckoo index: int64 key → int32 row, in buckets of one cache line, two buckets per key.

    byte  0   8   16  24  32  40   44   48   52   56   60   64
          key key key key key row  row  row  row  row  spare       row holds row + 1; 0 marks a free place

`words` sees the index as int64 (8 a bucket, keys at 0..4), `cells` sees the same memory as int32 (16 a bucket, rows at
10..14). Zeroed memory is an empty index. A key lies in bucket h or h' (two halves of one seeded 64-bit hash) and nowhere
else, so a look-up reads at most two cache lines, present or absent, whatever the other keys are.

An insert that finds both buckets full looks breadth-first for the shortest chain of keys that can each step into their
other bucket (libcuckoo, Li et al. 2014), and moves only once the chain is known: an insert that fails has changed nothing.
It fails at a high load, and the index then doubles; or, below that, on keys that collide by accident or by design, and the
index is then hashed anew with the next seeds. Linear probing was decided against: crafted keys make it quadratic.
"""

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from infra.embedding.initial import mix64

WAYS = 5  # places in a bucket
MAX_LOAD = 0.85  # of all places; breadth-first search still finds chains of two or three moves here
MIN_RESEED_LOAD = 0.5  # a failed insert below this is the keys' doing, not the load's: new seeds before more memory
MAX_RESEEDS = 4  # in a row, before the index doubles after all
_SEARCH = 512  # buckets a breadth-first search may visit: chains of up to 4 moves
AHEAD = 12  # how many keys ahead the batched kernels prefetch

Index = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typingctx, array, item):  # type: ignore[no-untyped-def]
    """LLVM's prefetch of array[item] for reading, into all levels of cache."""
    from llvmlite import ir

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, value=args[0]).data
        i32, i8p = ir.IntType(32), ir.IntType(8).as_pointer()
        address = builder.bitcast(builder.gep(data, [args[1]]), i8p)
        fn = builder.module.declare_intrinsic(
            "llvm.prefetch", [i8p], ir.FunctionType(ir.VoidType(), [i8p, i32, i32, i32])
        )
        builder.call(fn, [address, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.none(array, types.int64), codegen


@njit(cache=True, nogil=True)
def _hash(head: NDArray[np.int64], key: int) -> np.uint64:
    """64 bits of which each half names a bucket; both seeds are unknown to whoever makes keys."""
    x = (np.uint64(key) ^ np.uint64(head[1])) * np.uint64(head[2])
    return mix64(x ^ (x >> np.uint64(32)))


@njit(cache=True, nogil=True)
def _first(head: NDArray[np.int64], h: np.uint64) -> int:
    return np.int64(h) & head[0]


@njit(cache=True, nogil=True)
def _second(head: NDArray[np.int64], h: np.uint64) -> int:
    a = np.int64(h) & head[0]
    b = np.int64(h >> np.uint64(32)) & head[0]
    return b if b != a else a ^ 1  # two different buckets, always


@njit(cache=True, nogil=True)
def _place(words: NDArray[np.int64], cells: NDArray[np.int32], bucket: int, key: int) -> int:
    """Place of the key in a bucket, -1 where it is not."""
    for i in range(WAYS):
        if words[bucket * 8 + i] == key and cells[bucket * 16 + 10 + i] != 0:
            return i
    return -1


@njit(cache=True, nogil=True)
def _cell(words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], key: int) -> int:
    """Where in `cells` the row of this key stands, -1 where it is absent."""
    h = _hash(head, key)
    a = _first(head, h)
    i = _place(words, cells, a, key)
    if i >= 0:
        return a * 16 + 10 + i
    b = _second(head, h)
    i = _place(words, cells, b, key)
    return b * 16 + 10 + i if i >= 0 else -1


@njit(cache=True, nogil=True)
def _room(cells: NDArray[np.int32], bucket: int) -> int:
    """A free place in a bucket, -1 where it is full."""
    for i in range(WAYS):
        if cells[bucket * 16 + 10 + i] == 0:
            return i
    return -1


@njit(cache=True, nogil=True)
def _displace(words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], a: int, b: int) -> int:
    """Free a place in bucket a or b by moving keys to their other buckets; bucket · 8 + place, or -1 and nothing moved.

    The search is breadth-first, so the chain found is a shortest one and names no bucket twice.
    """
    bucket = np.empty(_SEARCH, np.int64)  # visited buckets, in order
    parent = np.empty(_SEARCH, np.int64)  # index of the bucket whose key would move here …
    place = np.empty(_SEARCH, np.int64)  # … and that key's place there
    bucket[0], bucket[1] = a, b
    parent[0] = parent[1] = -1
    seen = 2
    for at in range(_SEARCH):
        if at >= seen:
            return -1
        for i in range(WAYS):
            h = _hash(head, words[bucket[at] * 8 + i])
            other = _first(head, h)
            if other == bucket[at]:
                other = _second(head, h)
            free = _room(cells, other)
            if free < 0:
                if seen < _SEARCH:
                    bucket[seen], parent[seen], place[seen] = other, at, i
                    seen += 1
                continue
            node, spot = at, i
            while True:  # walk the chain back to a or b; each key steps into the place freed after it
                src = bucket[node]
                words[other * 8 + free] = words[src * 8 + spot]
                cells[other * 16 + 10 + free] = cells[src * 16 + 10 + spot]
                cells[src * 16 + 10 + spot] = 0
                other, free = src, spot
                if parent[node] < 0:
                    return other * 8 + free
                spot = place[node]
                node = parent[node]
    return -1


@njit(cache=True, nogil=True)
def _insert(words: NDArray[np.int64], cells: NDArray[np.int32], head: NDArray[np.int64], key: int, row: int) -> bool:
    """Add a key that is absent. False, and nothing changed, where no place can be freed."""
    h = _hash(head, key)
    a = _first(head, h)
    i = _room(cells, a)
    spot = a * 8 + i
    if i < 0:
        b = _second(head, h)
        i = _room(cells, b)
        spot = b * 8 + i
        if i < 0:
            spot = _displace(words, cells, head, a, b)
            if spot < 0:
                return False
    words[spot] = key
    cells[(spot >> 3) * 16 + 10 + (spot & 7)] = row + 1
    head[3] += 1
    return True


@njit(cache=True, nogil=True)
def _ahead(words: NDArray[np.int64], head: NDArray[np.int64], keys: NDArray[np.int64], i: int) -> None:
    """Prefetch both buckets of keys[i]."""
    if i < len(keys):
        h = _hash(head, keys[i])
        prefetch(words, _first(head, h) * 8)
        prefetch(words, _second(head, h) * 8)


@njit(cache=True, nogil=True)
def _crowded(words: NDArray[np.int64], head: NDArray[np.int64]) -> bool:
    return head[3] + 1 > MAX_LOAD * WAYS * (len(words) >> 3)


@njit(cache=True, nogil=True)
def find_rows(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    rows: NDArray[np.int32],
) -> None:
    """rows[i] = row of keys[i], -1 where absent."""
    for i in range(min(AHEAD, len(keys))):
        _ahead(words, head, keys, i)
    for i in range(len(keys)):
        _ahead(words, head, keys, i + AHEAD)
        c = _cell(words, cells, head, keys[i])
        rows[i] = cells[c] - 1 if c >= 0 else -1


@njit(cache=True, nogil=True)
def set_rows(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    rows: NDArray[np.int32],
    old: NDArray[np.int32],
    start: int,
) -> int:
    """Map keys[i] to rows[i] from i = start on; old[i] = the row before, -1 if none. The first i that needs growth, or n."""
    for i in range(start, len(keys)):
        _ahead(words, head, keys, i + AHEAD)
        c = _cell(words, cells, head, keys[i])
        old[i] = cells[c] - 1 if c >= 0 else -1
        if c >= 0:
            cells[c] = rows[i] + 1
        elif _crowded(words, head) or not _insert(words, cells, head, keys[i], rows[i]):
            return i
    return len(keys)


@njit(cache=True, nogil=True)
def drop_rows(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    head: NDArray[np.int64],
    keys: NDArray[np.int64],
    old: NDArray[np.int32],
) -> int:
    """Forget keys; old[j] = the row of the j-th one that was present. How many were."""
    dropped = 0
    for i in range(len(keys)):
        _ahead(words, head, keys, i + AHEAD)
        c = _cell(words, cells, head, keys[i])
        if c >= 0:
            old[dropped] = cells[c] - 1
            cells[c] = 0
            dropped += 1
    head[3] -= dropped
    return dropped


@njit(cache=True, nogil=True)
def list_rows(
    words: NDArray[np.int64],
    cells: NDArray[np.int32],
    keys: NDArray[np.int64],
    rows: NDArray[np.int32],
) -> int:
    """All (key, row), in the order of the buckets, which is nobody's business outside."""
    n = 0
    for bucket in range(len(words) >> 3):
        for i in range(WAYS):
            row = cells[bucket * 16 + 10 + i]
            if row:
                keys[n] = words[bucket * 8 + i]
                rows[n] = row - 1
                n += 1
    return n
