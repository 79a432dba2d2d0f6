"""The nightly chain: N(d + 1) = retrain(N(d), archive of day d + 1), each link a snapshot.

    nightly-<M>     rows, net, moments, counters as of M - 1; its positions are those of `examples` before M

It hangs on the archive, `items` and its own last snapshot, never on the online tables, so nothing that the trainer
decides can change it. A night that is not fit (`trainer.guard`) is refused: its candidate is marked as failed, and the
chain goes on from the night before, with the counters of this one.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from infra.errors import CorruptStateError
from infra.eventlog import EventLog
from infra.paramstore.snapshots import SnapshotMeta
from infra.paramstore.store import ParamStore
from infra.paramstore.tensors import Tensors
from infra.process import Process
from stream.archive import complete_through, read_ticks
from stream.retry import Retrier
from trainer.items import ItemsFollower
from trainer.promotion import failure_mark, mark_failed
from trainer.retrain import retrain_day
from trainer.schedule import Schedule, candidate_name, nightly_name
from trainer.state import ModelState

POLL_S = 0.02
ARCHIVE_PATIENCE_S = 120.0
MOMENTS = "moments/"
FIRST = "retrain/first"  # the schedule's first tick


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
        self.took_s = 0.0  # the last retrain, without waiting for its archive
        self._until_done = Retrier(lambda: process.stopping)

    def recover(self) -> tuple[SnapshotMeta, Schedule] | None:
        """Stand at the newest nightly snapshot, or the one before where its candidate has to be carried past that."""
        names = [name for name in self._store.snapshots.names() if name.startswith("nightly-")]
        if not names:
            return None
        snapshot = self._store.read_snapshot(names[-1])
        schedule = Schedule.of(int(snapshot.tensors[FIRST][0]), self._config, self._timeline)
        if len(names) > 1:
            before = self._store.read_snapshot(names[-2])
            due = schedule.due(before.meta.tick)
            if due >= snapshot.meta.tick and self.awaited(due):
                snapshot = before
        self._take(snapshot.tensors, snapshot.meta.tick)
        return snapshot.meta, schedule

    def awaited(self, due: int) -> bool:
        """Whether a candidate is still to be made: it is neither there nor refused."""
        return not self._store.snapshots.exists(candidate_name(due)) and failure_mark(self._store, due) is None

    def stand_before(self, cut: int, schedule: Schedule) -> None:
        """Load what the retrain of a cut starts from. Raises CorruptStateError where that is gone."""
        if schedule.from_scratch(cut):
            self._forget()
            return
        before = self._store.read_snapshot(nightly_name(cut - schedule.day))
        self._take(before.tensors, before.meta.tick)

    def refuse(self, reason: str, schedule: Schedule) -> None:
        """The night is not fit: N(d + 1) is N(d), with the counters of the night.

        Raises CorruptStateError where there is no N(d), RetryableError when the disk refuses.
        """
        assert self.cut is not None
        self._until_done(partial(mark_failed, self._store, schedule.due(self.cut), reason))
        names = [name for name in self._store.snapshots.names() if name.startswith("nightly-")]
        before = [name for name in names if name < nightly_name(self.cut)]
        if not before:
            raise CorruptStateError(
                f"the bootstrap is not fit to be served ({reason}), and there is no generation before it; lower "
                "train.dense_lr or the slot's retrain_lr in a new run, or remove the bad input"
            )
        tensors = self._store.read_snapshot(before[-1]).tensors
        self.state.open(tensors, 0, self.cut - 1)
        self._moments = _moments(tensors)

    def retrain(self, cut: int, schedule: Schedule, stop: Callable[[], bool]) -> bool:
        """Learn the day before `cut`; False when told to stop while waiting for the archive or the items."""
        first, last = schedule.trained_on(cut)
        if not self._wait_for_archive(last, stop):
            return False
        started = time.perf_counter()
        scratch = schedule.from_scratch(cut)
        if scratch:
            self._forget()
        items = ItemsFollower(self._log, self.state.catalogue, self._timeline, wire=self._config.wire)
        if not items.reach(last, stop=stop):
            return False
        examples, _ = read_ticks(self._process.folder.archive, first, last)
        epochs = self._config.train.first_epochs if scratch else self._config.train.retrain_epochs
        self._moments = retrain_day(
            self.state, self._moments, examples, day=cut, last_tick=last, epochs=epochs, graphs=self._graphs
        )
        self.cut = cut
        self.took_s = time.perf_counter() - started
        self._process.spent("retrain", self.took_s)
        return True

    def save(self, positions: dict[int, int], schedule: Schedule) -> SnapshotMeta:
        """Keep N(d) as a snapshot: rows, net, moments, and the counters of M - 1; it was cut, so there is one."""
        assert self.cut is not None
        tensors: Tensors = self.state.export() | {MOMENTS + name: m for name, m in (self._moments or {}).items()}
        tensors[FIRST] = np.array([schedule.first], np.int64)
        name = nightly_name(self.cut)
        write = partial(self._store.write_snapshot, name, tensors, kind="nightly", generation=0, tick=self.cut)
        self._until_done(partial(write, positions=positions))
        return self._store.snapshots.meta(name)

    def _take(self, tensors: Tensors, cut: int) -> None:
        self.state = ModelState.restore(self._config, tensors, 0, cut - 1)
        self._moments = _moments(tensors)
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


def _moments(tensors: Tensors) -> Tensors:
    return {n.removeprefix(MOMENTS): t for n, t in tensors.items() if n.startswith(MOMENTS)}
