"""The archive's files: one Parquet file per (partition, hour), by close tick, and how the retrain reads them.

    ARCHIVE/day=2019-11-09/hour=07/part-0.parquet     columns of `examples` and `close_tick`, in input order
    ARCHIVE/day=2019-11-09/_COMPLETE.json             every partition has closed the whole day
    ARCHIVE/progress/0.json                           how far partition 0 is archived

A file appears whole or not at all: temporary name, fsync, rename, fsync of the folder. Its footer holds the range of
`examples` offsets it was made from and a digest of its columns, checked on every read.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import CorruptStateError, RetryableError
from infra.ticks import DAY_S
from stream.columns import I64
from stream.examples import EMPTY, EXAMPLE_CODEC, ExampleColumns

NOTHING_ARCHIVED = -(2**62)
COMPLETE = "_COMPLETE.json"
_HOUR_MS = 3_600_000
CLOSE_TICK = pa.field("close_tick", pa.int64(), nullable=False)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a partition is archived."""

    partition: int
    partitions: int
    tick_ms: int
    hours: int  # per file
    closed_through: int  # every tick up to this one is in the files


@dataclass(frozen=True, slots=True)
class Hours:
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
    first = read_progress(archive, 0)
    if first is None:
        return NOTHING_ARCHIVED
    others = [read_progress(archive, p) for p in range(1, first.partitions)]
    return min([first.closed_through, *(NOTHING_ARCHIVED if o is None else o.closed_through for o in others)])


def read_ticks(archive: Path, first_tick: int, last_tick: int) -> tuple[ExampleColumns, I64]:
    """Examples that close in first_tick … last_tick and their close ticks (n,), by (tick, shown, impression, position).

    The order within a tick is that of `ExampleTicks`. Raises ValueError where the archive does not reach `last_tick`
    yet, CorruptStateError where a file contradicts its checksums.
    """
    progress = read_progress(archive, 0)
    if progress is None or complete_through(archive) < last_tick:
        raise ValueError(f"{archive}: ends before tick {last_tick}")
    clock = Hours(progress.tick_ms, progress.hours)
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


def _hour_folders(archive: Path, first: Path, clock: Hours, last_tick: int) -> list[Path]:
    """Folders of the hours from `first` to that of last_tick, in order; names sort by time."""
    last = clock.folder(archive, clock.hour(last_tick))
    return [folder for folder in sorted(archive.glob("day=*/hour=*")) if first <= folder <= last]


def day_name(day: int) -> str:
    return f"day={datetime.fromtimestamp(day * DAY_S, UTC):%Y-%m-%d}"


def read_progress(archive: Path, partition: int) -> Progress | None:
    try:
        return msgspec.json.decode((archive / "progress" / f"{partition}.json").read_bytes(), type=Progress)
    except FileNotFoundError:
        return None


def write_parquet(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", write_page_checksum=True)
    write_file(path, sink.getvalue())


def _read_parquet(path: Path) -> tuple[ExampleColumns, I64]:
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        batch = table.combine_chunks().to_batches()[0]
        ticks = np.array(batch.column(batch.schema.get_field_index("close_tick")))
        columns = EXAMPLE_CODEC.columns(batch)
        if table.schema.metadata[b"digest"].decode() != digest_of(columns, ticks):
            raise ValueError("the columns are not those of its digest")
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptStateError(
            f"{path}: {error}; stop the joiner, delete the archive folder and the reader `archive` of `examples`: "
            "it is written again as far as `examples` reaches"
        ) from error
    return ExampleColumns(**columns), ticks


def digest_of(columns: dict[str, Any], ticks: I64) -> str:
    whole = blake2b(EXAMPLE_CODEC.encode(columns), digest_size=16)
    whole.update(ticks.tobytes())
    return whole.hexdigest()


def write_file(path: Path, data: Any) -> None:
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
