"""Entry points of the box: `ouzel generate`, `ouzel replay`, `ouzel archive`: where its objects are wired."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from infra import folders
from infra.errors import ConfigError

if TYPE_CHECKING:
    from infra.process import Process
    from stream.archiver import Archive

GENERATED = "mind"  # what `ouzel generate` knows
LOOK_S = 0.1


def generate(
    what: Annotated[str, typer.Argument(help="The format: mind.")],
    out: Annotated[Path, typer.Option(help="Folder to write behaviors.tsv, news.tsv and truth.parquet into.")],
    scale: Annotated[str, typer.Option(help="tiny, small or large.")] = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 1,
    until_rows: Annotated[int | None, typer.Option(min=1, help="Write only the first rows of the log.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a log that is there.")] = False,
) -> None:
    from stream.generate import generate_mind

    if what != GENERATED:
        raise ConfigError(f"ouzel generate {what}: only {GENERATED} is known")
    folders.check_new(out, "--out")
    there = [name for name in ("behaviors.tsv", "news.tsv") if (out / name).exists()]
    if there and not force and not (out / "truth.parquet").is_file():
        raise ConfigError(
            f"--out {out} holds {' and '.join(there)}, which was not generated: name another folder, or give "
            "--force to replace it"
        )
    folders.make(out, "--out")
    started = time.monotonic()
    made = generate_mind(out, scale=scale, seed=seed, rows=until_rows)
    print(
        f"{made.folder}: {made.rows:,} rows, {made.shown_items:,} shown items, {made.clicks:,} clicks "
        f"({made.clicks / max(made.shown_items, 1):.2%}) in {time.monotonic() - started:.1f} s"
    )


def inspect(
    mind: Annotated[list[Path], typer.Option(help="A MIND folder or .zip; may be given several times.")],
    max_gap_s: Annotated[float | None, typer.Option(help="As replay.max_gap_s.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    from infra.config import ReplayConfig
    from stream.mind.news import read_news
    from stream.mind.reader import open_mind

    index = open_mind(mind, max_gap_s=ReplayConfig().max_gap_s if max_gap_s is None else max_gap_s)
    news = read_news(mind)
    first, last = int(index.time_ms[0]), int(index.time_ms[-1])
    if json:
        print(msgspec.json.encode({"rows": index.n, "first_ms": first, "last_ms": last}).decode())
        return
    print(f"{index.n:,} of {index.lines:,} rows are impressions, {index.shown_items:,} shown items")
    print(f"from {_time(first)} to {_time(last)}, {(last - first) / 3_600_000:.1f} hours")
    print(f"{len(news):,} items in the catalogue")
    for name, counts in (("behaviors.tsv", index.dead.counts()), ("news.tsv", news.dead_counts)):
        for reason, n in counts.items():
            print(f"dead: {name:<14} {reason.value:<22} {n:>10,}")


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%a %d %b %Y %H:%M:%S}"


def replay(
    run: Annotated[Path, typer.Option(help="The run folder.")],
    mind: Annotated[list[Path], typer.Option(help="A MIND folder or .zip; may be given several times.")],
    speed: Annotated[str | None, typer.Option(help='"max", or a multiple of real time such as 60x.')] = None,
) -> None:
    from infra.eventlog import create_topics
    from infra.eventlog.pressure import Lags
    from infra.paramstore.configuration import hold_to_configuration
    from infra.process import Process, RunFolder
    from stream.mind.news import read_news
    from stream.mind.reader import open_mind
    from stream.replay import Done, Replay

    config = RunFolder(run).load_config()
    if speed is not None:
        config = msgspec.structs.replace(config, replay=msgspec.structs.replace(config.replay, speed=speed))
    with Process("replay", run, config) as process:
        index, news = open_mind(mind, max_gap_s=config.replay.max_gap_s), read_news(mind)
        log = process.open_log()
        create_topics(log, config.log.partitions)
        hold_to_configuration(log, config, first=True)
        started, last, lags, timeline = time.monotonic(), Done(), Lags(log, "events"), config.time.build()

        def watch(done: Done) -> None:
            nonlocal last
            process.progress(
                state="replaying",
                event_time_ms=done.event_time_ms,
                tick=timeline.closed_through(done.event_time_ms),
                events=done.rows,
                events_per_s=done.rows / max(time.monotonic() - started, 1e-9),
                first_ms=machine.schedule.first_ms,
                last_ms=machine.schedule.last_ms,
                lag=max(lags.all().values(), default=0),
            )
            process.metrics.add("ouzel_replay_rows_total", done.rows - last.rows, kind="event")
            process.metrics.add("ouzel_replay_waits_total", done.waits - last.waits)
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


def archive(
    run: Annotated[Path, typer.Option(help="The run folder.")],
    until_end: Annotated[
        bool, typer.Option("--until-end/--follow", help="Stop when the end of the replay is archived, or go on.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Make the whole archive again from `examples`, say what differed, and stop.")
    ] = False,
) -> None:
    """Keep the archive, where the joiner does not: on Kafka, whose joiners may be many."""
    from infra.eventlog import create_topics
    from infra.paramstore.configuration import hold_to_configuration
    from infra.process import Process, RunFolder
    from stream.archiver import open_archive
    from stream.rebuild import alone, rebuild

    config = RunFolder(run).load_config()
    with Process("archive", run, config) as process:
        log = process.open_log()
        create_topics(log, config.log.partitions)
        hold_to_configuration(log, config)
        with alone(process.folder.archive):
            if again:
                show = lambda tick: process.progress(state="archiving again", tick=tick)  # noqa: E731
                timeline, hours = config.time.build(), config.join.archive_hours
                print(
                    rebuild(
                        log, process.folder.archive, timeline, hours=hours, stopping=lambda: process.stopping, show=show
                    )
                )
            else:
                keep_archive(process, open_archive(process, log), until_end=until_end)
        log.close()


def keep_archive(process: "Process", kept: "Archive", *, until_end: bool) -> None:
    """Until told to stop, or until the end of the replay is archived."""
    while not process.stopping:
        read = kept.step(timeout_s=LOOK_S)
        process.metrics.set("ouzel_archive_tick", kept.closed_through)
        process.progress(state="archiving" if read else "waiting", tick=kept.closed_through)
        if until_end and not read and kept.ended:
            break
    process.note(closed_through=kept.closed_through)
    kept.close()
