"""Entry points of the box: `ouzel generate`, `ouzel replay`, `ouzel join`: where its objects are wired."""

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from infra.config import Config
from infra.errors import ConfigError

GENERATED = "mind"  # what `ouzel generate` knows


def generate(
    what: Annotated[str, typer.Argument(help="The format: mind.")],
    out: Annotated[Path, typer.Option(help="Folder to write behaviors.tsv, news.tsv and truth.parquet into.")],
    scale: Annotated[str, typer.Option(help="tiny, small or large.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 1,
    until_rows: Annotated[int | None, typer.Option(help="Write only the first rows of the log.")] = None,
) -> None:
    from stream.generate import generate_mind

    if what != GENERATED:
        raise ConfigError(f"ouzel generate {what}: only {GENERATED} is known")
    started = time.monotonic()
    made = generate_mind(out, scale=scale, seed=seed, rows=until_rows)
    print(
        f"{made.folder}: {made.rows:,} rows, {made.shown_items:,} shown items, {made.clicks:,} clicks "
        f"({made.clicks / max(made.shown_items, 1):.2%}) in {time.monotonic() - started:.1f} s"
    )


def replay(
    run: Annotated[Path, typer.Option(help="The run folder.")],
    mind: Annotated[list[Path], typer.Option(help="A MIND folder; may be given several times.")],
    speed: Annotated[str | None, typer.Option(help='"max", or a multiple of real time such as 60x.')] = None,
) -> None:
    from infra.eventlog import create_topics, open_log
    from infra.process import Process, RunFolder
    from stream.mind.news import read_news
    from stream.mind.reader import open_mind
    from stream.replay import Done, Replay

    config = RunFolder(run).load_config()
    if speed is not None:
        config = msgspec.structs.replace(config, replay=msgspec.structs.replace(config.replay, speed=speed))
    with Process("replay", run, config) as process:
        index, news = open_mind(mind, max_gap_s=config.replay.max_gap_s), read_news(mind)
        log = open_log(process.folder.log, config.log)
        create_topics(log, config.log.partitions)
        started, last = time.monotonic(), Done()

        def watch(done: Done) -> None:
            nonlocal last
            process.progress(
                state="replaying",
                event_time_ms=done.event_time_ms,
                events=done.rows,
                events_per_s=done.rows / max(time.monotonic() - started, 1e-9),
                first_ms=machine.schedule.first_ms,
                last_ms=machine.schedule.last_ms,
                lag=max(log.reader_lag("events").values(), default=0),
            )
            process.metrics.add("ouzel_replay_rows_total", done.rows - last.rows, kind="event")
            process.metrics.add("ouzel_replay_waits_total", done.waits - last.waits)
            process.metrics.set("ouzel_event_time_seconds", done.event_time_ms / 1000)
            last = Done(rows=done.rows, waits=done.waits)

        machine = Replay(log, index, news, config, stopping=lambda: process.stopping, watch=watch)
        for reason, n in index.dead.counts().items():
            process.metrics.add("ouzel_dead_letters_total", n, reason=reason.value)
        done = machine.run()
        process.note(
            rows=index.n,
            shown_items=index.shown_items,
            dead_rows={reason.value: n for reason, n in index.dead.counts().items()},
            dead_items={reason.value: n for reason, n in news.dead_counts.items()},
            events=done.rows,
            first_ms=machine.schedule.first_ms,
            last_ms=machine.schedule.last_ms,
            finished=done.finished,
            waits=done.waits,
        )
        machine.close()
        log.close()


def join(
    run: Annotated[Path, typer.Option(help="The run folder.")],
    until_end: Annotated[
        bool, typer.Option("--until-end/--follow", help="Stop when the end of the replay is joined, or go on.")
    ] = False,
) -> None:
    from infra.eventlog import create_topics, open_log
    from infra.process import Process, RunFolder
    from stream.archiver import Archive, ArchiveThread
    from stream.examples import DropReason
    from stream.inspector import ItemsInspector
    from stream.join.core import JoinSettings
    from stream.join.worker import JoinWorker
    from stream.wire.dead import Reason

    config: Config = RunFolder(run).load_config()
    settings = JoinSettings.of(config)
    with Process("joiner", run, config) as process:
        log = open_log(process.folder.log, config.log)
        create_topics(log, config.log.partitions)

        def stopping() -> bool:
            return process.stopping

        def open_archive() -> Archive:
            return Archive(
                open_log(process.folder.log, config.log),
                process.folder.archive,
                settings.timeline,
                hours=config.join.archive_hours,
                stopping=stopping,
            )

        # A trainer that waits for a retrain waits for a whole archive file: never hold back closer than two of them.
        ticks_per_file = config.join.archive_hours * settings.timeline.ticks_per_hour
        max_lag = max(config.log.max_lag_records, 2 * ticks_per_file)
        worker = JoinWorker(log, settings, wire=config.wire, max_lag_records=max_lag, stopping=stopping)
        inspector = ItemsInspector(log, config.wire, skew_ms=settings.timeline.skew_ms, stopping=stopping)
        archive = ArchiveThread(open_archive)
        archive.start()
        counted: dict[str, int] = {}
        buried: dict[Reason, int] = {}
        try:
            while not process.stopping:
                read = worker.step(timeout_s=0.02) + inspector.step()
                counts = worker.counts()
                new = {name: max(n - counted.get(name, 0), 0) for name, n in counts.items()}
                counted = counts
                process.metrics.add("ouzel_join_events_total", new["events_in"])
                process.metrics.add("ouzel_join_impressions_total", new["joined_impressions"])
                process.metrics.add("ouzel_join_engagements_total", new["joined_engagements"])
                for reason in DropReason:
                    process.metrics.add("ouzel_join_dropped_total", new[reason.value], reason=reason.value)
                dead = {reason: worker.dead.get(reason, 0) + inspector.dead.get(reason, 0) for reason in Reason}
                for name, n in dead.items():
                    process.metrics.add("ouzel_dead_letters_total", n - buried.get(name, 0), reason=name.value)
                buried = dead
                process.metrics.set("ouzel_lag_records", log.reader_lag("events").get("joiner", 0))
                process.metrics.set("ouzel_archive_tick", archive.closed_through)
                process.progress(
                    state="joining",
                    event_time_ms=worker.watermark_ms(),
                    events=counts["events_in"],
                    examples=counts["joined_impressions"],
                    dropped=sum(counts[reason.value] for reason in DropReason),
                )
                if until_end and not read and worker.ended:
                    break
        finally:
            archive.finish(all_of_it=worker.ended and not process.stopping)
        process.note(dead={reason.value: n for reason, n in buried.items() if n})
        process.note(counts=worker.counts(), resyncs=worker.resyncs, ended=worker.ended)
        worker.close()
        inspector.close()
        log.close()
