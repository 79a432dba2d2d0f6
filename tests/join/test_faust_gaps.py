"""The Faust engine without Faust: whoever brings the records may lose, repeat, swap and keep them, or fall silent."""

import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import CorruptStateError
from infra.eventlog import EventLog, Record
from infra.metrics import Metrics
from stream.join import core
from stream.join.faust import engine as engine_module
from stream.join.faust.engine import FaustFailed, FaustWorker
from stream.join.faust.told import Assigned, Batch, Failed, Revoked, Told
from tests.join import logs, scenes

ALL = frozenset(range(logs.PARTITIONS))


class Bad:
    """Brings the records of a log; each is left out, repeated or put elsewhere with the given chances."""

    def __init__(self, log: EventLog, seed: int = 0, *, lose: float = 0, repeat: float = 0, swap: float = 0) -> None:
        self.inbox: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self.acknowledged: dict[int, int] = {}
        self.left_out = 0
        self._log, self._rng, self._chances = log, np.random.default_rng(seed), (lose, repeat, swap)

    def acknowledge(self, low: Mapping[int, int]) -> None:
        self.acknowledged.update(low)

    def stop(self) -> None:
        self.inbox.put(Revoked(ALL))

    def bring(self, stop: int = 1 << 60, start: int = 0) -> None:
        """Everything from `start` on and below `stop`, in batches over both partitions."""
        lose, repeat, swap = self._chances
        records: list[tuple[int, Record]] = []
        for p in ALL:
            for record in self._log.read("events", p, start, 10_000):
                chance = self._rng.random()
                if chance < lose or record.offset >= stop:
                    self.left_out += 1
                    continue
                records.append((p, record))
                if chance < lose + repeat:
                    records.insert(int(self._rng.integers(len(records))), (p, record))
                elif chance < lose + repeat + swap and len(records) > 5:
                    records.insert(len(records) - 4, records.pop())
        while records:
            size = int(self._rng.integers(1, 20))
            self.inbox.put(Batch(records[:size]))
            records = records[size:]


@pytest.fixture
def whole(tmp_path: Path) -> Any:
    log = logs.with_events(tmp_path / "whole")
    logs.join_all(log)
    records = logs.contents(log)
    log.close()
    return records


def engine(log: EventLog, bad: Bad, **options: Any) -> FaustWorker:
    return FaustWorker(log, scenes.settings(core), bad, **options)


def drain(worker: FaustWorker) -> None:
    while not worker._faust.inbox.empty():
        worker.step()


def ticking(step_s: float = 1.0) -> Any:
    """A clock that goes on by a step whenever somebody looks."""
    now = [0.0]

    def clock() -> float:
        now[0] += step_s
        return now[0]

    return clock


@pytest.mark.parametrize("seed", range(4))
def test_what_it_is_brought_badly_is_joined_to_the_same_bytes(tmp_path: Path, whole: Any, seed: int) -> None:
    log = logs.with_events(tmp_path / "again")
    bad = Bad(log, seed, lose=0.2, repeat=0.1, swap=0.1)
    bad.inbox.put(Assigned(ALL))
    bad.bring()
    worker = engine(log, bad, clock=ticking(0.3))
    drain(worker)
    for _ in range(40):
        worker.step()
    assert worker.ended
    assert worker.reread >= bad.left_out > 20
    assert logs.contents(log) == whole
    worker.close()
    log.close()


def test_an_engine_that_believes_what_it_is_brought_is_caught_by_the_test_above(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "missing", lambda *_: [])
    log = logs.with_events(tmp_path / "again")
    bad = Bad(log, 1, lose=0.2)
    bad.inbox.put(Assigned(ALL))
    bad.bring()
    worker = engine(log, bad)
    drain(worker)
    assert logs.contents(log) != whole
    worker.close()
    log.close()


