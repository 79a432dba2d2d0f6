"""The nightly chain as a process: each cut (B, then every midnight M) retrained, then carried on to its promotion.

It runs ahead beside the loop, and reads `examples` for the ticks since M; the join never waits for it. Where B + H lies
at or past the first midnight, two candidates are carried at once. A restart goes on from the newest nightly snapshot,
or the one before where that one's candidate is still to come; what it makes again is equal to what is there.
"""

import time
from functools import partial

from infra.eventlog import EventLog
from infra.paramstore.store import ParamStore
from infra.process import Process
from stream.retry import Retrier
from stream.ticks_in import ExampleTicks, TickExamples
from trainer.candidate import Candidate
from trainer.guard import Forecast
from trainer.nightly import NightlyChain
from trainer.schedule import Schedule

READER = "retrain"  # `stream.join.worker.NEVER_WAITED_FOR` knows it
IDLE_S = 0.1


class RetrainLoop:
    """Follows the examples, retrains at each cut, carries the candidates to their promotion."""

    def __init__(self, process: Process, log: EventLog, graphs: dict[str, bytes], *, until_end: bool) -> None:
        self._process, self._until_end = process, until_end
        self._config = process.config
        self._timeline = self._config.time.build()
        self._store = ParamStore(process.folder.path, log)
        self._log = log
        self._until_done = Retrier(self._stopping)
        self._chain = NightlyChain(process, log, graphs)
        self._ticks = ExampleTicks(log, READER)
        self._schedule: Schedule | None = None
        self._candidates: list[Candidate] = []  # oldest first; at most two: H is less than a day
        self._before: dict[int, int] = self._ticks.positions()  # positions before the tick at hand
        self.retrained = 0
        self._recover()

    def run(self) -> None:
        """Until the replay's end passed, or told to stop. Raises CorruptStateError where no night can be made."""
        ended = False
        while not self._stopping() and not (self._until_end and ended):
            tick = self._ticks.next_tick(IDLE_S)
            if tick is not None:
                self._take(tick)
                self._before, ended = tick.positions, tick.end

    def close(self) -> None:
        """Let go of the log."""
        self._ticks.close()

    def _take(self, tick: TickExamples) -> None:
        if self._schedule is None:
            if not len(tick.examples):
                return
            first = int(tick.examples.shown_ms[0]) // self._timeline.tick_ms
            self._schedule = Schedule.of(first, self._config, self._timeline)
        while not self._stopping():
            self._finish(tick.tick - 1)
            cut = self._schedule.cut_after(self._chain.cut)
            if tick.tick < cut or not self._retrain(cut, self._schedule):
                break
        if all(candidate.learn(tick, stop=self._stopping) for candidate in self._candidates):
            self._finish(tick.tick)
        self._show(tick)

    def _retrain(self, cut: int, schedule: Schedule) -> bool:
        self._process.progress(state=f"retraining for {self._day(cut)}", force=True, retrained=self.retrained)
        if not self._chain.retrain(cut, schedule, self._stopping):
            return False
        self._process.metrics.set("ouzel_retrain_seconds", self._chain.took_s)
        bad = self._chain.state.unfit(Forecast())
        if bad:
            self._process.metrics.add("ouzel_retrains_total", outcome="unfit")
            self._chain.refuse(bad, schedule)
        else:
            self._process.metrics.add("ouzel_retrains_total", outcome="finished")
        self._chain.save(self._before, schedule)
        self.retrained += 1
        self._carry(cut, schedule)
        if all(candidate.due == schedule.due(cut) for candidate in self._candidates):
            self._ticks.commit(self._before)  # else a restart needs what an older candidate learned
        return True

    def _carry(self, cut: int, schedule: Schedule) -> None:
        if self._chain.awaited(schedule.due(cut)):
            self._candidates.append(Candidate(self._chain.state, self._log, schedule.due(cut)))

    def _finish(self, through: int) -> None:
        """Write each candidate once every tick through its due one is in it."""
        while self._candidates and self._candidates[0].due <= through:
            self._until_done(partial(self._candidates[0].save, self._store))
            del self._candidates[0]

    def _recover(self) -> None:
        found = self._chain.recover()
        if found is None:
            return
        meta, self._schedule = found
        self._ticks.seek(meta.positions, meta.tick - 1)
        self._before = dict(meta.positions)
        self._carry(meta.tick, self._schedule)

    def _stopping(self) -> bool:
        return self._process.stopping

    def _day(self, cut: int) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(self._timeline.start_ms(cut) / 1000))

    def _show(self, tick: TickExamples) -> None:
        self._process.progress(
            tick=tick.tick, event_time_ms=self._timeline.end_ms(tick.tick), state="following", retrained=self.retrained
        )
