"""A replica's table: every view is one version for as long as it is held, whatever the applying thread does."""

import threading
from typing import Any

import numpy as np
import pytest

from infra.embedding import ServingTable
from infra.embedding.index.index import CuckooIndex
from infra.embedding.served.stores import PRECISIONS, Precision
from infra.errors import RetryableError

NONE = np.empty(0, np.int64)


def k(*keys: int) -> np.ndarray:
    return np.array(keys, np.int64)


def content(table: Any) -> dict[int, list[float]]:
    keys, values = table.export()
    return dict(zip(keys.tolist(), values.tolist(), strict=True))


def served(dtype: str, values: Any) -> np.ndarray:
    """What a table of this precision shows of rows (n, dim), in plain NumPy."""
    rows = np.asarray(values, np.float32)
    if dtype != "int8":
        return rows.astype(dtype).astype(np.float32)
    scale = (np.abs(rows).max(axis=1, keepdims=True, initial=0).astype(np.float64) / 127).astype(np.float32)
    return np.rint(rows / np.where(scale, scale, 1).astype(np.float64)).astype(np.float32) * scale


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Precision:
    return request.param  # type: ignore[no-any-return]


def test_a_view_reads_present_keys_and_zeros(precision: Precision) -> None:
    table = ServingTable(dim=2, dtype=precision)
    empty = table.view()
    table.apply(k(7, 8, 7), np.array([[1, 2], [3, 4], [5, 6]], np.float32), NONE)
    view = table.view()
    out = np.full((4, 2), np.nan, np.float32)
    assert view.gather_into(k(8, 1, 7, 8), out) is out
    assert out.tolist() == served(precision, [[3, 4], [0, 0], [5, 6], [3, 4]]).tolist()
    assert (view.find(k(7, 9)) >= 0).tolist() == [True, False]
    assert len(view) == len(table) == 2
    assert len(empty) == 0
    assert not empty.gather(k(7, 8)).any()
    with pytest.raises(ValueError, match="contiguous"):
        view.gather_into(k(1), out)


def test_tombstones_drop_keys_and_an_upsert_in_the_same_version_wins(precision: Precision) -> None:
    table = ServingTable(dim=1, dtype=precision)
    table.apply(k(1, 2, 3), np.ones((3, 1)), NONE)
    table.apply(k(2), np.full((1, 1), 5), k(1, 2, 99))
    five, one = served(precision, [[5], [1]]).tolist()
    assert content(table.view()) == {2: five, 3: one}
    table.apply(NONE, np.empty((0, 1)), k(3))
    assert content(table.view()) == {2: five}


def held_views_disagree(table: ServingTable, seed: int = 4, versions: int = 150) -> str | None:
    """Apply random versions, hold a few old views, and say which one does not show its own version; None if all do."""
    rng, model = np.random.default_rng(seed), {}
    held: list[tuple[int, Any, dict[int, list[float]]]] = []
    for version in range(versions):
        keys, dead = rng.integers(0, 300, 40), rng.integers(0, 300, 15)
        values = rng.integers(-2048, 2048, (40, table.dim)).astype(np.float32)  # whole in float16
        table.apply(keys, values, dead)
        for key in dead.tolist():
            model.pop(key, None)
        model.update(zip(keys.tolist(), served(table.dtype, values).tolist(), strict=True))
        held.append((version, table.view(), dict(model)))
        for at, view, expected in held:
            try:
                same = content(view) == expected and len(view) == len(expected)
            except ValueError:  # a slot that this view does not know
                same = False
            if not same:
                return f"seed {seed}: after version {version}, the view of version {at} shows something else"
        while len(held) > 3 or (held and rng.random() < 0.4):
            held.pop(int(rng.integers(len(held))))
    return None


def test_a_held_view_never_changes(precision: Precision) -> None:
    table = ServingTable(dim=3, dtype=precision)
    assert held_views_disagree(table) is None
    assert table.copies > 0  # the case that costs a copy was met


class TeachesTheIndexBeingRead(ServingTable):
    """Saves the second index."""

    def _catch_up_standby(self) -> CuckooIndex:
        return self._view._index


class ForgetsThePendingDelta(ServingTable):
    """The other index misses every other version."""

    def _catch_up_standby(self) -> CuckooIndex:
        return self._standby


class FreesSlotsAtOnce(ServingTable):
    """Old slots are given away while an old view still reaches them."""

    def _free_unreachable(self) -> None:
        while self._retired:
            self._heap.give(self._retired.popleft().slots)


