"""Posts become events that close: stamped, partitioned, durable; and time goes on after a replay."""

import errno
import threading

import numpy as np
import pytest

from infra.errors import RetryableError
from infra.hashing import hash64, partition_of
from serving.clock import ClockMode, EventClock, replay_ended
from serving.fates import Expected
from serving.feedback import Feedback
from serving.requests import parse_events
from stream.events import (
    LIVE,
    EventKind,
    RecordMeta,
    decode_events,
    decode_items,
    decode_meta,
    encode_events,
    encode_meta,
    heartbeats,
)

T0 = 1_600_000_000_000


class Hands:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def replayed(log, *, end: bool, at_ms: int = T0) -> None:
    """What a replay leaves: a heartbeat in every partition, the last one saying so."""
    writer = log.writer("events")
    for partition in range(log.partitions("events")):
        value = encode_events(heartbeats(np.array([at_ms], dtype=np.int64)))
        writer.append(partition, value, timestamp_ms=at_ms, meta=encode_meta(RecordMeta(source=41, end=end)))
    writer.flush()
    writer.close()


def all_events(log):
    return [
        (p, decode_events(r.value), r)
        for p in range(log.partitions("events"))
        for r in log.read("events", p, log.start_offset("events", p), 1_000)
    ]


def test_a_running_replay_tells_the_time_through_the_log(log):
    hands = Hands()
    clock = EventClock(log, monotonic_s=hands)
    assert clock.now_ms() == 0
    replayed(log, end=False)
    hands.now_s += 1
    assert clock.now_ms() == T0
    assert not clock.go_on_if_due()
    hands.now_s += 3_600
    assert clock.now_ms() == T0


class SilentLog:
    """A log whose brokers are away while `answers` is not set."""

    def __init__(self, log) -> None:
        self._log, self.answers, self.asked = log, threading.Event(), 0

    def __getattr__(self, name):
        return getattr(self._log, name)

    def last_record(self, topic, partition):
        self.asked += 1
        self.answers.wait()
        return self._log.last_record(topic, partition)


def test_a_log_that_does_not_answer_leaves_the_time_where_it_was_and_keeps_nobody_waiting(log):
    silent, hands = SilentLog(log), Hands()
    silent.answers.set()
    clock = EventClock(silent, monotonic_s=hands)
    replayed(log, end=False)
    assert clock.now_ms() == T0
    silent.answers.clear()
    replayed(log, end=False, at_ms=T0 + 1_000)
    asked = silent.asked
    for _ in range(100):
        hands.now_s += 1
        assert clock.now_ms() == T0
    assert silent.asked == asked + 1, "one question is under way, whoever asks"
    silent.answers.set()
    clock.close()
    hands.now_s += 100
    assert clock.now_ms() == T0 + 1_000


def test_the_clock_of_an_ended_replay_goes_on_at_its_speed(log, tmp_path):
    hands = Hands()
    clock = EventClock(log, speed=60.0, lock_file=tmp_path / "lock", monotonic_s=hands)
    replayed(log, end=True)
    assert clock.go_on_if_due()
    hands.now_s += 2
    assert clock.now_ms() == T0 + 120_000
    other = EventClock(log, lock_file=tmp_path / "lock", monotonic_s=hands)
    assert not other.go_on_if_due(), "one clock a run"
    clock.close()
    assert other.go_on_if_due()
    other.close()


def test_a_restarted_server_knows_behind_live_records_that_the_replay_ended(log):
    replayed(log, end=False)
    assert not replay_ended(log)
    replayed(log, end=True, at_ms=T0 + 60_000)
    writer = log.writer("events")
    for i in range(600):
        value = encode_events(heartbeats(np.array([T0 + i], dtype=np.int64)))
        writer.append(i % 2, value, timestamp_ms=T0 + 60_000 + i, meta=encode_meta(RecordMeta()))
    writer.flush()
    writer.close()
    assert replay_ended(log)


def test_a_log_without_a_replay_goes_on_by_the_wall_only_when_told(log):
    assert not EventClock(log).go_on_if_due()
    assert not EventClock(log, mode=ClockMode.OFF).go_on_if_due()
    clock = EventClock(log, mode=ClockMode.WALL, wall_s=lambda: 1e9, monotonic_s=Hands())
    assert clock.go_on_if_due()
    assert clock.now_ms() == 10**12


def post(config, *events: bytes):
    return parse_events(b'{"events": [' + b",".join(events) + b"]}", config.wire)


SHOW = b'{"type": "impression", "id": "i1", "user": "U1", "items": ["N1", "N2"], "history": ["N9"]}'
CLICK = b'{"type": "engagement", "impression": "i1", "user": "U1", "item": "N2", "kind": "click"}'


