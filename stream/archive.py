"""The archive: a reader of `examples` that keeps them as one Parquet file per (partition, hour), by close tick.

    ARCHIVE/day=2019-11-09/hour=07/part-0.parquet     columns of `examples` and `close_tick`, in input order
    ARCHIVE/day=2019-11-09/_COMPLETE.json             every partition has closed the whole day
    ARCHIVE/progress/0.json                           how far partition 0 is archived

A file is written when its hour is complete: temporary name, fsync, rename, fsync of the folder; then the progress, then
the reader's position is committed. Whatever a crash interrupts is read and written again, equal byte for byte. At a
replay's end the unfinished hour is written as well, and not committed: if the log goes on, the whole hour replaces it.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import CorruptStateError, OuzelError, RetryableError
from infra.eventlog import EventLog, Record
from infra.ticks import DAY_S, Timeline
from stream.columns import I64
from stream.examples import (
    EMPTY,
    EXAMPLE_CODEC,
    ExampleColumns,
    decode_example_meta,
)
from stream.retry import Retrier

NOTHING_ARCHIVED = -(2**62)
COMPLETE = "_COMPLETE.json"
_HOUR_MS = 3_600_000
_CLOSE_TICK = pa.field("close_tick", pa.int64(), nullable=False)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a partition is archived."""

    partition: int
    partitions: int
    tick_ms: int
    hours: int  # per file
    closed_through: int  # every tick up to this one is in the files


@dataclass(slots=True)
class _Part:
    """The hour of a partition that is being collected."""

    progress: int
    first_offset: int  # of the hour's first record, in `examples`
    hour: int | None = None
    seq: int | None = None
    ticks: list[int] = field(default_factory=list)  # of each batch
    batches: list[pa.RecordBatch] = field(default_factory=list)


