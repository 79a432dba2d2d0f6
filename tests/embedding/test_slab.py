"""Reserved memory: it is zeros, takes room only where written, and can be given back."""

import sys
from pathlib import Path

import numpy as np
import pytest

from infra.embedding.slab import release, reserve
from infra.errors import ConfigError

MB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what memory is held, and takes it back")


def held(array: np.ndarray) -> int:
    """Bytes of memory in the mappings that an array lies in."""
    first, last = array.ctypes.data, array.ctypes.data + array.nbytes
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word, *rest = line.split()
        if not word.endswith(":"):
            lo, hi = (int(x, 16) for x in word.split("-"))
            inside = lo < last and hi > first
        elif inside and word == "Rss:":
            total += int(rest[0]) * 1024
    return total


@linux
def test_a_small_slab_stays_small_and_a_large_one_may_come_in_huge_pages() -> None:
    slab = reserve((1 << 26, 16), np.float32)
    assert slab.ctypes.data % 64 == 0
    slab[:1_000] = 1
    assert held(slab) <= 1_000 * 64 + 2 * 4096
    slab[: 6 * MB // 64] = 1
    assert held(slab) <= 8 * MB  # what is not yet used is at most a third of what is


@linux
@pytest.mark.parametrize("rows", [1_000, 1 << 22])
def test_released_rows_read_as_zeros_and_their_neighbours_stay(rows: int) -> None:
    slab = reserve((rows, 8), np.int32)
    n = min(rows, 500_000)
    slab[:n] = 7
    before = held(slab)
    lo, hi = n // 5 + 1, n - 3
    given = release(slab, lo, hi)
    assert 0 < (hi - lo) * 32 - given < 2 * 4096
    assert before - held(slab) == given
    assert np.all(slab[:lo] == 7)
    assert np.all(slab[hi:n] == 7)
    zeros = ~slab[lo:hi].any(axis=1)
    assert 0 <= given - np.count_nonzero(zeros) * 32 < 32 * 2  # whole pages, and nothing of another
    slab[lo:hi] = 9
    assert np.all(slab[lo:hi] == 9)


def test_what_is_not_reserved_or_no_whole_page_is_left_alone() -> None:
    own, slab = np.ones(100_000), reserve((5000,), np.int64)
    slab[:] = 3
    assert release(own, 0, len(own)) == release(slab, 10, 20) == release(slab, 3000, 10) == release(slab, 0, 0) == 0
    assert own.all()
    assert np.all(slab == 3)


def test_more_addresses_than_there_are_is_an_error_that_names_the_option() -> None:
    with pytest.raises(ConfigError, match="max_rows"):
        reserve((1 << 50, 16), np.float32)
