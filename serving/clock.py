"""What time it is in the run: event time, for requests and for what is posted.

    while a replay runs        the newest `ingested_at` in `events`
    after it ended             that moment, and the wall time since, times a speed: the replay's clock goes on
    without a replay           the wall clock, also after a suspend or a step of it (`wall`)

So a click that is posted after a replay of 2019 lands minutes after its last event, not years. One process a run writes
the heartbeats of a clock that goes on (a lock says which); the others read the time from the log, in a thread that asks
when it is due: brokers that are away keep the time where it was, and nobody waiting.
"""

import fcntl
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import IO

from infra.errors import RetryableError
from infra.eventlog import EventLog
from stream.events import LIVE, meta_or_live

REFRESH_S = 0.02  # how stale the time of a running replay may be
READ_SHARE = 20  # ... or this many times what reading it takes: on a cluster it is some requests
READ_MOST_S = 2.0  # ... but no longer: reading that took an outage is no measure
ASK_WAIT_S = 0.25  # whoever asks waits so long for the answer, and takes what is known
CLOSE_WAIT_S = 1.0
BEHIND_SHARE = 2  # time passes at half its speed while it is ahead of a wall clock that was set back
SCAN_RECORDS = 256


class ClockMode(StrEnum):
    """`auto`: continue a finished replay. `wall`: no replay, wall time. `off`: read the log, never go on by itself."""

    AUTO = "auto"
    WALL = "wall"
    OFF = "off"


class EventClock:
    """Event time, ms since the epoch; never runs backwards. Safe in several threads."""

    def __init__(
        self,
        log: EventLog,
        *,
        mode: ClockMode = ClockMode.AUTO,
        speed: float = 1.0,
        lock_file: Path | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < speed < float("inf"):
            raise ValueError(f"speed {speed}: event seconds a wall second, above 0")
        self._log, self._mode, self._speed = log, mode, speed
        self._monotonic_s, self._wall_s = monotonic_s, wall_s
        self._lock_file, self._lock = lock_file, threading.Lock()
        self._held: IO[bytes] | None = None
        self._start: tuple[int, float] | None = None  # event ms and monotonic s at which the clock went on by itself
        self._wall_start: tuple[int, float] | None = None  # ... and, by the wall clock, event ms and wall s
        self._newest_ms = 0
        self._next_read_s = self._next_try_s = float("-inf")
        self._asking: threading.Thread | None = None

    @property
    def going_on(self) -> bool:
        """True once time passes by itself here: this process writes the heartbeats."""
        return self._start is not None

    def now_ms(self) -> int:
        """0 where nothing was ever in the log. Waits ASK_WAIT_S for the log at most."""
        self._ask_if_due()
        with self._lock:
            if self._start is not None:
                self._newest_ms = max(self._newest_ms, self._passed_ms(*self._start))
            return self._newest_ms

    def _passed_ms(self, start_ms: int, start_s: float) -> int:
        """What the time has become by itself. A monotonic clock stands still in a suspend: `wall` goes by both."""
        now_s = self._monotonic_s()
        if self._wall_start is None:
            return start_ms + int((now_s - start_s) * 1000 * self._speed)
        anchor_ms, anchor_s = self._wall_start
        wall_ms = anchor_ms + int((self._wall_s() - anchor_s) * 1000 * self._speed)
        slow_ms = start_ms + int((now_s - start_s) * 1000 * self._speed / BEHIND_SHARE)
        if wall_ms >= slow_ms:
            self._start = (wall_ms, now_s)
        return max(wall_ms, slow_ms)

    def go_on_if_due(self) -> bool:
        """Start running where nobody else moves time: the replay ended, or there is none and mode is `wall`."""
        if self._start is not None or self._mode is ClockMode.OFF:
            return self._start is not None
        if self._monotonic_s() < self._next_try_s:
            return False
        started = self._monotonic_s()
        if not self._take_lock():
            return False
        if self._mode is ClockMode.AUTO and not replay_ended(self._log):
            self._next_try_s = started + min(READ_SHARE * (self._monotonic_s() - started), READ_MOST_S)
            self._release()
            return False
        newest, wall_s = self._newest_in_log(), self._wall_s()
        with self._lock:
            if self._mode is ClockMode.WALL:
                wall_ms = int(wall_s * 1000)
                newest = max(newest, wall_ms)
                self._wall_start = (wall_ms if self._speed == 1 else newest, wall_s)
            self._start = (newest, self._monotonic_s())
        return True

    def close(self) -> None:
        """Let go of the lock; what the log still answers, nobody needs."""
        if (asking := self._asking) is not None:
            asking.join(CLOSE_WAIT_S)
        self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _ask_if_due(self) -> None:
        """Have the log asked, by one at a time; only whoever begins it waits for the answer."""
        answered = threading.Event()
        with self._lock:
            due = self._monotonic_s() >= self._next_read_s or self._newest_ms <= 0
            if self._start is not None or self._asking is not None or not due:
                return
            self._asking = threading.Thread(target=self._ask, args=(answered,), name="clock", daemon=True)
            self._asking.start()
        answered.wait(ASK_WAIT_S)

    def _ask(self, answered: threading.Event) -> None:
        started_s, newest = self._monotonic_s(), 0
        try:
            newest = self._newest_in_log()
        except RetryableError:
            pass  # the log has said that nothing answers; the next look asks again
        finally:
            with self._lock:
                took_s = self._monotonic_s() - started_s
                self._newest_ms = max(self._newest_ms, newest)
                self._next_read_s = started_s + max(REFRESH_S, min(READ_SHARE * took_s, READ_MOST_S))
                self._asking = None
            answered.set()

    def _newest_in_log(self) -> int:
        last = (self._log.last_record("events", p) for p in range(self._log.partitions("events")))
        return max((record.timestamp_ms for record in last if record is not None), default=0)

    def _take_lock(self) -> bool:
        if self._lock_file is None:
            return True
        file = open(self._lock_file, "ab")  # noqa: SIM115 - held until close
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._held = file
        return True


def replay_ended(log: EventLog) -> bool:
    """Whether a replay wrote to this log and said, in every partition, that it ended."""
    return all(_ended(log, partition) for partition in range(log.partitions("events")))


def _ended(log: EventLog, partition: int) -> bool:
    start, end = log.start_offset("events", partition), log.end_offset("events", partition)
    while end > start:
        lo = max(start, end - SCAN_RECORDS)
        for record in reversed(log.read("events", partition, lo, end - lo)):
            meta = meta_or_live(record.meta)
            if meta.end or meta.source != LIVE:
                return meta.end
        end = lo
    return False
