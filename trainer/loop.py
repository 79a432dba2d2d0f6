"""The online trainer as a process: ticks in order, each learned, published and committed by one record.

For each tick that closed, in this order:
1. generations that are due before it are opened (`trainer.promotion`);
2. items that count in it are in the catalogue;
3. rows that expired in the empty ticks before it are buried, each in the version of its tick;
4. it is learned (`trainer.online`), or only counted while there is no generation or learning is held;
5. its delta is published; a stretch of empty ticks is noted as progress.
A delta that is not fit to be served (`trainer.guard`) is not published: a decision in `control` holds learning from its
tick on, the state is read back as a restart would read it, and the tick is taken again with its rows held.
A flush makes what was published durable, one fsync for up to FLUSH_TICKS ticks while catching up and one for each tick
when there is nothing more to read. Only after it may retention pass the examples. A restart takes the newest state
snapshot, applies the deltas after it, does again what may be missing after the last of them (a generation that was
decided and not opened, the note of the end), and reads on from its positions; before the first snapshot it starts over,
and what it derives again is not published twice. Told to stop while it waits for a candidate, it leaves the tick.
"""

import sys
import time
from dataclasses import asdict
from typing import Any

from infra.config import Config
from infra.errors import CorruptStateError
from infra.eventlog import EventLog
from infra.eventlog.pressure import Lags
from infra.paramstore.configuration import configuration_digest
from infra.paramstore.publisher import Publisher
from infra.paramstore.store import ParamStore, State
from infra.paramstore.version import Kind
from infra.process import Process
from stream.examples import EMPTY
from stream.outcomes import left_out
from stream.retry import Retrier
from stream.ticks_in import NOTHING_CLOSED, ExampleTicks, TickExamples
from trainer.control import ControlLog, Decision
from trainer.guard import unfit
from trainer.items import ItemsFollower
from trainer.online import learn_tick
from trainer.promotion import Promotion
from trainer.schedule import Schedule
from trainer.state import BEFORE, ModelState, Tensors
from trainer.table_metrics import TableMetrics

FLUSH_TICKS = 10
IDLE_S = 0.05


