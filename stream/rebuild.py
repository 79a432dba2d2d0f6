"""Makes a run's archive again from `examples`: `ouzel archive --again`, where a file of it is missing or damaged.

1. a whole new archive is written beside, by a reader of its own from the log's start;
2. it is compared with the old one, to say which files differed;
3. the old folder is renamed away, the new one takes its name, the old one is removed.
A kill before 3 leaves the old archive; one within it leaves none, and the next start of the joiner says so.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import ConfigError, InputError
from infra.eventlog import EventLog
from infra.paramstore.files import fsync_folder, retryable
from infra.ticks import Timeline
from stream.archiver import AGAIN, Archive

MOST_NAMED = 5


@contextmanager
def alone(archive: Path) -> Iterator[None]:
    """Hold the archive against other writers of it. Raises ConfigError where there is one."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with open(archive.with_name("archive.lock"), "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{archive} is being written by another process (the joiner, or `ouzel archive`): stop it first"
            ) from error
        yield


def rebuild(
    log: EventLog,
    archive: Path,
    timeline: Timeline,
    *,
    hours: int,
    stopping: Callable[[], bool] = lambda: False,
    show: Callable[[int], None] = lambda tick: None,
) -> str:
    """Make the archive again and say what differed; the caller holds it (`alone`).

    Raises InputError where `examples` no longer reaches back to its start, RetryableError where the disk refuses.
    """
    for p in range(log.partitions("examples")):
        if log.start_offset("examples", p) > 0:
            raise InputError(
                f"examples/{p} begins at offset {log.start_offset('examples', p)}: retention has taken the start, so "
                f"{archive} cannot be made again; restore its files from a copy"
            )
    fresh, gone = archive.with_name("archive.again"), archive.with_name("archive.before")
    log.forget_reader("examples", AGAIN)
    with retryable(f"{fresh} was not written"):
        for leftover in (fresh, gone):
            shutil.rmtree(leftover, ignore_errors=True)
    made = Archive(log, fresh, timeline, hours=hours, name=AGAIN, stopping=stopping)
    while made.step() and not stopping():
        show(made.closed_through)
    made.close()
    log.forget_reader("examples", AGAIN)
    if stopping():
        return "stopped; nothing was changed"
    said = _differences(archive, fresh)
    with retryable(f"{archive} was not replaced"):
        if archive.exists():
            os.rename(archive, gone)
        os.rename(fresh, archive)
        fsync_folder(archive.parent)
    shutil.rmtree(gone, ignore_errors=True)
    return said


def _differences(old: Path, new: Path) -> str:
    there, made = _files(old), _files(new)
    missing, extra = sorted(made.keys() - there.keys()), sorted(there.keys() - made.keys())
    changed = sorted(name for name in made.keys() & there.keys() if there[name].read_bytes() != made[name].read_bytes())
    found = [(missing, "missing"), (changed, "changed"), (extra, "one too many")]
    named = [f"{name} was {what}" for names, what in found for name in names[:MOST_NAMED]]
    more = sum(len(names[MOST_NAMED:]) for names, _ in found)
    head = f"{old} was made again from `examples`: {len(made)} files"
    return "\n".join([head, *(named or ["all equal to what was there"]), *([f"and {more} more"] if more else [])])


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.glob("day=*/hour=*/[!.]*") if path.is_file()}
