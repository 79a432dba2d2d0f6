"""The joiner over a log on disk: polls, restarts, a second worker, bad records and a full disk change no byte."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from infra.errors import CorruptStateError, RetryableError
from stream.events import RecordMeta, decode_events, encode_meta
from stream.examples import decode_example_meta
from stream.join import worker as worker_module
from tests.join import logs, scenes


@pytest.fixture
def whole(tmp_path: Path) -> Any:
    """What one undisturbed worker makes of the random log."""
    log = logs.with_events(tmp_path / "whole")
    logs.join_all(log)
    records = logs.contents(log)
    log.close()
    return records


@pytest.mark.parametrize("size", [1, 7])
def test_how_records_are_polled_changes_no_byte(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(worker_module, "POLL_RECORDS", size)
    log = logs.with_events(tmp_path / "again")
    logs.join_all(log)
    assert logs.contents(log) == whole
    log.close()


def test_workers_that_die_anywhere_leave_the_same_bytes(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    log = logs.with_events(tmp_path / "again")
    for _ in range(200):
        monkeypatch.setattr(worker_module, "POLL_RECORDS", int(rng.integers(1, 12)))
        joiner = logs.worker(log)
        for _ in range(int(rng.integers(1, 4))):
            joiner.step()
        if joiner.ended:
            break
        if rng.random() < 0.5:
            joiner.flush = lambda: None  # type: ignore[method-assign]
            joiner.step()  # read and joined, never written
    logs.join_all(log)
    assert logs.contents(log) == whole
    log.close()


def test_a_joiner_per_partition_writes_what_one_joiner_writes(tmp_path: Path, whole: Any) -> None:
    log = logs.with_events(tmp_path / "again")
    for p in (1, 0):
        joiner = logs.worker(log, partitions=[p], name=f"joiner-{p}")
        while joiner.step():
            pass
        joiner.close()
    assert logs.contents(log) == whole
    log.close()


def test_a_second_worker_that_believes_it_owns_the_partition_repeats_nothing(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "POLL_RECORDS", 5)
    log = logs.with_events(tmp_path / "again")
    pair = [logs.worker(log, name="a"), logs.worker(log, name="zombie")]
    rng = np.random.default_rng(6)
    while not all(joiner.ended for joiner in pair):
        pair[int(rng.integers(2))].step()
    assert sum(joiner.resyncs for joiner in pair) > 3
    assert logs.contents(log) == whole
    log.close()


def test_a_second_worker_that_loses_the_race_can_only_repeat_identical_records(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "POLL_RECORDS", 5)
    log = logs.with_events(tmp_path / "again")
    pair = [logs.worker(log, name="a"), logs.worker(log, name="zombie")]
    blind = pair[1]
    while not pair[0].ended:
        pair[0].step()
    blind.held.written = {p: log.end_offset("examples", p) for p in range(logs.PARTITIONS)}  # looked just before
    blind.step()
    known = {(p, decode_example_meta(meta).seq): (meta, value) for p, _, meta, value, _ in whole}
    records = logs.contents(log)
    assert len(records) > len(whole)
    assert all(known[p, decode_example_meta(meta).seq] == (meta, value) for p, _, meta, value, _ in records)
    log.close()


def test_bad_records_and_rows_become_dead_letters_once_and_the_join_goes_on(tmp_path: Path) -> None:
    log = logs.open_here(tmp_path)
    rows = [
        scenes.Row(0, 1_000_000, 1_000_000, 1, 1, items=(4, 5)),
        scenes.Row(3, 1_000_000, 1_000_000),
        scenes.Row(1, 1_000_000, 1_000_000, 1, 1, 4, 12),
    ]
    writer = log.writer("events")
    for p in range(logs.PARTITIONS):
        writer.append(p, b"not arrow", timestamp_ms=1_010_000)
        writer.append(p, scenes.encode(rows), timestamp_ms=1_010_000)
        beat = [scenes.Row(2, 1_010_000, 0)]
        writer.append(p, scenes.encode(beat), timestamp_ms=1_010_000, meta=encode_meta(RecordMeta(end=True)))
    writer.flush()
    logs.join_all(log)
    logs.join_all(log)
    dead = logs.contents(log, "dead-letters")
    counts = [decode_example_meta(meta).counts for _, _, meta, _, _ in logs.contents(log)][-1]
    assert [key for _, key, *_ in dead] == [b"events/0/0", b"events/0/1", b"events/1/0", b"events/1/1"]
    reasons = [msgspec.msgpack.decode(meta)["reason"] for _, _, meta, _, _ in dead]
    assert reasons == ["unknown_format", "unusable_row"] * 2
    assert len(decode_events(dead[1][3])) == 2
    assert counts["malformed"] == 3
    assert counts["events_in"] == 4
    log.close()


def test_a_full_disk_is_waited_out_and_changes_no_byte(tmp_path: Path, whole: Any) -> None:
    log = logs.with_events(tmp_path / "again")
    naps: list[float] = []
    joiner = logs.worker(log, sleep=naps.append)
    flush, tries = joiner.held.examples.flush, iter(range(100))

    def full_at_first() -> None:
        if next(tries) < 3:
            raise RetryableError("no space", after_s=0.5)
        flush()

    joiner.held.examples.flush = full_at_first  # type: ignore[method-assign]
    while joiner.step():
        pass
    assert naps == [0.5] * 3
    assert logs.contents(log) == whole
    log.close()


def test_events_that_a_rebuild_needs_and_retention_dropped_are_named(tmp_path: Path) -> None:
    log = logs.with_events(tmp_path)
    logs.join_all(log)
    start = log.start_offset
    log.start_offset = lambda topic, p: 10**6 if topic == "events" else start(topic, p)  # type: ignore[method-assign]
    with pytest.raises(CorruptStateError, match="rows it needs are gone"):
        logs.worker(log)
    log.close()


def test_the_join_waits_for_a_slow_trainer_and_never_for_a_slow_retrain(tmp_path: Path) -> None:
    log = logs.with_events(tmp_path / "slow")
    waits: list[int] = []
    log.reader("examples", "retrain")
    joiner = logs.worker(log, max_lag_records=0, while_waiting=lambda: waits.append(1), stopping=lambda: bool(waits))
    while joiner.step():
        pass
    assert joiner.ended
    assert not waits
    log.reader("examples", "trainer")
    other = logs.worker(log, name="other", max_lag_records=0, while_waiting=lambda: waits.append(1))
    other._stopping = lambda: bool(waits)
    other._hold_back()
    assert waits
    log.close()