class TrainLoop:
    """One run's trainer. `run()` until the replay's end was learned, or told to stop."""

    def __init__(self, process: Process, log: EventLog, *, until_end: bool) -> None:
        self._process, self._log, self._until_end = process, log, until_end
        self._config: Config = process.config
        self._timeline = self._config.time.build()
        self._store = ParamStore(process.folder.path, log)
        self._until_done = Retrier(lambda: process.stopping)
        self._control = ControlLog(log, until_done=self._until_done)
        self._publisher: Publisher = self._store.publisher(
            fingerprint=fingerprint(), configuration=configuration_digest(self._config)
        )
        self._ticks = ExampleTicks(log, "trainer")
        self._lags = Lags(log, "examples")
        self._state = ModelState(self._config)
        self._table_metrics = TableMetrics(process.metrics)
        Schedule.of(0, self._config, self._timeline)  # refuses what makes no chain before anything is read
        self._schedule: Schedule | None = None
        self._seen = BEFORE  # the newest tick handled, published or not
        self._positions = self._ticks.positions()  # of `examples`, after it
        self._unflushed = 0
        self._last_snapshot = BEFORE
        self._opened = BEFORE  # the newest promotion that was decided
        self._recover()
        self._items = ItemsFollower(log, self._state.catalogue, self._timeline, wire=self._config.wire)
        self.learned = {"ticks": 0, "impressions": 0, "shown_items": 0, "versions": 0, "version_bytes": 0}
        self.ended = False

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises CorruptStateError where logs and store contradict each other, or no first generation can be made."""
        self._settle()
        while not self._process.stopping and not (self._until_end and self.ended):
            tick = self._ticks.next_tick()
            if tick is None:
                self._flush()
                tick = self._ticks.next_tick(IDLE_S)
            if tick is not None:
                self._take(tick)
        self._flush()

    def close(self) -> None:
        """Flush and let go of the log."""
        self._publisher.close()
        self._control.close()
        self._ticks.close()

    def _take(self, tick: TickExamples) -> None:
        started, closed_wall_ms = time.perf_counter(), time.time_ns() // 1_000_000
        if not self._promote(tick, tick.tick - 1) or not self._reach_items(tick.tick):
            return
        self._let_expire(tick.tick - bool(len(tick.examples)), closed_wall_ms)
        if len(tick.examples):
            if not self._learn(tick, closed_wall_ms):
                return
            self._process.metrics.observe("ouzel_tick_seconds", time.perf_counter() - started)
        self._seen, self._positions = tick.tick, tick.positions
        if not self._promote(tick, tick.tick):
            return
        self._note_progress(tick, closed_wall_ms)
        self._unflushed += 1
        if self._unflushed >= FLUSH_TICKS:
            self._flush()
        self._show(tick)

    def _let_expire(self, through: int, closed_wall_ms: int) -> None:
        """Ticks without examples, one by one where rows expire: each tombstone is in the version of its own tick.

        How a stretch of empty ticks is split hangs on polling, and no version may.
        """
        if not self._state.forgets or self._state.generation < 0:
            return
        for quiet in range(self._state.tick + 1, through + 1):
            delta = learn_tick(self._state, quiet, EMPTY)
            self._publish(quiet, delta, self._where(quiet, self._positions), closed_wall_ms)

    def _learn(self, tick: TickExamples, closed_wall_ms: int) -> bool:
        """Learn and publish a tick; False where it is not fit, and is to be taken again."""
        if self._schedule is None:
            self._begin(int(tick.examples.shown_ms[0]) // self._timeline.tick_ms)
        started = time.perf_counter()
        hold = self._control.held(self._state.generation, tick.tick)
        delta = learn_tick(self._state, tick.tick, tick.examples, held=hold is not None)
        bad = "" if hold else unfit(delta, self._state.forecast, self._config.train)
        if bad:
            self._hold(tick.tick, bad)
            return False
        self._process.metrics.set("ouzel_held", float(hold is not None))
        self._process.spent("learn", time.perf_counter() - started)
        self.learned["ticks"] += 1
        self.learned["impressions"] += len(tick.examples)
        self.learned["shown_items"] += len(tick.examples.items.values)
        self._process.metrics.add("ouzel_train_impressions_total", len(tick.examples))
        self._process.metrics.add("ouzel_train_shown_items_total", len(tick.examples.items.values))
        self._process.metrics.add("ouzel_train_left_out_total", left_out(tick.examples, self._config.train))
        if self._state.generation >= 0:
            self._publish(tick.tick, delta, self._where(tick.tick, tick.positions), closed_wall_ms)
        return True

    def _hold(self, tick: int, reason: str) -> None:
        """Learning is held from `tick` on; the state is again what was published before it."""
        self._flush_before_wait()
        hold = Decision(kind="hold", tick=tick, generation=self._state.generation, reason=reason)
        self._control.decide(hold, timestamp_ms=self._timeline.end_ms(tick))
        print(
            f"tick {tick}: not fit to be served: {reason}. Learning is held: rows stay as they were until the next "
            "generation opens; lower the slot's lr, or look at what was posted in that tick",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        self._process.progress(force=True, state="held", held=reason)
        self._state, self._schedule = ModelState(self._config), None
        self._seen = self._last_snapshot = self._opened = BEFORE
        self._unflushed = 0
        self._recover()
        self._items = ItemsFollower(self._log, self._state.catalogue, self._timeline, wire=self._config.wire)

    def _publish(self, tick: int, delta: Tensors, where: dict[str, Any], closed_wall_ms: int) -> None:
        if not delta or tick <= self._publisher.chain.through:
            return  # nothing changed, or it was derived again after a restart without a snapshot
        started = time.perf_counter()
        self._publisher.publish(self._state.generation, tick, delta, **where, closed_wall_ms=closed_wall_ms)
        self._process.spent("publish", time.perf_counter() - started)
        self.learned["versions"] += 1
        size = sum(t.nbytes for t in delta.values())
        self.learned["version_bytes"] += size
        self._process.metrics.add("ouzel_versions_total")
        self._process.metrics.add("ouzel_version_bytes_total", size)

    def _note_progress(self, tick: TickExamples, closed_wall_ms: int) -> None:
        """Readers must know how far the state holds, also where nothing changed, and that a replay ended."""
        through = self._publisher.chain.through
        if tick.tick > through or (tick.end and not self._ended_in_log()):
            self._publisher.progress(
                max(tick.tick, through),
                **self._where(tick.tick, tick.positions),
                closed_wall_ms=closed_wall_ms,
                end=tick.end,
            )
        self.ended = tick.end

    def _ended_in_log(self) -> bool:
        return self._publisher.head is not None and self._publisher.head.end

    def _where(self, tick: int, positions: dict[int, int]) -> dict[str, Any]:
        """What a record of a tick says of its inputs; `positions`: of `examples`, to read on from."""
        return {
            "positions": positions,
            "items_offset": self._items.offset,
            "control_offset": self._control.offset,
            "timestamp_ms": self._timeline.end_ms(tick),
        }

    def _flush(self) -> None:
        if not self._unflushed:
            return
        started = time.perf_counter()
        self._until_done(self._publisher.flush)
        self._process.spent("commit", time.perf_counter() - started)
        self._unflushed = 0
        self._process.metrics.set("ouzel_lag_records", self._lags.of("trainer"))
        self._table_metrics.show(self._state)
        behind = self._seen < self._publisher.chain.through  # deriving again what is in the log: not its head's state
        if self._state.generation >= 0 and not behind:
            if self._state.tick - self._last_snapshot >= self._config.train.snapshot_ticks:
                self._snapshot()
            self._ticks.commit()

    # -- generations -------------------------------------------------------------------------------------------

    def _begin(self, first_shown_tick: int) -> None:
        first = Decision(kind="bootstrap", tick=first_shown_tick)
        self._control.decide(first, timestamp_ms=self._timeline.start_ms(first_shown_tick))
        self._schedule = Schedule.of(first_shown_tick, self._config, self._timeline)

    def _promote(self, tick: TickExamples, through: int) -> bool:
        """Open what is due through a tick: what is due before the tick at hand, then what is due at its end.

        False when told to stop meanwhile: nothing later may be learned, or noted, before the decision.
        """
        while self._schedule is not None:
            due = self._schedule.due(self._schedule.cut_due_after(max(self._opened, self._schedule.first)))
            if due > through:
                break
            if due < tick.tick:
                if not self._reach_items(due):
                    return False
                self._let_expire(due, time.time_ns() // 1_000_000)
            self._flush_before_wait()
            promotion = Promotion(self._store, self._control, self._process, patient=self._until_end)
            decision = promotion.decide(due, self._state.generation + 1, self._timeline.end_ms(due))
            if decision is None or not self._reach_items(due):
                return False
            self._opened = due
            if decision.kind == "open-generation":
                self._open(decision, tick)
        return True

    def _reach_items(self, tick: int) -> bool:
        return self._items.reach(tick, stop=lambda: self._process.stopping)

    def _flush_before_wait(self) -> None:
        if self._publisher.pending:
            self._until_done(self._publisher.flush)

    def _open(self, decision: Decision, tick: TickExamples) -> None:
        snapshot = self._store.read_snapshot(decision.snapshot)
        if snapshot.meta.content_digest != decision.digest:
            raise CorruptStateError(
                f"snapshot {decision.snapshot} has digest {snapshot.meta.content_digest[:16]}, control says "
                f"{decision.digest[:16]}; restore it, or delete it and let the retrain make it again"
            )
        self._state.open(snapshot.tensors, decision.generation, decision.tick)
        self._state.tick = max(self._state.tick, decision.tick)
        chain = self._publisher.chain.id
        if chain is None or chain.generation < decision.generation:
            whole = self._state.export()
            carried = {n: t for n, t in whole.items() if n.startswith(("counters/", "items/"))}
            # A tick that is not learned yet must be read again by a restart from this record.
            where = self._where(decision.tick, self._positions if self._seen < tick.tick else tick.positions)
            self._publisher.open_generation(
                decision.generation, decision.tick, decision.snapshot, carried, **where,
                closed_wall_ms=time.time_ns() // 1_000_000,
            )  # fmt: skip
            self._until_done(self._publisher.flush)
        self._last_snapshot = BEFORE
        self._process.metrics.set("ouzel_generation", decision.generation)

    # -- restart -----------------------------------------------------------------------------------------------

    def _snapshot(self) -> None:
        self._last_snapshot = self._state.tick
        started = time.perf_counter()
        state = self._state.export()
        self._until_done(lambda: self._store.write_state(self._publisher, state))
        self._store.prune()
        self._process.spent("snapshot", time.perf_counter() - started)

    def _recover(self) -> None:
        bootstrap = self._control.bootstrap()
        if bootstrap is not None:
            self._schedule = Schedule.of(bootstrap.tick, self._config, self._timeline)
        meta = self._store.latest_snapshot()
        if meta is None:
            self._start_over()
            return
        tensors = self._store.read_snapshot(meta.name).tensors
        self._state = ModelState.restore(self._config, tensors, meta.generation, meta.tick)
        positions = meta.positions
        through = meta.through
        base = State(meta.id, meta.version_digest, meta.through, meta, tensors, meta.next_offset)
        for version in self._store.deltas(base):
            if version.meta.kind is Kind.GENERATION:
                self._state.open(self._store.opened_state(version), version.meta.generation, version.meta.tick)
                self._state.tick = max(self._state.tick, version.meta.tick)
            elif version.meta.kind is Kind.DELTA:
                self._state.apply(version.meta.tick, version.tensors())
            positions = version.meta.positions
            through = max(through, version.meta.tick)
        self._process.metrics.set("ouzel_generation", self._state.generation)
        self._last_snapshot, self._seen = meta.tick, through
        self._opened = self._newest_opened(through)
        self._positions = dict(positions)
        self._ticks.seek(positions, through)

    def _start_over(self) -> None:
        """Derive everything again, from the first example on."""
        starts = {p: self._log.start_offset("examples", p) for p in self._positions}
        if any(starts.values()):
            raise CorruptStateError(
                f"{self._process.folder.store} holds no state snapshot, and retention has taken the start of "
                "`examples`: restore the folder's newest state-… from a copy, or delete the topics `examples` and "
                "`versions`, which are derived again where `events` still reaches back to its start"
            )
        self._ticks.seek(starts, NOTHING_CLOSED)
        self._positions = starts

    def _newest_opened(self, through: int) -> int:
        """The newest promotion through a tick that is done: skipped, or its generation's record is in the log.

        A decision alone is not enough: the kill may have come between the control record and the version record.
        """
        schedule = self._schedule
        if schedule is None:
            return BEFORE
        opened, cut = BEFORE, schedule.cut_after(None)
        while (due := schedule.due(cut)) <= through:
            decision = self._control.at(due)
            done = decision is not None and decision.generation <= self._state.generation
            if not done:
                break
            opened, cut = due, schedule.cut_after(cut)
        return opened

    def _settle(self) -> None:
        """After a restart: what follows the last durable tick, where the kill came before it was durable too."""
        if self._seen == BEFORE or not self._reach_items(self._seen):
            return
        last = TickExamples(self._seen, EMPTY, self._positions, self._ticks.ended, NOTHING_CLOSED, 0)
        if self._promote(last, last.tick):
            self._note_progress(last, closed_wall_ms=0)
            self._unflushed += 1
            self._flush()
            self.ended = last.end

    # -- small things ------------------------------------------------------------------------------------------

    def _show(self, tick: TickExamples) -> None:
        hold = self._control.held(self._state.generation, tick.tick)
        state = "counting" if self._state.generation < 0 else "learning" if hold is None else "held"
        self._process.progress(
            state=state,
            held="" if hold is None else hold.reason,
            tick=tick.tick,
            event_time_ms=self._timeline.end_ms(tick.tick),
            generation=self._state.generation,
            versions=self.learned["versions"],
            impressions=self.learned["impressions"],
            rows=sum(map(len, self._state.tables.values())),
        )

    def note(self) -> None:
        """What the report wants to know."""
        head = self._publisher.head
        self._process.note(
            learned=self.learned,
            generation=self._state.generation,
            digest="" if head is None else head.digest,
            table_rows={name: len(table) for name, table in self._state.tables.items()},
            table_keys={name: asdict(table.counts) for name, table in self._state.tables.items()},
            counter_rows=len(self._state.counters.newest.item),
            holds=[f"tick {hold.tick}, generation {hold.generation}: {hold.reason}" for hold in self._control.holds()],
            ended=self.ended,
        )


def fingerprint() -> str:
    """What bit equality depends on: wheels, instruction-set class, threads."""
    import importlib.metadata
    import platform

    wheels = ("numpy", "numba", "onnxruntime")
    versions = ",".join(f"{name}={importlib.metadata.version(name)}" for name in wheels)
    return f"{versions};{platform.machine()};threads=1"
