"""The nightly chain as a process: each cut (B, then every midnight M) retrained, then carried on to its promotion.

    N(d+1) = retrain(N(d), archive of the day)           snapshot nightly-<M>: rows, moments, counters as of M - 1
    ticks M … M + H learned with its dense weights        snapshot candidate-<M + H>: rows and net, nothing else

The chain never looks at the online tables: it hangs on the archive, `items` and its own last snapshot, so it runs ahead
beside the loop, and nothing that the trainer decides can change it. It reads `examples` for the ticks since M; the join
never waits for it. A restart goes on from the newest nightly snapshot.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from infra.errors import CorruptStateError
from infra.eventlog import EventLog
from infra.paramstore.snapshots import SnapshotMeta
from infra.paramstore.store import ParamStore
from infra.paramstore.tensors import Tensors
from infra.process import Process
from stream.archive import complete_through, read_ticks
from stream.ticks_in import ExampleTicks, TickExamples
from trainer.items import ItemsFollower
from trainer.online import learn_tick
from trainer.promotion import mark_failed
from trainer.retrain import retrain_day
from trainer.schedule import Schedule, candidate_name, nightly_name
from trainer.state import ModelState

READER = "retrain"
IDLE_S = 0.1
POLL_S = 0.02
ARCHIVE_PATIENCE_S = 120.0
MOMENTS = "moments/"
FIRST = "retrain/first"  # the schedule's first tick
CANDIDATE_SECTIONS = ("slot/", "dense/", "graph/")


class NightlyChain:
    """N(d): the state that the last retrain made, and the next cut."""

    def __init__(self, process: Process, log: EventLog, graphs: dict[str, bytes]) -> None:
        self._process, self._log, self._graphs = process, log, graphs
        self._config = process.config
        self._timeline = self._config.time.build()
        self._store = ParamStore(process.folder.path, log)
        self.state = ModelState(self._config)
        self._moments: Tensors | None = None
        self.cut: int | None = None  # of `state`; None before the bootstrap

    def recover(self) -> SnapshotMeta | None:
        """Stand where the newest nightly snapshot does."""
        names = [name for name in self._store.snapshots.names() if name.startswith("nightly-")]
        if not names:
            return None
        snapshot = self._store.read_snapshot(names[-1])
        self._take(snapshot.tensors, snapshot.meta.tick)
        return snapshot.meta

    def stand_before(self, cut: int, schedule: Schedule) -> None:
        """Load what the retrain of a cut starts from. Raises CorruptStateError where that is gone."""
        if schedule.from_scratch(cut):
            self._forget()
            return
        before = self._store.read_snapshot(nightly_name(cut - schedule.day))
        self._take(before.tensors, before.meta.tick)

    def retrain(self, cut: int, schedule: Schedule, stop: Callable[[], bool]) -> bool:
        """Learn the day before `cut`; False when told to stop while waiting for the archive or the items."""
        first, last = schedule.trained_on(cut)
        if not self._wait_for_archive(last, stop):
            return False
        started = time.perf_counter()
        scratch = schedule.from_scratch(cut)
        if scratch:
            self._forget()
        items = ItemsFollower(self._log, self.state.catalogue, self._timeline)
        if not items.reach(last, stop=stop):
            return False
        examples, _ = read_ticks(self._process.folder.archive, first, last)
        epochs = self._config.train.first_epochs if scratch else self._config.train.retrain_epochs
        self._moments = retrain_day(
            self.state, self._moments, examples, day=cut, last_tick=last, epochs=epochs, graphs=self._graphs
        )
        self.cut = cut
        self._process.spent("retrain", time.perf_counter() - started)
        self._process.metrics.set("ouzel_retrain_seconds", time.perf_counter() - started)
        return True

    def save(self, positions: dict[int, int], schedule: Schedule) -> SnapshotMeta:
        """Keep N(d) as a snapshot: rows, net, moments, and the counters of M - 1; it was cut, so there is one."""
        assert self.cut is not None
        tensors: Tensors = self.state.export() | {MOMENTS + name: m for name, m in (self._moments or {}).items()}
        tensors[FIRST] = np.array([schedule.first], np.int64)
        return self._store.write_snapshot(
            nightly_name(self.cut), tensors, kind="nightly", generation=0, tick=self.cut, positions=positions
        )

    def _take(self, tensors: Tensors, cut: int) -> None:
        self.state = ModelState.restore(self._config, tensors, 0, cut - 1)
        self._moments = {n.removeprefix(MOMENTS): t for n, t in tensors.items() if n.startswith(MOMENTS)}
        self.cut = cut

    def _forget(self) -> None:
        """Start anew: the bootstrap, and the first midnight, which replaces it."""
        catalogue = self.state.catalogue
        self.state, self._moments = ModelState(self._config), None
        self.state.catalogue = catalogue

    def _wait_for_archive(self, last: int, stop: Callable[[], bool]) -> bool:
        """The examples are joined, so the archive has them in a moment; longer than a while means nobody writes it."""
        archive: Path = self._process.folder.archive
        deadline = time.monotonic() + ARCHIVE_PATIENCE_S
        while complete_through(archive) < last:
            if stop():
                return False
            if time.monotonic() > deadline:
                raise CorruptStateError(
                    f"{archive} ends before tick {last}, joined {ARCHIVE_PATIENCE_S:.0f} s ago; is the joiner "
                    f"(`ouzel join`), which writes it, running and its disk writable?"
                )
            time.sleep(POLL_S)
        return True


class RetrainLoop:
    """Follows the examples, retrains at each cut, carries the candidate to its promotion."""

    def __init__(self, process: Process, log: EventLog, graphs: dict[str, bytes], *, until_end: bool) -> None:
        self._process, self._until_end = process, until_end
        self._config = process.config
        self._timeline = self._config.time.build()
        self._store = ParamStore(process.folder.path, log)
        self._log = log
        self._chain = NightlyChain(process, log, graphs)
        self._ticks = ExampleTicks(log, READER)
        self._schedule: Schedule | None = None
        self._candidate: ModelState | None = None
        self._items: ItemsFollower | None = None
        self._before: dict[int, int] = self._ticks.positions()  # positions before the tick at hand
        self.retrained = 0
        self._recover()

    def run(self) -> None:
        """Until the replay's end passed, or told to stop."""
        ended = False
        while not self._process.stopping and not (self._until_end and ended):
            tick = self._ticks.next_tick(IDLE_S)
            if tick is not None:
                self._take(tick)
                ended = tick.end
                self._before = tick.positions

    def close(self) -> None:
        """Let go of the log."""
        self._ticks.close()

    def _take(self, tick: TickExamples) -> None:
        if self._schedule is None:
            if not len(tick.examples):
                return
            first = int(tick.examples.shown_ms[0]) // self._timeline.tick_ms
            self._schedule = Schedule.of(first, self._config, self._timeline)
        while not self._process.stopping:
            self._finish_candidate(tick.tick - 1)
            cut = self._schedule.cut_after(self._chain.cut)
            if tick.tick < cut or not self._retrain(cut):
                break
        if self._candidate is not None and len(tick.examples):
            self._reach_items(tick.tick)
            learn_tick(self._candidate, tick.tick, tick.examples)
        self._finish_candidate(tick.tick)
        self._show(tick)

    def _retrain(self, cut: int) -> bool:
        assert self._schedule is not None
        self._process.progress(state=f"retraining for {self._day(cut)}", force=True, retrained=self.retrained)
        if not self._chain.retrain(cut, self._schedule, lambda: self._process.stopping):
            return False
        due = self._schedule.due(cut)
        bad = self._chain.state.not_finite()
        if bad:
            mark_failed(self._store, due, f"not finite: {', '.join(bad[:4])}")
            self._process.metrics.add("ouzel_retrains_total", outcome="not_finite")
            raise CorruptStateError(
                f"the retrain of {self._day(cut)} holds NaN or Inf in {', '.join(bad[:4])}; nothing of it is served. "
                "Lower train.dense_lr or the slot's retrain_lr in a new run, or remove the day's bad input"
            )
        self._chain.save(self._before, self._schedule)
        self._process.metrics.add("ouzel_retrains_total", outcome="finished")
        self.retrained += 1
        self._start_candidate()
        return True

    def _start_candidate(self) -> None:
        self._candidate = self._chain.state.copy()
        self._candidate.generation = 0
        self._items = ItemsFollower(self._log, self._candidate.catalogue, self._timeline)

    def _finish_candidate(self, through: int) -> None:
        """Write the candidate once every tick through its due one is in it."""
        if self._candidate is None or self._schedule is None or self._chain.cut is None:
            return
        due = self._schedule.due(self._chain.cut)
        if through < due:
            return
        whole = self._candidate.export()
        tensors = {name: t for name, t in whole.items() if name.startswith(CANDIDATE_SECTIONS)}
        bad = self._candidate.not_finite()
        if bad:
            mark_failed(self._store, due, f"not finite: {', '.join(bad[:4])}")
        else:
            self._store.write_snapshot(candidate_name(due), tensors, kind="candidate", generation=0, tick=due)
        self._candidate = self._items = None

    def _reach_items(self, tick: int) -> None:
        if self._items is not None:
            self._items.reach(tick, stop=lambda: self._process.stopping)

    def _recover(self) -> None:
        meta = self._chain.recover()
        if meta is None:
            return
        first = self._store.read_snapshot(meta.name, lambda name: name == FIRST).tensors[FIRST]
        self._schedule = Schedule.of(int(first[0]), self._config, self._timeline)
        self._ticks.seek(meta.positions, meta.tick - 1)
        self._before = dict(meta.positions)
        if not self._store.snapshots.exists(candidate_name(self._schedule.due(meta.tick))):
            self._start_candidate()

    def _day(self, cut: int) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(self._timeline.start_ms(cut) / 1000))

    def _show(self, tick: TickExamples) -> None:
        self._process.metrics.set("ouzel_tick", tick.tick)
        self._process.progress(
            event_time_ms=self._timeline.end_ms(tick.tick), state="following", retrained=self.retrained
        )
