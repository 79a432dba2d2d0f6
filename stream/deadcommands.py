"""`ouzel dead-letters`: what could not be used and why; and back into the log with what can be read now."""

import fcntl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.config import Config, load_config
from infra.errors import ConfigError, RetryableError

if TYPE_CHECKING:
    from infra.eventlog import EventLog

SHOWN_BYTES = 200


def dead_letters(
    action: Annotated[str, typer.Argument(help="list, show or replay.")],
    run: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    log: Annotated[str | None, typer.Option(help="The event log, where it is not the run folder's.")] = None,
    config: Annotated[Path | None, typer.Option(help="A configuration file, where there is no run folder.")] = None,
    reason: Annotated[str | None, typer.Option(help="show: only these.")] = None,
    limit: Annotated[int, typer.Option(help="show: how many, the newest.")] = 20,
) -> None:
    from infra.eventlog import create_topics, open_log
    from infra.process import RunFolder

    if run is None and log is None:
        raise ConfigError("ouzel dead-letters: name a run folder (--run DIR) or an event log (--log ADDRESS)")
    settings = RunFolder(run).load_config() if run is not None else load_config(config)
    where = log if log is not None else str(RunFolder(run or Path()).log)
    opened = open_log(where, settings.log)
    try:
        create_topics(opened, settings.log.partitions)
        if action == "list":
            _list(opened)
        elif action == "show":
            _show(opened, reason, limit)
        elif action == "replay":
            with _alone(run if run is not None else Path(where)):
                _replay(opened, settings)
        else:
            raise ConfigError(f"ouzel dead-letters {action}: list, show or replay")
    finally:
        opened.close()


def _list(log: "EventLog") -> None:
    from stream.deadletters import letters
    from stream.deadreplay import replayed_keys

    events: Counter[tuple[str, str]] = Counter()
    back: Counter[tuple[str, str]] = Counter()
    done = replayed_keys(log)
    for key, (_, meta) in letters(log).items():
        place = (meta.topic or "data set", meta.reason)
        events[place] += meta.events
        back[place] += meta.events * (key in done)
    for topic, reason in sorted(events):
        again = f"  {back[topic, reason]:,} replayed" if back[topic, reason] else ""
        print(f"{topic:<10} {reason:<20} {events[topic, reason]:>10,}{again}")
    print(f"{'':<10} {'all':<20} {events.total():>10,}  dead events; {back.total():,} replayed")


def _show(log: "EventLog", reason: str | None, limit: int) -> None:
    from stream.deadletters import letters

    chosen = [(key, one) for key, one in letters(log).items() if reason in (None, one[1].reason)]
    for key, (record, meta) in chosen[-max(limit, 0) :]:
        shown = repr(bytes(record.value[:SHOWN_BYTES]))[1:]  # escaped: a producer's bytes never reach the terminal
        more = f" … {len(record.value):,} bytes" if len(record.value) > SHOWN_BYTES else ""
        print(
            f"{key.decode('ascii', 'backslashreplace')}  {meta.reason}: {ascii(meta.detail)[1:-1]}\n    {shown}{more}"
        )
    print(f"{min(len(chosen), max(limit, 0)):,} of {len(chosen):,} letters")


def _replay(log: "EventLog", config: Config) -> None:
    from stream.deadreplay import DeadReplay

    machine = DeadReplay(log, config)
    try:
        done = machine.run()
    finally:
        machine.close()
    print(f"{done.replayed:,} letters replayed; {done.before:,} were before; {done.foreign:,} of data sets stay")
    for reason, n in sorted(done.still_dead.items()):
        print(f"still dead: {reason:<20} {n:>10,}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One replay at a time on this machine. A log elsewhere has no folder to lock: there it is the operator's care."""
    if not folder.is_dir():
        yield
        return
    with open(folder / "dead-letters.lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RetryableError(
                f"{folder}: its dead letters are being replayed; wait for that", after_s=1.0
            ) from error
        yield
