"""`ouzel verify`: derive a run's examples and parameters again from its logs, and compare.

The truth of a run is `events`, `items`, `control` and the configuration. They are copied into a scratch run folder; the
same processes (joiner, trainer, retrain) run over them there; then both hops are compared:

    events → examples    record by record, header and value
    examples → versions  the digest chain, through the last version of the original

A rerun reads the decisions in `control` instead of taking them again. A log need not have ended: one that went on live
(`ouzel up`), or was stopped or killed in the middle, holds events that the original had not joined or learned yet; the
rerun is stopped once it has come as far as the original, and what it made beyond that is not compared.
"""

import hashlib
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from infra.config import dump_config
from infra.errors import InputError
from infra.eventlog import EventLog, create_topics
from infra.eventlog.base import Record
from infra.paramstore.configuration import hold_to_configuration
from infra.paramstore.publisher import last_whole
from infra.paramstore.version import VersionMeta, decode_meta
from infra.process import RunFolder, write_atomically
from infra.supervisor.display import Display
from infra.supervisor.fleet import Fleet, Member
from infra.supervisor.runlog import with_address

TRUTH = ("events", "items", "control", "dead-letters")
WATCH_EVERY_S = 0.2
PATIENCE_S = 120.0  # without a new example or version: it will not come as far as the original


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
    here = with_address(config, "")  # derived on the embedded log, wherever the original lies
    write_atomically(scratch.config_file, dump_config(here).encode())
    shutil.copyfile(folder.path / "source.json", scratch.path / "source.json")
    old, new = folder.open_log(config), scratch.open_log(here)
    started = time.monotonic()
    try:
        hold_to_configuration(old, config)
        create_topics(new, config.log.partitions)
        for topic in TRUTH:
            _copy(old, new, topic)
        examples = [_distinct(old, "examples", p) for p in range(old.partitions("examples"))]
        _derive(scratch, console, _Goal(last_whole(old), [len(records) for records in examples]), new)
        derived = [_distinct(new, "examples", p) for p in range(new.partitions("examples"))]
        head = last_whole(old)
        digest = head.digest if head is not None else ""
        found = _reached(new, digest)
        return Verdict(
            examples_equal=all(made[: len(there)] == there for there, made in zip(examples, derived, strict=True)),
            versions_equal=digest == found,
            digest=digest,
            derived=found,
            seconds=time.monotonic() - started,
        )
    finally:
        old.close()
        new.close()


@dataclass(frozen=True, slots=True)
class _Goal:
    """How far the original came."""

    head: VersionMeta | None
    records: list[int]  # distinct ones of `examples`, by partition

    def reached(self, log: EventLog) -> bool:
        head = last_whole(log)
        versions = self.head is None or (head is not None and head.id >= self.head.id)
        return versions and all(log.end_offset("examples", p) >= n for p, n in enumerate(self.records))


def _derive(scratch: RunFolder, console: Console, goal: _Goal, log: EventLog) -> None:
    """Run the loop's processes over the copied logs until they came as far as the original."""
    commands = (("joiner", "join"), ("trainer", "train"), ("retrain", "retrain"))
    fleet = Fleet(scratch, [Member(name, command, ("--follow",)) for name, command in commands])
    made: list[int] = []
    try:
        fleet.start_all()
        with Display(console, scratch.stats, [m.name for m in fleet.members]) as display:
            while not goal.reached(log):
                display.update(fleet.check())
                now = [
                    log.end_offset("versions", 0),
                    *(log.end_offset("examples", p) for p in range(len(goal.records))),
                ]
                if now != made:
                    made, deadline = now, time.monotonic() + PATIENCE_S
                elif time.monotonic() > deadline:
                    return
                time.sleep(WATCH_EVERY_S)
    finally:
        fleet.stop_all()


def _reached(log: EventLog, digest: str) -> str:
    """`digest`, where a version has it; else the last version's."""
    derived = ""
    for record in _records(log, "versions", 0):
        derived = decode_meta(record.meta).digest
        if derived == digest:
            break
    return derived


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


def _distinct(log: EventLog, topic: str, partition: int) -> list[bytes]:
    """A digest a record over header and value; what a second joiner repeated is left out."""
    digests: dict[bytes, None] = {}
    for record in _records(log, topic, partition):
        digest = hashlib.blake2b(record.meta, digest_size=16)
        digest.update(record.value)
        digests[digest.digest()] = None
    return list(digests)


def scratch_folder(folder: Path) -> RunFolder:
    """A sibling of the run folder that does not exist yet."""
    n = 1
    while (place := folder.with_name(f"{folder.name}.verify-{n}")).exists():
        n += 1
    return RunFolder(place)
