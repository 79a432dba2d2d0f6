"""`ouzel topics create|show|drop`: the topics of a log, on Kafka or in a run folder, and how far each reader is.

Lag has two measures. In records, it is what back-pressure goes by; an events topic's records are batches, so the rows
are counted by those who join them. In seconds, it is event time: from the newest record's time back to that of the
next one to be read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from infra.config import Config, load_config, refuse_credentials
from infra.errors import ConfigError, InputError
from infra.eventlog import TOPICS, EventLog, create_topics, open_log, remove_log
from infra.process import RunFolder
from infra.supervisor.runlog import reachable

LogOption = Annotated[str | None, typer.Option("--log", help="kafka://host:port/prefix, or a log's folder.")]
RunOption = Annotated[Path | None, typer.Option("--run", help="The run folder, whose log it is.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A configuration file, without a run folder.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="One value, such as log.partitions=8.")]


class Lag(NamedTuple):
    """How far a reader is behind, over the partitions of a topic."""

    topic: str
    reader: str
    records: int  # the partition where it has most to read
    seconds: float  # the partition where that spans the longest event time


def topics(
    action: Annotated[str, typer.Argument(help="create, show or drop.")],
    log: LogOption = None,
    run: RunOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Create, show or drop the topics of a log."""
    settings = RunFolder(run).load_config() if run is not None else load_config(config, overrides=set_ or [])
    where = log or settings.log.url or (str(RunFolder(run).log) if run is not None else "")
    refuse_credentials(where, "--log")
    if not where:
        raise ConfigError("ouzel topics: name a log: --log kafka://host:port/prefix, or --run DIR")
    console = Console()
    if run is not None and log is None:
        with reachable(RunFolder(run), Console(stderr=True)):
            return _act(action, where, settings, console)
    return _act(action, where, settings, console)


def _act(action: str, where: str, settings: Config, console: Console) -> None:
    if action == "drop":
        if not where.startswith("kafka://"):
            raise ConfigError(f"{where}: a log in a run folder goes with it; remove the folder")
        names = remove_log(where, settings.log)
        console.print(f"removed {', '.join(names) or 'nothing: no such topics'}", highlight=False)
        return
    if ":" in where and not where.startswith("kafka://"):
        raise ConfigError(f"{where}: write the log's address as kafka://host:port/prefix, or name a folder")
    if action == "show" and not where.startswith("kafka://") and not Path(where).is_dir():
        raise InputError(f"{where}: no such folder; a log on Kafka is kafka://host:port/prefix")
    opened = open_log(where, settings.log)
    try:
        if action == "create":
            create_topics(opened, settings.log.partitions)
        elif action != "show":
            raise ConfigError(f"ouzel topics {action}: create, show or drop")
        if not show(opened, console):
            raise InputError(
                f"{where}: no topics of ouzel's here; `ouzel topics create` makes them. Check the prefix: a run's is "
                "the end of log.url in its config.toml, and `--run RUN` takes it from there"
            )
    finally:
        opened.close()


def show(log: EventLog, console: Console) -> bool:
    """Print every topic with its partitions, and every reader with its lag; False where there is no topic."""
    held = Table("topic", "partitions", "oldest", "records", title_justify="left")
    found = [topic for topic in TOPICS if _there(log, topic)]
    if not found:
        return False
    for topic in found:
        starts, ends = _range(log, topic, log.start_offset), _range(log, topic, log.end_offset)
        kept = sum(ends) - sum(starts)
        held.add_row(topic, str(len(ends)), str(min(starts)), f"{kept:,}")
    console.print(held)
    lags = [lag for topic in found for lag in lags_of(log, topic)]
    behind = Table("topic", "reader", "lag, records", "lag, event s")
    for lag in lags:
        behind.add_row(lag.topic, lag.reader, f"{lag.records:,}", f"{lag.seconds:,.0f}")
    console.print(behind if lags else "no readers")
    return True


def lags_of(log: EventLog, topic: str) -> list[Lag]:
    """Every registered reader of a topic, and how far it is behind."""
    found = []
    for reader, records in sorted(log.reader_lag(topic).items()):
        places = log.read_positions(topic, reader)
        spans = [_span_s(log, topic, p, offset) for p, offset in places.items()]
        found.append(Lag(topic, reader, records, max(spans, default=0.0)))
    return found


def _span_s(log: EventLog, topic: str, partition: int, offset: int) -> float:
    """Event time from the record at `offset` to the newest one, s; 0 where nothing is left to read."""
    offset = max(offset, log.start_offset(topic, partition))
    last = log.last_record(topic, partition)
    if last is None or last.offset < offset:
        return 0.0
    first = log.read(topic, partition, offset, 1)[0]
    return max(0.0, (last.timestamp_ms - first.timestamp_ms) / 1000)


def _range(log: EventLog, topic: str, of: Callable[[str, int], int]) -> list[int]:
    return [of(topic, p) for p in range(log.partitions(topic))]


def _there(log: EventLog, topic: str) -> bool:
    try:
        log.partitions(topic)
    except ConfigError:
        return False
    return True
