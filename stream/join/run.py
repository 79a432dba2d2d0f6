"""`ouzel join`: where the joiner's objects are wired.

On the embedded log one process joins every partition, and keeps the archive in a thread beside. On Kafka as many run
as one likes, under names of their own; the group protocol divides the partitions among them, and `ouzel archive` is a
process of its own: it reads `examples`, whoever wrote them.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from infra.config import Config
from infra.errors import ConfigError
from infra.eventlog import EventLog, GroupLog, create_topics
from infra.eventlog.pressure import Lags
from infra.paramstore.configuration import hold_to_configuration
from infra.process import Process, RunFolder
from stream.archiver import ArchiveThread, open_archive
from stream.examples import DropReason
from stream.inspector import ItemsInspector
from stream.join.core import JoinSettings
from stream.join.engines import Engine, open_worker
from stream.join.together import join_together
from stream.rebuild import alone
from stream.wire.dead import Reason

LOOK_S = 0.02
FRAME_ROOM = 8 << 10  # of a record of `examples`, beside its impressions: schema, offsets, meta


def join(
    run: Annotated[Path, typer.Option(help="The run folder.")],
    until_end: Annotated[
        bool, typer.Option("--until-end/--follow", help="Stop when the end of the replay is joined, or go on.")
    ] = False,
    number: Annotated[int, typer.Option(min=1, help="On Kafka: which of several workers this is, from 1 on.")] = 1,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="On Kafka: start so many here, numbered from --number on.")
    ] = 1,
    engine: Annotated[
        Engine, typer.Option(help="On Kafka: who brings the records. See infra/docs/kafka.md before choosing faust.")
    ] = Engine.OWN,
) -> None:
    if workers > 1:
        end = "--until-end" if until_end else "--follow"
        join_together(RunFolder(run), workers, number, (end, "--engine", engine.value))
        return
    config: Config = RunFolder(run).load_config()
    with Process("joiner", run, config, number=number) as process:
        log = process.open_log()
        create_topics(log, config.log.partitions)
        hold_to_configuration(log, config, first=True)
        joining = Joining(process, log, engine)
        try:
            joining.run(until_end=until_end)
        finally:
            joining.finish()
        joining.close()
        log.close()


def check_fits(config: Config, log: EventLog) -> None:
    """Raises ConfigError where a record of examples may be larger than the log takes."""
    most = log.max_record_bytes - FRAME_ROOM
    if config.join.bytes_per_record > most:
        raise ConfigError(
            f"join.bytes_per_record is {config.join.bytes_per_record}: a record of the log takes {most}; lower it, or "
            "raise log.kafka.max_record_bytes and the topics' max.message.bytes"
        )


class Joining:
    """One joiner process: a worker, the inspector of `items`, and on the embedded log the archive."""

    def __init__(self, process: Process, log: EventLog, engine: Engine = Engine.OWN) -> None:
        config, settings = process.config, JoinSettings.of(process.config)
        check_fits(config, log)
        self._process, self._timeline = process, settings.timeline
        # A trainer that waits for a retrain waits for a whole archive file: never hold back closer than two of them.
        ticks_per_file = config.join.archive_hours * settings.timeline.ticks_per_hour
        grouped = isinstance(log, GroupLog)
        self.worker = open_worker(
            engine,
            log,
            config,
            folder=process.folder.path,
            metrics=process.metrics,
            max_lag_records=max(config.log.max_lag_records, 2 * ticks_per_file),
            stopping=self._stopping,
        )
        self._inspector = ItemsInspector(
            log, config.wire, skew_ms=settings.timeline.skew_ms, grouped=grouped, stopping=self._stopping
        )
        self._lags = Lags(log, "events")
        self._archive: ArchiveThread | None = None
        self._archive_held = ExitStack()
        if not grouped:
            self._archive_held.enter_context(alone(process.folder.archive))
            self._archive = ArchiveThread(lambda: open_archive(process, process.folder.open_log(config)))
            self._archive.start()
        self._partitions: list[int] = []  # as last said
        self._counted: dict[str, int] = {}
        self._buried: dict[Reason, int] = {}
        self.ended = False

    def run(self, *, until_end: bool) -> None:
        """Until told to stop, or until everything is joined."""
        while not self._process.stopping:
            read = self.worker.step(timeout_s=LOOK_S) + self._inspector.step()
            self._show()
            if until_end and not read and self.worker.ended:
                self.ended = True
                break

    def finish(self) -> None:
        """End the archive, with all of it where the join ended by itself."""
        if self._archive is not None:
            self._archive.finish(all_of_it=self.ended)
        self._archive_held.close()

    def close(self) -> None:
        """Note what was done, let go of the log."""
        worker = self.worker
        self._process.note(dead={reason.value: n for reason, n in self._buried.items() if n})
        self._process.note(counts=worker.counts(), partitions=worker.partitions, ended=self.ended)
        self._process.note(resyncs=worker.resyncs, rebalances=worker.rebalances)
        worker.close()
        self._inspector.close()

    def _stopping(self) -> bool:
        return self._process.stopping

    def _show(self) -> None:
        metrics, counts = self._process.metrics, self.worker.counts()
        new: Callable[[str], int] = lambda name: max(counts[name] - self._counted.get(name, 0), 0)  # noqa: E731
        if counts:
            metrics.add("ouzel_join_events_total", new("events_in"))
            metrics.add("ouzel_join_impressions_total", new("joined_impressions"))
            metrics.add("ouzel_join_engagements_total", new("joined_engagements"))
            for reason in DropReason:
                metrics.add("ouzel_join_dropped_total", new(reason.value), reason=reason.value)
        self._counted = counts
        dead = {r: self.worker.dead.get(r, 0) + self._inspector.dead.get(r, 0) for r in Reason}
        for name, n in dead.items():
            metrics.add("ouzel_dead_letters_total", n - self._buried.get(name, 0), reason=name.value)
        self._buried = dead
        metrics.set("ouzel_lag_records", self._lags.of("joiner"))
        if self.worker.partitions != self._partitions:
            self._partitions = self.worker.partitions
            _say_partitions(self._partitions)
        if self._archive is not None:
            metrics.set("ouzel_archive_tick", self._archive.closed_through)
        self._process.progress(
            state="joining" if counts else "waiting for partitions",
            event_time_ms=self.worker.watermark_ms(),
            tick=self._timeline.closed_through(self.worker.watermark_ms()),
            events=counts.get("events_in", 0),
            examples=counts.get("joined_impressions", 0),
            dropped=sum(counts.get(reason.value, 0) for reason in DropReason),
            partitions=len(self.worker.partitions),
        )


def _say_partitions(partitions: list[int]) -> None:
    """For whoever watches a group: who joins what, whenever that changes."""
    text = (
        f"joins partitions {', '.join(map(str, partitions))}"
        if partitions
        else "stands by: its partitions are others's now"
    )
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
