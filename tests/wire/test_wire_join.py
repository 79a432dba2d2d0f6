"""The joiner over records of other producers: every format gives the same bytes, polls and restarts change none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.config import WireConfig
from infra.eventlog import EventLog
from infra.hashing import partition_of
from stream.deadletters import Buried, count_by_reason
from stream.events import RecordMeta, encode_meta
from stream.examples import decode_example_meta
from stream.join import core
from stream.join import worker as worker_module
from stream.join.worker import JoinWorker
from tests.join import logs, scenes
from tests.wire import samples

END = scenes.Row(2, 1_060_000, 1_060_000)


def write(folder: Path, form: str, seeds: tuple[int, ...] = (1, 2), *, single: bool = False) -> EventLog:
    """Scenes of partition p from seed p; `form` "mixed": another format for every record."""
    log = logs.open_here(folder)
    writer, rng = log.writer("events"), np.random.default_rng(7)
    for p, seed in enumerate(seeds):
        records = [*samples.readable(scenes.random_log(seed)), [END]]
        if single:
            records = [[row] for record in records for row in record]
        for at, rows in enumerate(records):
            now = str(rng.choice(["json", "msgpack", "arrow"])) if form == "mixed" else form
            meta = encode_meta(RecordMeta(source=at, end=at == len(records) - 1))
            when = max((row.ingested_ms for row in rows), default=1_000_000)
            writer.append(p, samples.render(rows, now), timestamp_ms=when, meta=meta)
    writer.close()
    return log


def join(log: EventLog, wire: WireConfig = samples.WIRE, **options: Any) -> JoinWorker:
    return JoinWorker(log, scenes.settings(core), wire=wire, **options)


def join_all(log: EventLog, wire: WireConfig = samples.WIRE) -> dict[str, int]:
    worker = join(log, wire)
    while worker.step():
        pass
    counts = worker.counts()
    worker.close()
    return counts


@pytest.mark.parametrize("single", [False, True], ids=["batches", "singles"])
def test_json_msgpack_and_columns_give_the_same_bytes(tmp_path: Path, single: bool) -> None:
    made = {}
    for form in ("arrow", "json", "msgpack", "mixed"):
        log = write(tmp_path / form, form, single=single)
        join_all(log)
        made[form] = logs.contents(log)
        assert not count_by_reason(log)
        log.close()
    assert len(made["arrow"]) > 50
    assert made["json"] == made["msgpack"] == made["mixed"] == made["arrow"]


@pytest.mark.parametrize("size", [1, 7])
def test_how_single_events_are_polled_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    made = []
    for poll in (128, size):
        monkeypatch.setattr(worker_module, "POLL_RECORDS", poll)
        log = write(tmp_path / str(poll), "mixed", single=True)
        join_all(log)
        made.append(logs.contents(log))
        log.close()
    assert made[0] == made[1]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_a_run_of_single_events_is_the_same_as_one_after_the_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [[row] for record in scenes.random_log(seed, seconds=20) for row in record]
    alone = core.PartitionJoiner(0, scenes.settings(core))
    whole = scenes.feed(alone, rows)
    for last in (None, whole[len(whole) // 3].meta, whole[-2].meta):
        joiner = core.PartitionJoiner(0, scenes.settings(core), last=last)
        outputs, at = [], joiner.next_offset
        while at < len(rows) - 1:
            stop = min(at + int(rng.integers(1, 30)), len(rows) - 1)
            if at <= joiner.rebuild_end:
                stop = max(min(stop, joiner.rebuild_end), at + 1)
            columns = scenes.columns([row for record in rows[at:stop] for row in record])
            if stop - at > 1:
                outputs += joiner.push_run(at, columns)
            else:
                outputs += joiner.push(at, columns)
            at = stop
        outputs += joiner.push(at, scenes.columns(rows[at]), end=True)
        done = 0 if last is None else last.seq + 1
        assert scenes.as_bytes(outputs) == scenes.as_bytes(whole[done:])


# -- dead ones -------------------------------------------------------------------------------------------------------


def poisoned(folder: Path, *, seed: int = 3, good: int = 3_000) -> tuple[EventLog, int]:
    """A log of which a tenth is malformed, in every way, in every format; and how many events are."""
    log, rng = logs.open_here(folder), np.random.default_rng(seed)
    writer, dead = log.writer("events"), 0
    bad_records = [value for _, value in samples.RECORDS if len(value) < 10_000]
    events = samples.some_impressions(good)
    home = {f"u{i}": partition_of(f"u{i}", logs.PARTITIONS) for i in range(50)}
    while events:
        form = samples.FORMS[int(rng.integers(2))]
        if rng.random() < 0.04:
            value = bad_records[int(rng.integers(len(bad_records)))]
            writer.append(int(rng.integers(logs.PARTITIONS)), value, timestamp_ms=samples.NOW)
            dead += 1
            continue
        n = 1 if rng.random() < 0.7 else int(rng.integers(2, 8))
        taken, events = events[:n], events[n:]
        for p in range(logs.PARTITIONS):
            raws = [samples.pack(event, form) for event in taken if home[event["user"]] == p]
            if not raws:
                continue
            if rng.random() < 0.12 * len(raws):
                bad = samples.EVENTS[int(rng.integers(len(samples.EVENTS)))].raw(form)
                if bad:
                    raws.insert(int(rng.integers(len(raws) + 1)), bad)
                    dead += 1
            writer.append(p, as_record(raws, form), timestamp_ms=max(e["time_ms"] for e in taken) + 10)
    for p in range(logs.PARTITIONS):
        beat = samples.pack({"type": "heartbeat"}, "json")
        writer.append(p, beat, timestamp_ms=samples.NOW + 10_000_000, meta=encode_meta(RecordMeta(end=True)))
    writer.close()
    return log, dead


def as_record(raws: list[bytes], form: str) -> bytes:
    if len(raws) == 1:
        return raws[0]
    if form == "json":
        return b"[" + b",".join(raws) + b"]"
    return bytes([0x90 + len(raws)]) + b"".join(raws)


def test_a_tenth_of_malformed_events_is_in_dead_letters_and_counted_and_the_others_join(tmp_path: Path) -> None:
    log, dead = poisoned(tmp_path)
    counts = join_all(log, WireConfig())
    reasons = count_by_reason(log)
    assert dead / counts["events_in"] == pytest.approx(0.1, abs=0.04)
    assert counts["malformed"] == sum(reasons.values()) == dead
    assert counts["events_in"] == 3_000 + dead
    assert counts["joined_impressions"] + counts["joined_engagements"] == 3_000
    assert len(reasons) >= 12
    assert [decode_example_meta(r[2]).counts["malformed"] for r in logs.contents(log)][-1] > 0
    log.close()


def test_workers_that_die_anywhere_bury_every_event_once_and_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, dead = poisoned(tmp_path / "whole")
    join_all(whole, WireConfig())
    log, _ = poisoned(tmp_path / "again")
    rng = np.random.default_rng(5)
    for _ in range(60):
        monkeypatch.setattr(worker_module, "POLL_RECORDS", int(rng.integers(1, 60)))
        worker = join(log, WireConfig())
        for _ in range(int(rng.integers(1, 4))):
            worker.step()
        if worker.ended:
            break
        if rng.random() < 0.5:
            worker.held.examples.flush = lambda: None  # type: ignore[method-assign]
            worker.step()  # its letters are durable, its output is not
    join_all(log, WireConfig())
    assert logs.contents(log) == logs.contents(whole)
    assert sum(count_by_reason(log).values()) == dead
    letters = logs.contents(log, "dead-letters")
    assert len({key for _, key, *_ in letters}) == len(letters)
    assert sorted(letters) == sorted(logs.contents(whole, "dead-letters"))
    whole.close()
    log.close()


def test_other_limits_after_a_restart_bring_nothing_back_and_kill_nothing_that_lived(tmp_path: Path) -> None:
    log, dead = poisoned(tmp_path / "limits")
    whole, _ = poisoned(tmp_path / "whole")
    join_all(whole, WireConfig())
    worker = join(log, WireConfig())
    worker.step()
    worker.step()
    half = sum(count_by_reason(log).values())
    read = {p: worker.last(p) for p in range(logs.PARTITIONS)}
    worker._reader.close()
    assert all(read.values())
    assert 0 < half < dead
    wide = WireConfig(max_id_bytes=500, max_items=5_000, max_history=5_000, max_depth=100)
    narrow = WireConfig(max_id_bytes=2)
    for wire in (wide, narrow):
        joiner = join(log, wire)
        for p, joined in joiner.held.joiners.items():
            records = log.read("events", p, joined.next_offset, joined.rebuild_end - joined.next_offset + 1)
            joiner.held.feed(p, records)
            assert not joined.rebuilding
            assert joiner.last(p) is not None
        assert not joiner.dead
        joiner.held.outputs.clear()
        joiner._reader.close()
    join_all(log, WireConfig())
    assert logs.contents(log) == logs.contents(whole)
    log.close()
    whole.close()


def test_letters_of_a_partition_are_forgotten_with_the_records_they_lie_in(tmp_path: Path) -> None:
    log, _ = poisoned(tmp_path)
    join_all(log, WireConfig())
    buried = Buried(log)
    buried.update()
    held = [o for o in range(log.end_offset("events", 0)) if buried.rows("events", 0, o)]
    buried.forget("events", 0, held[1])
    assert buried.rows("events", 0, held[0]) is None
    assert buried.rows("events", 0, held[1])
    log.close()
