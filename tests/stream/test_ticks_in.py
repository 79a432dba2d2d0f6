"""Reading examples tick by tick: one order, whatever the polls, the restarts and the repeats."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import CorruptStateError
from infra.eventlog import EventLog
from stream.examples import decode_example_meta, encode_examples
from stream.ticks_in import ExampleTicks, TickExamples
from tests.join import logs


def read_all(ticks: ExampleTicks) -> list[TickExamples]:
    found = []
    while (tick := ticks.next_tick()) is not None:
        found.append(tick)
    return found


def full(found: list[TickExamples]) -> list[tuple[int, bytes]]:
    return [(tick.tick, encode_examples(tick.examples)) for tick in found if len(tick.examples)]


@pytest.fixture
def log(tmp_path: Path) -> Any:
    log = logs.with_events(tmp_path, seconds=60)
    logs.join_all(log)
    yield log
    log.close()


def by_hand(log: EventLog) -> dict[int, set[tuple[int, int]]]:
    found: dict[int, set[tuple[int, int]]] = {}
    for p, _, meta, value, _ in logs.contents(log):
        from stream.examples import decode_examples

        examples = decode_examples(value)
        tick = decode_example_meta(meta).tick
        for at, row in zip(examples.offset.tolist(), examples.row.tolist(), strict=True):
            found.setdefault(tick, set()).add((p, at * 10_000 + row))
    return found


def test_every_impression_comes_once_in_tick_order_sorted_within_its_tick(log: EventLog) -> None:
    found = read_all(ExampleTicks(log, "reader"))
    expected = by_hand(log)
    assert [tick for tick, _ in full(found)] == sorted(expected)
    for tick in found:
        key = list(zip(tick.examples.shown_ms.tolist(), tick.examples.impression.tolist(), strict=True))
        assert key == sorted(key)
        assert len(tick.examples) == len(expected.get(tick.tick, ()))
    assert found[-1].end
    assert not any(tick.end for tick in found[:-1])


def test_ticks_do_not_depend_on_how_far_the_joiner_was(log: EventLog, tmp_path: Path) -> None:
    other = logs.with_events(tmp_path / "slow", seconds=60)
    joiner, ticks, found = logs.worker(other), ExampleTicks(other, "reader"), []
    while joiner.step():
        found += read_all(ticks)
    found += read_all(ticks)
    assert full(found) == full(read_all(ExampleTicks(log, "reader")))
    other.close()


def test_a_restart_after_any_tick_goes_on_with_the_next(log: EventLog) -> None:
    found = read_all(ExampleTicks(log, "reader"))
    for at in range(0, len(found), 3):
        again = ExampleTicks(log, "other")
        again.seek(found[at].positions, found[at].tick)
        assert full(read_all(again)) == full(found[at + 1 :])
        assert again.ended


def test_a_restart_at_the_end_knows_that_it_is_the_end(log: EventLog) -> None:
    last = read_all(ExampleTicks(log, "reader"))[-1]
    again = ExampleTicks(log, "other")
    again.seek(last.positions, last.tick)
    assert again.next_tick() is None
    assert again.ended


def test_repeats_of_a_second_joiner_are_dropped_also_after_a_seek(log: EventLog, tmp_path: Path) -> None:
    copy, rng = logs.open_here(tmp_path / "repeats"), np.random.default_rng(3)
    writer = copy.writer("examples")
    for p in range(logs.PARTITIONS):
        records = [record for record in logs.contents(log) if record[0] == p]
        at = 0
        while at < len(records):
            _, key, meta, value, when = records[at]
            writer.append(p, value, timestamp_ms=when, meta=meta, key=key)
            at += 1 if rng.random() < 0.7 else -min(at, int(rng.integers(0, 3)))
    writer.close()
    expected = full(read_all(ExampleTicks(log, "reader")))
    found = read_all(ExampleTicks(copy, "reader"))
    assert copy.end_offset("examples", 0) > log.end_offset("examples", 0)
    assert full(found) == expected
    for at in range(0, len(found), 5):
        again = ExampleTicks(copy, "other")
        again.seek(found[at].positions, found[at].tick)
        assert full(read_all(again)) == full(found[at + 1 :])
    copy.close()


def test_a_missing_record_halts(log: EventLog, tmp_path: Path) -> None:
    copy = logs.open_here(tmp_path / "gap")
    writer = copy.writer("examples")
    for n, (p, key, meta, value, when) in enumerate(logs.contents(log)):
        if n != 4:
            writer.append(p, value, timestamp_ms=when, meta=meta, key=key)
    writer.close()
    with pytest.raises(CorruptStateError, match="records are missing"):
        read_all(ExampleTicks(copy, "reader"))
    copy.close()


def test_counts_and_positions_are_those_of_the_last_tick(log: EventLog) -> None:
    ticks = ExampleTicks(log, "reader")
    last = read_all(ticks)[-1]
    counts = ticks.counts()
    assert last.positions == {p: log.end_offset("examples", p) for p in range(logs.PARTITIONS)}
    assert last.events_in == counts["events_in"]
    assert counts["joined_impressions"] == sum(map(len, by_hand(log).values()))
