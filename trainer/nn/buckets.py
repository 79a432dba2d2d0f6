"""From keys to buckets, for the arms that share rows: md5 as Monolith's experiment has it, and seeded mixing.

`md5_mod` is int(md5(str(key)).hexdigest(), 16) mod buckets, in a kernel: hashlib from Python takes 1 µs a key, which
would be most of a training step. RFC 1321; the text of an int64 fits into one block.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.initial import mix64

Keys = NDArray[np.int64]
_SINES = np.array([int(2**32 * abs(math.sin(i + 1))) for i in range(64)], np.uint32)
_TURNS = np.array([7, 12, 17, 22] * 4 + [5, 9, 14, 20] * 4 + [4, 11, 16, 23] * 4 + [6, 10, 15, 21] * 4, np.uint32)


def md5_mod(keys: Keys, buckets: int) -> Keys:
    """Bucket (n,) in [0, buckets) of each key (n,)."""
    out = np.empty(len(keys), np.int64)
    _md5_mod(keys, np.uint64(buckets), out)
    return out


def mixed_mod(keys: Keys, buckets: int, seed: int) -> Keys:
    """Bucket (n,) in [0, buckets) of each key (n,), by hash function number `seed`."""
    out = np.empty(len(keys), np.int64)
    _mixed_mod(keys, np.uint64(buckets), np.uint64(seed), out)
    return out


@njit(cache=True, nogil=True)
def _mixed_mod(keys: Keys, buckets: np.uint64, seed: np.uint64, out: Keys) -> None:
    base = mix64(seed + np.uint64(0x9E3779B97F4A7C15))
    for i in range(len(keys)):
        out[i] = np.int64(mix64(np.uint64(keys[i]) ^ base) % buckets)


@njit(cache=True, nogil=True)
def _write_text(key: np.int64, block: NDArray[np.uint8]) -> int:
    """Decimal digits of the key at the front of the block; how many characters."""
    left = np.uint64(key) if key >= 0 else np.uint64(0) - np.uint64(key)
    digits = 1
    power = np.uint64(10)
    while digits < 19 and left >= power:
        digits += 1
        power *= np.uint64(10)
    at = 0
    if key < 0:
        block[0] = 45  # '-'
        at = 1
    for i in range(digits):
        block[at + digits - 1 - i] = np.uint8(48) + np.uint8(left % np.uint64(10))
        left //= np.uint64(10)
    return at + digits


@njit(cache=True, nogil=True)
def _digest(block: NDArray[np.uint8], state: NDArray[np.uint32]) -> None:
    """One round of MD5 over a 64-byte block, from the standard's initial state (RFC 1321, 3.4)."""
    words = block.view(np.uint32)
    a, b, c, d = np.uint32(0x67452301), np.uint32(0xEFCDAB89), np.uint32(0x98BADCFE), np.uint32(0x10325476)
    state[0], state[1], state[2], state[3] = a, b, c, d
    for i in range(64):
        if i < 16:
            f, g = (b & c) | (~b & d), i
        elif i < 32:
            f, g = (d & b) | (~d & c), (5 * i + 1) % 16
        elif i < 48:
            f, g = b ^ c ^ d, (3 * i + 5) % 16
        else:
            f, g = c ^ (b | ~d), (7 * i) % 16
        x = np.uint32(a + f + _SINES[i] + words[g])
        turned = np.uint32((x << _TURNS[i]) | (x >> np.uint32(np.uint32(32) - _TURNS[i])))
        a, d, c, b = d, c, b, np.uint32(b + turned)
    state[0] += a
    state[1] += b
    state[2] += c
    state[3] += d


@njit(cache=True, nogil=True)
def _md5_mod(keys: Keys, buckets: np.uint64, out: Keys) -> None:
    block, state = np.zeros(64, np.uint8), np.zeros(4, np.uint32)
    for i in range(len(keys)):
        block[:] = 0
        n = _write_text(keys[i], block)
        block[n] = 0x80
        block[56], block[57] = (8 * n) & 255, (8 * n) >> 8
        _digest(block, state)
        rest = np.uint64(0)
        for byte in state.view(np.uint8):  # the digest's bytes are one big-endian number
            rest = ((rest << np.uint64(8)) | np.uint64(byte)) % buckets
        out[i] = np.int64(rest)