def test_a_silent_bringer_is_done_without_and_metrics_say_so(tmp_path: Path, whole: Any) -> None:
    log = logs.with_events(tmp_path / "again")
    bad, metrics = Bad(log), Metrics("joiner")
    bad.inbox.put(Assigned(ALL))
    bad.bring(stop=50)
    worker = engine(log, bad, metrics=metrics, clock=ticking(0.3))
    drain(worker)
    assert not worker.ended
    for _ in range(40):
        worker.step()
    assert worker.ended
    assert logs.contents(log) == whole
    assert f"ouzel_faust_reread_total {worker.reread}.0".encode() in metrics.render()
    worker.close()
    log.close()


def test_partitions_that_go_and_come_again_and_one_that_another_joined_meanwhile(tmp_path: Path, whole: Any) -> None:
    log = logs.with_events(tmp_path / "again")
    bad = Bad(log, 3, lose=0.05)
    bad.inbox.put(Assigned(ALL))
    bad.bring(stop=60)
    bad.inbox.put(Revoked(ALL))
    worker = engine(log, bad, clock=ticking(0.01))
    drain(worker)
    assert worker.partitions == []
    other = logs.worker(log, partitions=[1], name="other")
    for _ in range(2):
        other.step()
    bad.inbox.put(Assigned(ALL))
    bad.bring()
    drain(worker)
    for _ in range(3_000):
        worker.step()
    assert worker.ended
    assert logs.contents(log) == whole
    worker.close()
    log.close()


def test_a_committed_offset_that_is_ahead_of_the_output_is_no_loss(tmp_path: Path, whole: Any) -> None:
    log = logs.with_events(tmp_path / "again")
    bad = Bad(log)
    bad.inbox.put(Assigned(ALL))
    bad.bring(start=60)
    worker = engine(log, bad)
    drain(worker)
    assert worker.reread == 60 * logs.PARTITIONS
    assert logs.contents(log) == whole
    worker.close()
    log.close()


def test_two_that_believe_they_own_the_same_partitions_write_the_same_bytes(tmp_path: Path, whole: Any) -> None:
    log = logs.with_events(tmp_path / "again")
    pair = []
    for seed in range(2):
        bad = Bad(log, seed, lose=0.1, repeat=0.1)
        bad.inbox.put(Assigned(ALL))
        bad.bring()
        pair.append(engine(log, bad, name=f"joiner-{seed}", clock=ticking(0.3)))
    rng = np.random.default_rng(9)
    while not all(worker.ended for worker in pair):
        pair[int(rng.integers(2))].step()
    assert sum(worker.resyncs for worker in pair) > 3
    assert logs.contents(log) == whole
    for worker in pair:
        worker.close()
    log.close()


def test_what_is_acknowledged_is_the_low_watermark_and_the_log_knows_it_too(tmp_path: Path) -> None:
    log = logs.with_events(tmp_path / "again")
    bad = Bad(log)
    bad.inbox.put(Assigned(ALL))
    bad.bring()
    worker = engine(log, bad)
    drain(worker)
    worker.close()
    lows = {p: last.low_offset for p in ALL if (last := worker.last(p)) is not None}
    assert bad.acknowledged == lows
    assert min(lows.values()) > 0
    assert log.reader_lag("events") == {"joiner": 0}
    log.close()


def test_a_bringer_that_ends_is_named_and_so_is_a_gap_that_retention_made(tmp_path: Path) -> None:
    log = logs.with_events(tmp_path / "again")
    bad = Bad(log)
    bad.inbox.put(Failed("KeyError('x')"))
    worker = engine(log, bad)
    with pytest.raises(FaustFailed, match=r"KeyError.*start the joiner again"):
        worker.step()
    bad.inbox.put(Assigned(ALL))
    worker.step()
    start = log.start_offset
    log.start_offset = lambda topic, p: 5 if topic == "events" else start(topic, p)  # type: ignore[method-assign]
    bad.inbox.put(Batch([(0, log.read("events", 0, 9, 1)[0])]))
    with pytest.raises(CorruptStateError, match="retention overtook"):
        worker.step()
    log.close()
