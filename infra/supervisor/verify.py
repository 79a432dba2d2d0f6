"""`ouzel verify`: derive a run's examples and parameters again from its logs, and compare.

The truth of a run is `events`, `items`, `control` and the configuration. They are copied into a scratch run folder; the
same processes (joiner, trainer, retrain) run over them there; then both hops are compared:

    events → examples    record by record, header and value
    examples → versions  the digest chain, through the last version of the original

A rerun reads the decisions in `control` instead of taking them again.
"""

import hashlib
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from infra.errors import InputError
from infra.eventlog import EventLog, create_topics, open_log
from infra.eventlog.base import Record
from infra.paramstore.publisher import last_whole
from infra.process import RunFolder, write_atomically
from infra.supervisor.display import Display
from infra.supervisor.fleet import Fleet, Member

TRUTH = ("events", "items", "control")
WATCH_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification found."""

    examples_equal: bool
    versions_equal: bool
    digest: str  # of the original's last version
    derived: str  # of the rerun's
    seconds: float

    @property
    def equal(self) -> bool:
        return self.examples_equal and self.versions_equal


def verify_run(folder: RunFolder, scratch: RunFolder, console: Console) -> Verdict:
    """Derive `folder` again in `scratch`, which is made and left for the caller to remove.

    Raises InputError where the run's logs no longer reach back to its first event.
    """
    config = folder.load_config()
    scratch.path.mkdir(parents=True)
    write_atomically(scratch.config_file, folder.config_file.read_bytes())
    shutil.copyfile(folder.path / "source.json", scratch.path / "source.json")
    old, new = open_log(folder.log, config.log), open_log(scratch.log, config.log)
    started = time.monotonic()
    try:
        create_topics(new, config.log.partitions)
        for topic in TRUTH:
            _copy(old, new, topic)
        fleet = Fleet(
            scratch,
            [
                Member(n, c, ("--until-end",))
                for n, c in (("joiner", "join"), ("trainer", "train"), ("retrain", "retrain"))
            ],
        )
        try:
            fleet.start_all()
            with Display(console, scratch.stats, [m.name for m in fleet.members]) as display:
                while running := fleet.check():
                    display.update(running)
                    time.sleep(WATCH_EVERY_S)
        finally:
            fleet.stop_all()
        before, after = last_whole(old), last_whole(new)
        digest, derived = (meta.digest if meta is not None else "" for meta in (before, after))
        return Verdict(
            examples_equal=_digest(old, "examples") == _digest(new, "examples"),
            versions_equal=bool(digest) and digest == derived,
            digest=digest,
            derived=derived,
            seconds=time.monotonic() - started,
        )
    finally:
        old.close()
        new.close()


def what_was_checked() -> str:
    """Bit equality holds on the same wheels, instruction set and thread count: the machine at hand."""
    return f"bit for bit, on this machine ({platform.machine()}, one thread a process)"


def _copy(old: EventLog, new: EventLog, topic: str) -> None:
    writer = new.writer(topic)
    for partition in range(old.partitions(topic)):
        if old.start_offset(topic, partition) > 0:
            raise InputError(
                f"{topic}/{partition} begins at offset {old.start_offset(topic, partition)}: retention has taken the "
                f"start of the run, so it can only be verified from a snapshot, which is not offered yet"
            )
        for record in _records(old, topic, partition):
            writer.append(partition, record.value, timestamp_ms=record.timestamp_ms, key=record.key, meta=record.meta)
    writer.close()


def _records(log: EventLog, topic: str, partition: int) -> Iterator[Record]:
    offset, end = log.start_offset(topic, partition), log.end_offset(topic, partition)
    while offset < end:
        for record in log.read(topic, partition, offset):
            yield record
            offset = record.offset + 1


def _digest(log: EventLog, topic: str) -> list[str]:
    """A digest a partition over headers and values, repeats of a record left out."""
    digests = []
    for partition in range(log.partitions(topic)):
        digest, last = hashlib.blake2b(digest_size=32), None
        for record in _records(log, topic, partition):
            if record.meta != last:
                digest.update(record.meta)
                digest.update(record.value)
            last = record.meta
        digests.append(digest.hexdigest())
    return digests


def scratch_folder(folder: Path) -> RunFolder:
    """A sibling of the run folder that does not exist yet."""
    n = 1
    while (place := folder.with_name(f"{folder.name}.verify-{n}")).exists():
        n += 1
    return RunFolder(place)