def test_posts_are_stamped_keyed_and_durable_when_answered(log, config):
    replayed(log, end=False)
    feedback = Feedback(log, config.time.build(), EventClock(log))
    feedback.start()
    receipt = feedback.submit(post(config, SHOW, CLICK)).result(timeout=10)
    assert (receipt.fates, receipt.ingested_ms) == ([Expected.ACCEPTED] * 2, T0)
    ((partition, rows, record),) = [e for e in all_events(log) if decode_meta(e[2].meta).source == LIVE]
    assert partition == partition_of("U1", log.partitions("events"))
    assert rows.kind.tolist() == [EventKind.IMPRESSION, EventKind.ENGAGEMENT]
    assert rows.ingested_ms.tolist() == rows.time_ms.tolist() == [T0, T0]
    assert rows.impression.tolist() == [hash64("i1")] * 2
    assert rows.items[0].tolist() == [hash64("N1"), hash64("N2")]
    assert rows.history[0].tolist() == [hash64("N9")]
    assert rows.item[1] == hash64("N2")
    assert record.timestamp_ms == T0
    feedback.stop()


def test_heartbeats_reach_every_partition_once_a_tick(log, config):
    timeline, hands = config.time.build(), Hands()
    replayed(log, end=True, at_ms=timeline.start_ms(timeline.tick_of(T0)))
    feedback = Feedback(log, timeline, EventClock(log, speed=60.0, monotonic_s=hands))
    first = None
    for _ in range(31):  # half a second a step: half a tick of event time
        feedback._beat()
        first = first or feedback._heartbeat_tick
        hands.now_s += 0.5
    assert feedback.heartbeats == 15
    beats = [e for e in all_events(log) if decode_meta(e[2].meta).source == LIVE]
    due = [timeline.end_ms(first + 1 + i) + timeline.disorder_bound_ms for i in range(15)]
    for partition in range(log.partitions("events")):
        assert [int(rows.ingested_ms[0]) for p, rows, _ in beats if p == partition] == due
    items = [decode_items(r.value) for r in log.read("items", 0, 0, 100)]
    assert [int(rows.ingested_ms[0]) for rows in items] == due
    feedback.stop()


def test_a_full_disk_refuses_the_post_and_the_next_one_passes(log, config, monkeypatch: pytest.MonkeyPatch):
    replayed(log, end=False)
    feedback = Feedback(log, config.time.build(), EventClock(log))

    def full() -> None:
        raise RetryableError(f"[Errno {errno.ENOSPC}] no space", after_s=5.0)

    with monkeypatch.context() as patch:
        patch.setattr(feedback._events, "flush", full)
        feedback.start()
        with pytest.raises(RetryableError, match="no space"):
            feedback.submit(post(config, SHOW)).result(timeout=10)
    assert feedback.submit(post(config, CLICK)).result(timeout=10).fates == [Expected.UNKNOWN]
    feedback.stop()


def test_a_full_queue_and_a_stopped_thread_are_said(log, config):
    replayed(log, end=False)
    feedback = Feedback(log, config.time.build(), EventClock(log))
    posts = post(config, SHOW)
    futures = [feedback.submit(posts) for _ in range(256)]
    with pytest.raises(RetryableError, match="waiting"):
        feedback.submit(posts)
    futures[7].cancel()  # a client that went away
    feedback.start()
    assert all(len(f.result(timeout=10).fates) == 1 for i, f in enumerate(futures) if i != 7)
    feedback.stop()
    with pytest.raises(RetryableError, match="not taken"):
        feedback.submit(posts)


def test_the_wall_clock_is_followed_through_a_suspend_and_a_step_and_never_runs_backwards(log):
    wall, hands = Hands(), Hands()
    wall.now_s = 1.8e9
    clock = EventClock(log, mode=ClockMode.WALL, wall_s=wall, monotonic_s=hands)
    assert clock.go_on_if_due()

    def pass_s(monotonic_s: float, wall_s: float) -> float:
        """How far the clock is ahead of the wall then, s."""
        hands.now_s, wall.now_s = hands.now_s + monotonic_s, wall.now_s + wall_s
        return clock.now_ms() / 1000 - wall.now_s

    assert pass_s(10, 10) == 0
    assert pass_s(0, 8 * 3_600) == 0, "the machine slept, and its monotonic clock stood still"
    assert pass_s(60, 60) == 0
    assert pass_s(0, -3_600) == 3_600, "time does not run backwards"
    assert pass_s(1_800, 1_800) == 2_700, "it passes at half its speed until the wall has caught up"
    assert pass_s(5_400, 5_400) == pytest.approx(0, abs=0.01)
    assert pass_s(100, 100) == 0
