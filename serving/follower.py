"""Keeps a replica at the newest version in a thread of its own, and says whether it may be called ready.

Ready: a version is loaded, verified and warmed up, the thread is alive, and the served state is at most
`serve.max_lag_ticks` ticks behind what was closed. Not ready is no reason to stop answering: every answer says its age.
"""

import threading
import time
from pathlib import Path
from typing import NamedTuple

from infra.config import Config
from infra.errors import OuzelError
from infra.eventlog import EventLog
from infra.members import degraded, read_members
from infra.metrics import Metrics
from serving.clock import EventClock
from serving.model import View
from serving.replica import Replica
from serving.scorer import Scorer
from serving.warm import warm_posts, warm_ranking, warm_versions
from stream.examples import ExampleMeta, decode_example_meta

IDLE_S = 0.002
LOOK_AT_CLOSED_S = 0.1
LOOK_SHARE = 20  # ... and at most a twentieth of the thread's time: on a cluster a look is some requests
LOOK_MOST_S = 2.0  # ... but not longer: a look that took as long as an outage says nothing of the next one
VERSIONS_A_TURN = 64


class Readiness(NamedTuple):
    """Whether to send requests here, and if not, why."""

    ready: bool
    reason: str
    lag_ticks: int
    degraded: tuple[str, ...] = ()  # which processes of the run do not run, and what is missing without them


class Follower:
    """`start()`, then `readiness()` from any thread, then `stop()`."""

    def __init__(
        self,
        replica: Replica,
        scorer: Scorer,
        clock: EventClock,
        log: EventLog,
        config: Config,
        metrics: Metrics,
        folder: Path | None = None,
    ) -> None:
        """`folder`: of the run, where the fleet that started this process says how its members stand."""
        self._folder = folder
        self.replica, self._scorer, self._clock, self._log = replica, scorer, clock, log
        self._timeline, self._limit = config.time.build(), config.serve.max_lag_ticks
        self._metrics = metrics
        replica.on_applied = self._note_applied
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replica", daemon=True)
        self._warm: int | None = None  # generation that was warmed up
        self.takes_posts = threading.Event()  # what a post runs through is warm
        self._config, self._partitions = config, log.partitions("events")
        self._closed = -1
        self._next_look_s = float("-inf")
        self.failure = ""
        self.ended = threading.Event()  # the replay's end has been learned, and is served

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.replica.close()

    def view(self) -> View | None:
        """What is served; None before the first generation, and until what a request runs through is warm."""
        return None if self._warm is None else self.replica.view()

    def lag_ticks(self) -> int:
        """Ticks between what was closed (or should have been, where the clock goes on) and what is served.

        0 while nothing is served: then there is nothing that could lag.
        """
        if self.replica.version is None:
            return 0
        closed = self._closed
        if self._clock.going_on:
            due_ms = self._clock.now_ms() - self._timeline.disorder_bound_ms
            closed = max(closed, self._timeline.closed_through(due_ms))
        return max(0, closed - self.replica.through) if closed >= 0 else 0

    def readiness(self) -> Readiness:
        """Any thread may ask."""
        missing = tuple(degraded(read_members(self._folder))) if self._folder is not None else ()
        found = self._readiness()
        reason = "; ".join((found.reason, *missing))
        return found._replace(reason=reason, degraded=missing)

    def _readiness(self) -> Readiness:
        lag = self.lag_ticks()
        if self.failure:
            return Readiness(False, self.failure, lag)
        if self.replica.view() is None:
            return Readiness(False, "no version yet: the first generation is still being trained", lag)
        if self._warm is None or not self.takes_posts.is_set():
            return Readiness(False, "warming up", lag)
        if lag > self._limit:
            return Readiness(
                False,
                f"{lag} ticks behind what was closed, at most {self._limit}: are joiner and trainer running?",
                lag,
            )
        return Readiness(True, "ready", lag)

    def _note_applied(self, sync_s: float | None) -> None:
        """Gauges of what is served; `sync_s`: tick closed to served, where it closed while this replica was there."""
        if sync_s is not None:
            self._metrics.observe("ouzel_sync_seconds", sync_s)
        version = self.replica.version
        if version is not None:
            self._metrics.set("ouzel_served_generation", version.generation)
            self._metrics.set("ouzel_served_tick", version.tick)
            self._metrics.set("ouzel_tick", self.replica.through)

    def _run(self) -> None:
        try:
            self._warm_up_posts()
            while not self._stop.is_set():
                moved = self.replica.advance_to_newest(max_versions=VERSIONS_A_TURN)
                self._warm_up()
                self._look()
                if self.replica.ended and not moved:
                    self.ended.set()
                if not moved:
                    self._stop.wait(IDLE_S)
        except OuzelError as error:
            self.failure = str(error)
        except BaseException as error:
            self.failure = f"the replica's thread ended: {type(error).__name__}: {error}"
            raise

    def _look(self) -> None:
        """What the joiner has closed in all partitions: every LOOK_AT_CLOSED_S, more seldom where a look takes long."""
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return
        self._closed = max(self._closed, closed_through(self._log))
        took_s = time.monotonic() - now_s
        self._next_look_s = now_s + max(LOOK_AT_CLOSED_S, min(LOOK_SHARE * took_s, LOOK_MOST_S))
        readiness = self.readiness()
        if self._folder is not None:
            for member, standing in read_members(self._folder).items():
                self._metrics.set("ouzel_member_up", float(standing.state == "running"), member=member)
                self._metrics.set("ouzel_member_restarts", standing.restarts, member=member)
        self._metrics.set("ouzel_served_lag_ticks", readiness.lag_ticks)
        self._metrics.set("ouzel_ready", float(readiness.ready))
        self._metrics.set("ouzel_event_time_seconds", self._clock.now_ms() / 1000)

    def _warm_up_posts(self) -> None:
        warm_posts(self._config.wire, self._partitions)
        self.takes_posts.set()
        warm_versions(self._config.model, self._timeline, self._config.serve.precision)

    def _warm_up(self) -> None:
        view = self.replica.view()
        if view is None or self._warm == view.version.generation:
            return
        warm_ranking(self._scorer, view, self._clock.now_ms())
        self._warm = view.version.generation


def closed_through(log: EventLog) -> int:
    """The newest tick that the joiner has closed in every partition; -1 before the first."""
    closed: list[int] = []
    for partition in range(log.partitions("examples")):
        record = log.last_record("examples", partition)
        meta: ExampleMeta | None = None if record is None else decode_example_meta(record.meta)
        closed.append(-1 if meta is None else meta.closed_through)
    return min(closed, default=-1)
