"""`ouzel dead-letters`: what could not be used and why; and back into the log with what can be read now."""

import fcntl
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.config import Config, load_config, refuse_credentials
from infra.errors import ConfigError, InputError, RetryableError

if TYPE_CHECKING:
    from infra.eventlog import EventLog

SHOWN_BYTES = 200


def dead_letters(
    action: Annotated[str, typer.Argument(help="list, show or replay.")],
    run: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    log: Annotated[str | None, typer.Option(help="The event log, where it is not the run's.")] = None,
    config: Annotated[Path | None, typer.Option(help="A configuration file, where there is no run folder.")] = None,
    reason: Annotated[str | None, typer.Option(help="show: only these.")] = None,
    limit: Annotated[int, typer.Option(help="show: how many, the newest.")] = 20,
) -> None:
    if action not in ("list", "show", "replay"):
        raise ConfigError(f"ouzel dead-letters {action}: list, show or replay")
    with _opened(run, log, config) as (opened, settings, folder):
        if action == "list":
            _list(opened)
        elif action == "show":
            _show(opened, reason, limit)
        else:
            with _alone(folder):
                _replay(opened, settings)


@contextmanager
def _opened(run: Path | None, log: str | None, config: Path | None) -> Iterator[tuple["EventLog", Config, Path]]:
    """The log that is meant, with the configuration, and the folder that a replay locks. Makes nothing."""
    from rich.console import Console

    from infra.eventlog import open_log
    from infra.process import RunFolder
    from infra.supervisor.runlog import reachable

    folder = RunFolder(run) if run is not None else None
    settings = folder.load_config() if folder is not None else load_config(config)
    where = log or settings.log.url or (str(folder.log) if folder is not None else "")
    refuse_credentials(where, "--log")
    if not where:
        raise ConfigError("ouzel dead-letters: name a run folder (--run DIR) or an event log (--log ADDRESS)")
    if "://" not in where and not Path(where).is_dir():
        raise InputError(f"{where}: no event log there; has the run started?")
    with ExitStack() as held:
        if folder is not None and log is None:
            held.enter_context(reachable(folder, Console(stderr=True)))
        opened = open_log(where, settings.log)
        held.callback(opened.close)
        opened.partitions("dead-letters")  # raises where there are no topics
        yield opened, settings, folder.path if folder is not None else Path(where)


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
