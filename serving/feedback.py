"""Closes the loop: what clients post goes into `events`, and a clock that goes on keeps time moving there.

One thread owns the writers. It takes what was posted meanwhile, stamps it with one event time, appends one record a
partition and flushes: a post is answered when it is durable. Where the replay's clock goes on, it writes a heartbeat
into every partition of `events` and into `items` as each tick ends (plus the disorder bound), so that posts close.
The queue is bounded: a full one is answered with 503 and Retry-After.
"""

import queue
import threading
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from infra.errors import RetryableError
from infra.eventlog import EventLog
from infra.ticks import Timeline
from serving.clock import EventClock
from serving.fates import Fate, Fates
from serving.requests import PostedEvents, columns_by_partition
from stream.events import RecordMeta, encode_events, encode_items, encode_meta, heartbeats, item_heartbeats

MAX_WAITING = 256  # posts in the queue
MAX_POSTS = 64  # posts made durable together
LOOK_S = 0.02  # how often a due heartbeat is looked for
META = encode_meta(RecordMeta())


class Receipt(NamedTuple):
    """What a post became: `fates` says of each event, in order, what is known of it."""

    fates: list[Fate]
    times_ms: list[int]  # of the events
    ingested_ms: int


class Feedback:
    """`start()`, `submit(posts)`, `stop()`."""

    def __init__(self, log: EventLog, timeline: Timeline, clock: EventClock, fates: Fates | None = None) -> None:
        self._timeline, self._clock = timeline, clock
        self._fates = fates or Fates(timeline)
        self._partitions = log.partitions("events")
        self._events, self._items = log.writer("events"), log.writer("items")
        self._posts: queue.Queue[tuple[PostedEvents, Future[Receipt]]] = queue.Queue(MAX_WAITING)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._heartbeat_tick: int | None = None  # newest tick whose end was announced
        self.heartbeats = 0
        self.failure: BaseException | None = None  # what ended the thread

    def start(self) -> None:
        self._thread.start()

    def submit(self, posts: PostedEvents) -> "Future[Receipt]":
        """A future that is done when the events are durable. Raises RetryableError when too many posts wait."""
        done: Future[Receipt] = Future()
        if self.failure is not None or self._stop.is_set():
            raise RetryableError(f"events are not taken now ({self.failure or 'stopping'})", after_s=5.0)
        try:
            self._posts.put_nowait((posts, done))
        except queue.Full:
            raise RetryableError(f"{MAX_WAITING} posts are waiting; try again", after_s=1.0) from None
        return done

    def stop(self) -> None:
        """Write what was posted, then stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._events.close()
        self._items.close()

    def _run(self) -> None:
        try:
            while not (self._stop.is_set() and self._posts.empty()):
                self._write_posts(self._take())
                self._beat()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self._refuse_waiting()

    def _take(self) -> list[tuple[PostedEvents, "Future[Receipt]"]]:
        taken: list[tuple[PostedEvents, Future[Receipt]]] = []
        try:
            taken.append(self._posts.get(timeout=LOOK_S))
            while len(taken) < MAX_POSTS:
                taken.append(self._posts.get_nowait())
        except queue.Empty:
            pass
        return [(posts, done) for posts, done in taken if done.set_running_or_notify_cancel()]

    def _write_posts(self, taken: list[tuple[PostedEvents, "Future[Receipt]"]]) -> None:
        if not taken:
            return
        now_ms = self._clock.now_ms()
        if now_ms <= 0:  # a stamp of 1970 would be dropped as late for ever
            for _, done in taken:
                done.set_exception(RetryableError("the run has no event time yet: nothing was replayed", after_s=1.0))
            return
        try:
            for partition, rows in columns_by_partition([p for p, _ in taken], self._partitions, now_ms).items():
                self._events.append(partition, encode_events(rows), timestamp_ms=now_ms, meta=META)
            self._events.flush()
        except RetryableError as error:
            for _, done in taken:
                done.set_exception(error)
            return
        for posts, done in taken:
            rows = posts.rows_at(now_ms)
            fates = self._fates.of(rows, posts.homes(self._partitions), now_ms)
            done.set_result(Receipt(fates, rows.time_ms.tolist(), now_ms))

    def _beat(self) -> None:
        """A heartbeat at (t + 1)·T + bound for the newest tick t whose time has come."""
        if not self._clock.go_on_if_due():
            return
        tick = self._timeline.closed_through(self._clock.now_ms() - self._timeline.disorder_bound_ms)
        if self._heartbeat_tick is None:
            self._heartbeat_tick = tick
        if tick <= self._heartbeat_tick:
            return
        due_ms = self._timeline.end_ms(tick) + self._timeline.disorder_bound_ms
        stamp = np.array([due_ms], dtype=np.int64)
        value = encode_events(heartbeats(stamp))
        try:
            for partition in range(self._partitions):
                self._events.append(partition, value, timestamp_ms=due_ms, meta=META)
            self._items.append(0, encode_items(item_heartbeats(stamp)), timestamp_ms=due_ms, meta=META)
            self._events.flush()
            self._items.flush()
        except RetryableError:
            return  # buffered, or tried again at the next look: a heartbeat twice is a heartbeat
        self._heartbeat_tick = tick
        self._fates.heartbeat(due_ms)
        self.heartbeats += 1

    def _refuse_waiting(self) -> None:
        while True:
            try:
                _, done = self._posts.get_nowait()
            except queue.Empty:
                return
            done.set_exception(RetryableError("the process is stopping; post again", after_s=5.0))
