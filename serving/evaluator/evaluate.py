"""The evaluator process: reads `examples`, follows the versions at its own distance, keeps the books of every arm.

RUN/evaluation/progress.arrow     the books and the positions they stand at, replaced in one step
RUN/evaluation/evaluation.json    figures of every arm: whole, by day, by hour; label waits
RUN/evaluation/by_hour.parquet    the same as a table, a row an arm and hour; and by_day.parquet
"""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import checked
from infra.errors import CorruptStateError
from infra.eventlog import EventLog, create_topics
from infra.eventlog.pressure import Lags
from infra.paramstore.configuration import hold_to_configuration
from infra.paramstore.files import retryable
from infra.paramstore.store import ParamStore
from infra.paramstore.tensors import decode_tensors, encode_tensors
from infra.process import Process, RunFolder, write_atomically
from infra.temporary import sweep
from serving.evaluator.arms import Arms
from serving.evaluator.nightly import NightlyChain
from serving.evaluator.progressive import Evaluation
from serving.evaluator.truth import Truth, load_truth
from serving.replica import Replica
from serving.scorer import Scorer
from stream.retry import Retrier
from stream.ticks_in import NOTHING_CLOSED, ExampleTicks, TickExamples

READER = "evaluator"
PROGRESS_FILE = "progress.arrow"
RESULT_FILE = "evaluation.json"
SAVE_EVERY_TICKS = 512  # ticks with examples between two saves: a restart scores at most these again
POLL_S = 0.2


def evaluate_run(run: Path, *, until_end: bool = True) -> None:
    """Score every impression of a run with the version that was certain to serve it, for every arm.

    `until_end`: stop once the replay's end has been scored; otherwise when the process is asked to stop.
    """
    folder = RunFolder(run)
    config = folder.load_config()
    with Process("evaluator", run, config) as process:
        log = process.open_log()
        create_topics(log, config.log.partitions)
        hold_to_configuration(log, config)
        evaluator = Evaluator(process, log)
        try:
            evaluator.run(until_end=until_end)
        finally:
            evaluator.close()
            log.close()


class Evaluator:
    """Wires the parts over a run folder."""

    def __init__(self, process: Process, log: EventLog) -> None:
        config, self._folder = process.config, process.folder.evaluation
        self._folder.mkdir(parents=True, exist_ok=True)
        sweep([self._folder])
        self._process, self._timeline = process, config.time.build()
        self._log, store = log, ParamStore(process.folder.path, log)
        self._replica = Replica(store, config, name=READER, exclusive=True)
        chain = NightlyChain(
            store.snapshots, config.model, self._timeline,
            delay_ticks=config.train.promotion_delay_s // config.time.tick_s, precision=config.serve.precision,
        )  # fmt: skip
        arms = Arms(Scorer(config.model, self._timeline), chain, truth_of(process.folder))
        self.evaluation = Evaluation(self._replica, arms, self._timeline, config.train)
        self._ticks = ExampleTicks(log, READER)
        self._lags = Lags(log, "examples")
        self._until_done = Retrier(lambda: process.stopping)
        self._unsaved = 0
        self._hour = -1
        self._continue()

    def run(self, *, until_end: bool) -> None:
        """Take tick after tick, until the end or until the process is asked to stop; leave the results behind."""
        ended = self._ticks.ended
        while not self._process.stopping and not (until_end and ended):
            tick = self._ticks.next_tick(POLL_S)
            if tick is None:
                self._show(waiting=True)
                continue
            if not self.evaluation.take(tick, stop=lambda: self._process.stopping):
                break
            ended = tick.end
            self._after(tick)
        self._save()
        report = self.evaluation.report()
        self._until_done(lambda: write_results(self._folder, report))

    def close(self) -> None:
        """Leave the logs."""
        self._replica.close()
        self._ticks.close()

    def _continue(self) -> None:
        """From the saved books; without them from the start of the log, whatever an earlier evaluator has read."""
        path = self._folder / PROGRESS_FILE
        if not path.is_file():
            parts = range(self._log.partitions("examples"))
            self._ticks.seek({p: self._log.start_offset("examples", p) for p in parts}, NOTHING_CLOSED)
            return
        try:
            self.evaluation.restore(decode_tensors(checked.from_bytes(path, "it cannot be trusted")))
        except (CorruptStateError, KeyError, ValueError) as error:
            raise CorruptStateError(f"{path}: {error}; delete the folder {self._folder} and evaluate again") from error
        if self.evaluation.tick != NOTHING_CLOSED:
            self._ticks.seek(self.evaluation.positions, self.evaluation.tick)

    def _after(self, tick: TickExamples) -> None:
        self._unsaved += 1
        if self._unsaved >= SAVE_EVERY_TICKS:
            self._save()
        hour = self._timeline.start_ms(tick.tick) // 3_600_000
        if hour != self._hour:
            self._hour = hour
            self._publish_metrics()
        self._show()

    def _save(self) -> None:
        """1. the books and positions, durable; 2. only then retention may pass them."""
        if self.evaluation.tick == NOTHING_CLOSED:
            return
        books = checked.to_bytes(encode_tensors(self.evaluation.save()))
        self._until_done(lambda: write_atomically(self._folder / PROGRESS_FILE, books))
        self._ticks.commit(self.evaluation.positions)
        self._unsaved = 0

    def _show(self, *, waiting: bool = False) -> None:
        evaluation = self.evaluation
        if evaluation.tick == NOTHING_CLOSED:
            self._process.progress(state="waiting for examples")
            return
        hour = None if evaluation.ledger is None else evaluation.ledger.last_hour("online")
        auc = hour["auc_impression"] if hour is not None else math.nan
        self._process.progress(
            tick=evaluation.tick,
            event_time_ms=self._timeline.end_ms(evaluation.tick),
            impressions=evaluation.impressions,
            auc=None if math.isnan(auc) else auc,
            state="waiting" if waiting else "scoring",
        )

    def _publish_metrics(self) -> None:
        metrics, ledger = self._process.metrics, self.evaluation.ledger
        metrics.set("ouzel_lag_records", self._lags.of(READER))
        for arm in ledger.arms if ledger is not None else ():
            hour = ledger.last_hour(arm) if ledger is not None else None
            if hour is not None:
                metrics.set("ouzel_auc_impression", hour["auc_impression"], arm=arm)
                metrics.set("ouzel_calibration", hour["calibration"], arm=arm)


def truth_of(folder: RunFolder) -> Truth | None:
    """The truth of the MIND folders that a run was made from, where they were generated and are still there."""
    source = folder.path / "source.json"
    if not source.is_file():
        return None
    places = checked.from_json(source, dict[str, Any], "restore it from a copy").get("mind", ())
    return load_truth([Path(place) for place in places])


def write_results(folder: Path, report: dict[str, Any]) -> None:
    """evaluation.json and the two tables."""
    for scope in ("by_hour", "by_day"):
        rows = [{"arm": name, **entry} for name, arm in report["arms"].items() for entry in arm[scope]]
        if rows:
            with retryable(f"{folder / scope}.parquet was not written"):
                pq.write_table(pa.Table.from_pylist(rows), folder / f"{scope}.parquet")
    write_atomically(folder / RESULT_FILE, checked.to_json(report))  # NaN becomes null