class Archive:
    """Keeps the archive of some partitions up to date. For one thread: call `step` again and again."""

    def __init__(
        self,
        log: EventLog,
        folder: Path,
        timeline: Timeline,
        *,
        hours: int = 1,
        partitions: Sequence[int] | None = None,
        name: str = "archive",
        stopping: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._until_done = Retrier(stopping, sleep)
        self._log, self._folder = log, folder
        self._clock = _Hours(timeline.tick_ms, hours)
        self._all = log.partitions("examples")
        numbers = list(range(self._all) if partitions is None else partitions)
        self._reader = log.reader("examples", name, numbers)
        (folder / "progress").mkdir(parents=True, exist_ok=True)
        self._parts = {}
        for p in numbers:
            done = _read_progress(folder, p)
            closed = NOTHING_ARCHIVED if done is None else done.closed_through
            self._parts[p] = _Part(progress=closed, first_offset=self._reader.position(p))
        self._day = self._clock.day(complete_through(folder) + 1)

    def step(self, max_records: int = 512, timeout_s: float = 0.0) -> int:
        """Read what is there and write the hours that it completes; the number of records read.

        Raises CorruptStateError on a gap, OSError where the folder cannot be written.
        """
        records = self._reader.poll(max_records, timeout_s)
        for p, record in records:
            self._take(p, self._parts[p], record)
        return len(records)

    @property
    def caught_up(self) -> bool:
        """Whether everything in `examples` was read."""
        return all(self._reader.position(p) == self._log.end_offset("examples", p) for p in self._parts)

    @property
    def closed_through(self) -> int:
        """Every tick up to this one is on disk, over this archive's partitions."""
        return min(part.progress for part in self._parts.values())

    def close(self) -> None:
        """Let go of the reader."""
        self._reader.close()

    def _take(self, p: int, part: _Part, record: Record) -> None:
        meta = decode_example_meta(record.meta)
        if part.seq is not None and meta.seq <= part.seq:
            return
        if part.seq is not None and meta.seq != part.seq + 1:
            raise CorruptStateError(
                f"examples/{p}, offset {record.offset}: record {meta.seq} follows {part.seq}; records are missing. "
                "`examples` is derived: stop the run, delete its folder in the log, and start the joiner again"
            )
        part.seq = meta.seq
        hour = self._clock.hour(meta.tick)
        if hour < self._clock.hour(part.progress + 1):
            return
        if part.hour is not None and hour > part.hour:
            self._finish(p, part, self._clock.first_tick(hour) - 1, record.offset)
        if part.hour is None:
            part.hour, part.first_offset = hour, record.offset
        if not meta.is_marker:
            part.batches.append(EXAMPLE_CODEC.decode_batch(bytes(record.value)))
            part.ticks.append(meta.tick)
        if self._clock.hour(meta.closed_through + 1) > hour:
            self._finish(p, part, meta.closed_through, record.offset + 1)
        elif meta.end:
            self._write(p, part, record.offset + 1)
            self._note(p, part, meta.closed_through)

    def _finish(self, p: int, part: _Part, closed_through: int, next_offset: int) -> None:
        """The hour is complete: write it, note it, and only then let the log forget it."""
        self._write(p, part, next_offset)
        self._note(p, part, closed_through)
        self._reader.commit({p: next_offset})
        part.hour, part.ticks, part.batches = None, [], []

    def _write(self, p: int, part: _Part, next_offset: int) -> None:
        if part.hour is None or not part.batches:
            return
        table = pa.Table.from_batches(part.batches).combine_chunks()
        ticks = np.repeat(np.array(part.ticks, dtype=np.int64), [batch.num_rows for batch in part.batches])
        examples = EXAMPLE_CODEC.columns(table.to_batches()[0])
        footer = {
            "partition": str(p),
            "first_offset": str(part.first_offset),
            "next_offset": str(next_offset),
            "digest": _digest(examples, ticks),
        }
        table = table.append_column(_CLOSE_TICK, pa.array(ticks)).replace_schema_metadata(footer)
        path = self._clock.folder(self._folder, part.hour) / f"part-{p}.parquet"
        self._until_done(lambda: _write_parquet(path, table))

    def _note(self, p: int, part: _Part, closed_through: int) -> None:
        part.progress = closed_through
        progress = Progress(
            partition=p,
            partitions=self._all,
            tick_ms=self._clock.tick_ms,
            hours=self._clock.hours,
            closed_through=closed_through,
        )
        path, data = self._folder / "progress" / f"{p}.json", msgspec.json.encode(progress)
        self._until_done(lambda: _write_file(path, data))
        complete = complete_through(self._folder)
        day = self._clock.day(complete + 1)
        if day > self._day:
            self._day = day
            for folder in sorted(self._folder.glob("day=*")):
                if folder.name < _day_name(day) and not (folder / COMPLETE).exists():
                    path, data = folder / COMPLETE, msgspec.json.encode({"closed_through": complete})
                    self._until_done(lambda path=path, data=data: _write_file(path, data))  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class _Hours:
    """Ticks in files: an hour begins with the first tick that starts in it."""

    tick_ms: int
    hours: int

    @property
    def length_ms(self) -> int:
        return self.hours * _HOUR_MS

    def hour(self, tick: int) -> int:
        return tick * self.tick_ms // self.length_ms

    def first_tick(self, hour: int) -> int:
        return -(-hour * self.length_ms // self.tick_ms)

    def day(self, tick: int) -> int:
        return tick * self.tick_ms // (DAY_S * 1000)

    def folder(self, archive: Path, hour: int) -> Path:
        start = datetime.fromtimestamp(hour * self.length_ms / 1000, UTC)
        return archive / f"day={start:%Y-%m-%d}" / f"hour={start:%H}"


def complete_through(archive: Path) -> int:
    """Every tick up to this one is in the archive, over all partitions; NOTHING_ARCHIVED before the first hour."""
    first = _read_progress(archive, 0)
    if first is None:
        return NOTHING_ARCHIVED
    others = [_read_progress(archive, p) for p in range(1, first.partitions)]
    return min([first.closed_through, *(NOTHING_ARCHIVED if o is None else o.closed_through for o in others)])


def read_ticks(archive: Path, first_tick: int, last_tick: int) -> tuple[ExampleColumns, I64]:
    """Examples that close in first_tick … last_tick and their close ticks (n,), by (tick, shown, impression, position).

    The order within a tick is that of `ExampleTicks`. Raises ValueError where the archive does not reach `last_tick`
    yet, CorruptStateError where a file contradicts its checksums.
    """
    progress = _read_progress(archive, 0)
    if progress is None or complete_through(archive) < last_tick:
        raise ValueError(f"{archive}: ends before tick {last_tick}")
    clock = _Hours(progress.tick_ms, progress.hours)
    parts, ticks = [EMPTY], [np.empty(0, dtype=np.int64)]
    for folder in _hour_folders(archive, clock.folder(archive, clock.hour(first_tick)), clock, last_tick):
        for p in range(progress.partitions):
            path = folder / f"part-{p}.parquet"
            if path.is_file():
                examples, close = _read_parquet(path)
                rows = np.flatnonzero((close >= first_tick) & (close <= last_tick))
                parts.append(examples if len(rows) == len(close) else examples.take(rows))
                ticks.append(close[rows])
    examples, close = ExampleColumns.concat(parts), np.concatenate(ticks)
    order = np.lexsort((examples.row, examples.offset, examples.impression, examples.shown_ms, close))
    return examples.take(order), close[order]


def _hour_folders(archive: Path, first: Path, clock: _Hours, last_tick: int) -> list[Path]:
    """Folders of the hours from `first` to that of last_tick, in order; names sort by time."""
    last = clock.folder(archive, clock.hour(last_tick))
    return [folder for folder in sorted(archive.glob("day=*/hour=*")) if first <= folder <= last]


def _day_name(day: int) -> str:
    return f"day={datetime.fromtimestamp(day * DAY_S, UTC):%Y-%m-%d}"


def _read_progress(archive: Path, partition: int) -> Progress | None:
    try:
        return msgspec.json.decode((archive / "progress" / f"{partition}.json").read_bytes(), type=Progress)
    except FileNotFoundError:
        return None


def _write_parquet(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", write_page_checksum=True)
    _write_file(path, sink.getvalue())


def _read_parquet(path: Path) -> tuple[ExampleColumns, I64]:
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        batch = table.combine_chunks().to_batches()[0]
        ticks = np.array(batch.column(batch.schema.get_field_index("close_tick")))
        columns = EXAMPLE_CODEC.columns(batch)
        if table.schema.metadata[b"digest"].decode() != _digest(columns, ticks):
            raise ValueError("the columns are not those of its digest")
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptStateError(
            f"{path}: {error}; stop the joiner, delete the archive folder and the reader `archive` of `examples`: "
            "it is written again as far as `examples` reaches"
        ) from error
    return ExampleColumns(**columns), ticks


def _digest(columns: dict[str, Any], ticks: I64) -> str:
    whole = blake2b(EXAMPLE_CODEC.encode(columns), digest_size=16)
    whole.update(ticks.tobytes())
    return whole.hexdigest()


def _write_file(path: Path, data: Any) -> None:
    """Temporary name, fsync, rename, fsync of the folder. Raises RetryableError where the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RetryableError(
            f"{path}: {error.strerror}; make room, the archive goes on by itself", after_s=1.0
        ) from error


class ArchiveThread:
    """An archive beside the joiner: a thread with a log of its own, so that its fsyncs hold nobody up."""

    def __init__(self, open_it: Callable[[], Archive]) -> None:
        self._open = open_it
        self._stop = threading.Event()
        self._drain = False
        self._error: BaseException | None = None
        self._archive: Archive | None = None
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def closed_through(self) -> int:
        """Every tick up to this one is on disk. Raises what ended the thread."""
        if self._error is not None:
            raise self._error
        return NOTHING_ARCHIVED if self._archive is None else self._archive.closed_through

    def finish(self, *, all_of_it: bool) -> None:
        """End the thread, with all of `examples` read or as it stands. Raises what ended it before."""
        self._drain = all_of_it
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._archive = archive = self._open()
            while not self._stop.is_set() or (self._drain and not archive.caught_up):
                archive.step(timeout_s=0.02)
            archive.close()
        except OuzelError as error:
            self._error = error