class WritesInPlace(ServingTable):
    """A key keeps its slot: the reader of an older version sees the new vector."""

    def apply(self, upsert_keys: np.ndarray, upsert_values: np.ndarray, tombstones: np.ndarray) -> None:
        super().apply(upsert_keys, upsert_values, tombstones)
        self._rows.write(np.array([self._heap.high // 2], np.int32), np.zeros((1, self.dim), np.float32))


@pytest.mark.parametrize("wrong", [TeachesTheIndexBeingRead, ForgetsThePendingDelta, FreesSlotsAtOnce, WritesInPlace])
def test_a_wrong_serving_table_is_caught(wrong: type[ServingTable]) -> None:
    assert held_views_disagree(wrong(dim=3, dtype="float32")) is not None


def test_slots_come_back_when_readers_leave(precision: Precision) -> None:
    table = ServingTable(dim=4, dtype=precision)
    keys = np.arange(1_000)
    for version in range(50):
        table.apply(keys, np.full((1_000, 4), version), NONE)
    assert table._heap.high == 2_000  # the rows shown, and those that are written meanwhile
    assert table.copies == 0
    old = table.view()
    for version in range(5):
        table.apply(keys, np.full((1_000, 4), version), NONE)
    assert table.retired == 5_000
    assert np.array_equal(old.gather(keys), served(precision, np.full((1_000, 4), 49)))
    del old
    table.apply(keys, np.full((1_000, 4), 7), NONE)
    assert table.retired == 1_000


def test_slots_of_dropped_keys_come_back_too(precision: Precision) -> None:
    table = ServingTable(dim=1, dtype=precision)
    for version in range(40):
        keys = np.arange(100) + 100 * version
        table.apply(keys, np.ones((100, 1)), keys - 100)
        assert len(table) == 100
    assert table._heap.high == 200
    assert table.retired == 100


def test_a_heap_without_room_refuses_the_version_whole(precision: Precision) -> None:
    table = ServingTable(dim=1, dtype=precision, max_rows=10)
    table.apply(k(1, 2, 3, 4), np.ones((4, 1)), NONE)
    table.apply(k(1, 2, 3, 4), np.full((4, 1), 2), NONE)
    two, three = served(precision, [[2], [3]]).tolist()
    held = table.view()
    with pytest.raises(RetryableError, match="older views"):
        table.apply(k(1, 2, 3, 4, 5, 6, 7, 8), np.full((8, 1), 3), k(2))
    assert content(table.view()) == content(held) == dict.fromkeys((1, 2, 3, 4), two)
    table.apply(k(1, 2), np.full((2, 1), 3), NONE)
    assert content(table.view()) == {1: three, 2: three, 3: two, 4: two}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_every_gather_of_many_threads_agrees_with_exactly_one_version(dtype: Precision) -> None:
    """Promise 4 in one process: readers hammer while versions apply; rows, presence and order are all checked."""
    n, dim, versions = 400, 8, 1_000
    rng, keys = np.random.default_rng(9), np.arange(400, dtype=np.int64) * 7919
    table = ServingTable(dim=dim, dtype=dtype)
    state = np.zeros((n, dim), np.float32)  # zeros where absent, as a gather reads
    expected = [state.copy()]
    wrong: list[str] = []
    done = threading.Event()
    reads = [0, 0, 0]

    def read(reader: int) -> None:
        last, out = 0, np.empty((n, dim), np.float32)
        while not done.is_set() or reads[reader] == 0:
            view = table.view()
            for _ in range(3):
                view.gather_into(keys, out)
                version = round(float(out[0, 0]))  # the first key carries it
                if version < last or not np.array_equal(out, expected[version]):
                    wrong.append(f"reader {reader}: read {version} after {last}")
                    return
                last = version
                reads[reader] += n

    threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        for version in range(1, versions):
            some = np.unique(np.concatenate(([0], rng.integers(1, n, 60))))
            drop = np.setdiff1d(rng.integers(1, n, 20), some)
            state[some] = version
            state[drop] = 0
            expected.append(served(dtype, state))
            table.apply(keys[some], state[some], keys[drop])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert min(reads) > 0
    assert table._heap.high < 50 * n  # bounded by the few views alive at any time


def test_what_makes_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="float16, float32, int8"):
        ServingTable(dim=4, dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reshape"):
        ServingTable(dim=4).apply(k(1), np.ones((1, 3)), NONE)


def test_an_exclusive_table_shows_what_every_version_says_and_keeps_no_row_that_is_gone(precision: Precision) -> None:
    shared, alone = ServingTable(dim=3, dtype=precision), ServingTable(dim=3, dtype=precision, exclusive=True)
    rng = np.random.default_rng(9)
    for _ in range(100):
        keys, dead = rng.integers(0, 300, 40), rng.integers(0, 300, 15)
        values = rng.integers(-2048, 2048, (40, 3)).astype(np.float32)
        for table in (shared, alone):
            table.apply(keys, values, dead)
        assert content(alone.view()) == content(shared.view())
    assert alone.retired == 0
    assert alone._heap.high <= 300 + 40
