"""The writing end: one append and one flush are the trainer's commit and the publication.

1. `publish`, `open_generation`, `progress` link the version into the chain and buffer its record.
2. `flush` makes everything buffered durable and visible, with one fsync. Before it returns nothing is promised; after
   it, the input positions, parameters, optimizer state and counters of the version stand together.

One publisher a run: a lock is held for its life, and the end of the log is checked before each flush.
"""

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from infra.errors import CorruptStateError, RetryableError
from infra.eventlog.base import EventLog
from infra.paramstore.chain import Chain
from infra.paramstore.marks import Mark, Marks
from infra.paramstore.snapshots import SnapshotStore
from infra.paramstore.tensors import encode_tensors
from infra.paramstore.version import TOPIC, Kind, VersionMeta, decode_meta, digest_of, encode_meta
from infra.temporary import sweep

PART_BYTES = 8 << 20  # a record's value; larger versions travel in parts
META_BYTES = 32 << 10  # kept free in a record for its meta


class Publisher:
    """Appends versions. Raises RetryableError if another process publishes to this run."""

    def __init__(
        self,
        log: EventLog,
        snapshots: SnapshotStore,
        aliases: Marks,
        *,
        fingerprint: str,
        configuration: str = "",
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._log, self._snapshots, self._aliases = log, snapshots, aliases
        self._fingerprint, self._configuration = fingerprint, configuration
        self._part_bytes = min(part_bytes, log.max_record_bytes - META_BYTES)
        self._lock = _lock(snapshots.folder / ".publisher")
        snapshots.sweep()
        sweep([aliases.folder])
        self._writer = log.writer(TOPIC)
        self._next = log.end_offset(TOPIC, 0)
        self._pending: list[str] = []  # digest a buffered record
        self._opened: Mark | None = None
        self.chain = Chain()
        self.head = last_whole(log)
        if self.head is not None:
            self.chain.stand_at(self.head.id, self.head.digest, self.head.tick)

    def publish(
        self,
        generation: int,
        tick: int,
        tensors: Mapping[str, NDArray[Any]],
        *,
        positions: Mapping[int, int],
        items_offset: int,
        control_offset: int,
        timestamp_ms: int,
        closed_wall_ms: int = 0,
        end: bool = False,
    ) -> VersionMeta:
        """Buffer a delta: the state through `tick` (its end is `timestamp_ms`). Later ticks only."""
        if self.chain.id is not None and (generation != self.chain.id.generation or tick <= self.chain.through):
            raise ValueError(
                f"version {generation}.{tick} does not follow {self.chain.id}, through {self.chain.through}"
            )
        meta = self._meta(Kind.DELTA, generation, tick, positions, items_offset, control_offset, closed_wall_ms, end)
        return self._append(meta, encode_tensors(_finite(tensors, generation, tick)), timestamp_ms)

    def open_generation(
        self,
        generation: int,
        tick: int,
        snapshot: str,
        tensors: Mapping[str, NDArray[Any]] | None = None,
        *,
        positions: Mapping[int, int],
        items_offset: int,
        control_offset: int,
        timestamp_ms: int,
        closed_wall_ms: int = 0,
        end: bool = False,
    ) -> VersionMeta:
        """Buffer the opening of a generation at `tick`: the state is the snapshot, then `tensors` over it.

        A rollback's tick may lie in the past; the generation may not. Sections that the snapshot lacks (counters,
        items) stay as they are: they belong to no generation.
        """
        if self.chain.id is not None and generation <= self.chain.id.generation:
            raise ValueError(f"generation {generation} does not follow {self.chain.id.generation}")
        meta = msgspec.structs.replace(
            self._meta(Kind.GENERATION, generation, tick, positions, items_offset, control_offset, closed_wall_ms, end),
            snapshot=snapshot,
            snapshot_digest=self._snapshots.meta(snapshot).content_digest,
        )
        value = encode_tensors(_finite(tensors or {}, generation, tick))
        meta = self._append(meta, value, timestamp_ms)
        self._opened = Mark(
            generation=generation,
            tick=tick,
            digest=meta.digest,
            offset=self._next + len(self._pending) - meta.parts,
            through=self.chain.through,
        )
        return meta

    def progress(
        self,
        tick: int,
        *,
        positions: Mapping[int, int],
        items_offset: int,
        control_offset: int,
        timestamp_ms: int,
        closed_wall_ms: int = 0,
        end: bool = False,
    ) -> VersionMeta:
        """Buffer the note that nothing changed through `tick`: readers wait for no version up to it."""
        if tick < self.chain.through or (tick == self.chain.through and not end):
            raise ValueError(f"progress through {tick} does not follow {self.chain.through}")
        generation = self.chain.id.generation if self.chain.id is not None else -1
        meta = self._meta(Kind.PROGRESS, generation, tick, positions, items_offset, control_offset, closed_wall_ms, end)
        return self._append(meta, b"", timestamp_ms)

    def flush(self) -> None:
        """Commit. Raises RetryableError when the disk refuses: the buffered versions wait for the next flush."""
        if self._pending:
            self._commit()
        if self._opened is not None:  # a convenience of readers: a crash before it costs them an older start
            self._aliases.set("generation", self._opened)
            self._opened = None

    def _commit(self) -> None:
        # A full buffer may have been flushed by the writer already: then the log ends with one of ours.
        early = self._log.end_offset(TOPIC, 0) - self._next
        last = self._log.last_record(TOPIC, 0) if early else None
        if early and (
            last is None or early > len(self._pending) or decode_meta(last.meta).digest != self._pending[early - 1]
        ):
            raise CorruptStateError(
                f"versions: ends at offset {self._next + early}, this publisher stands at {self._next}; another "
                f"trainer writes to this run: stop it, then start this one again"
            )
        self._writer.flush()
        self._next += len(self._pending)
        self._pending.clear()

    @property
    def pending(self) -> bool:
        """True while something is buffered and not yet committed."""
        return bool(self._pending)

    def close(self) -> None:
        """Let go of the lock. What was not flushed is not committed: it goes with the log's buffers."""
        if not self._pending:
            self._writer.close()
        self._lock.close()

    def _meta(
        self,
        kind: Kind,
        generation: int,
        tick: int,
        positions: Mapping[int, int],
        items_offset: int,
        control_offset: int,
        closed_wall_ms: int,
        end: bool,
    ) -> VersionMeta:
        return VersionMeta(
            generation=generation,
            tick=tick,
            kind=kind,
            positions=dict(sorted(positions.items())),
            items_offset=items_offset,
            control_offset=control_offset,
            predecessor=self.chain.digest,
            digest="",
            end=end,
            closed_wall_ms=closed_wall_ms,
            published_wall_ms=time.time_ns() // 1_000_000,
            fingerprint=self._fingerprint,
            configuration=self._configuration,
        )

    def _append(self, meta: VersionMeta, value: bytes, timestamp_ms: int) -> VersionMeta:
        parts = max(1, -(-len(value) // self._part_bytes))
        meta = msgspec.structs.replace(meta, digest=digest_of(meta, value), parts=parts)
        view = memoryview(value)
        for part in range(parts):
            self._writer.append(
                0,
                view[part * self._part_bytes : (part + 1) * self._part_bytes],
                timestamp_ms=timestamp_ms,
                meta=encode_meta(msgspec.structs.replace(meta, part=part) if part else meta),
            )
            self._pending.append(meta.digest)
        self.chain.advance(meta)
        self.head = meta
        return meta


def last_whole(log: EventLog) -> VersionMeta | None:
    """The newest whole version or progress note in the log, skipping an incomplete one at its end."""
    record = log.last_record(TOPIC, 0)
    while record is not None:
        meta = decode_meta(record.meta)
        if meta.part == meta.parts - 1:
            return meta
        before = record.offset - meta.part - 1
        if before < log.start_offset(TOPIC, 0):
            return None
        record = log.read(TOPIC, 0, before, 1)[0]
    return None


def _finite(tensors: Mapping[str, NDArray[Any]], generation: int, tick: int) -> Mapping[str, NDArray[Any]]:
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise CorruptStateError(
                f"version {generation}.{tick}: {name} holds NaN or Inf; nothing was published. Roll back to the last "
                f"good version, or lower the learning rate of its slot"
            )
    return tensors


def _lock(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab")  # noqa: SIM115 - held for the publisher's life
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise RetryableError(f"{path}: another process publishes to this run; stop it first", after_s=5.0) from error
    os.set_inheritable(file.fileno(), False)
    return file
