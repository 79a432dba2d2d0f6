"""The archive's files: one Parquet file per (partition, hour), by close tick, and how the retrain reads them.

    ARCHIVE/day=2019-11-09/hour=07/part-0.parquet     columns of `examples` and `close_tick`, in input order
    ARCHIVE/day=2019-11-09/_COMPLETE.json             every partition has closed the whole day; its files, by digest
    ARCHIVE/progress/0.json                           how far partition 0 is archived; its files of days not complete

A file appears whole or not at all: temporary name, fsync, rename, fsync of the folder. Its footer holds the range of
`examples` offsets it was made from and a digest of its columns, checked on every read. Whoever reads ticks compares the
files that are there with those that the day's marker, or the progress, lists: one that is missing, one too many or one
that was changed is CorruptStateError. `stream.rebuild` makes the archive again.

A marker or a progress of an older release lists no files: its day is read as it is there.
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

from infra import checked, temporary
from infra.errors import CorruptStateError, RetryableError
from infra.paramstore.files import durable_folder, fsync_folder
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
    next_offset: int | None = (
        None  # in `examples`: where to read on. None: written by an older release, as with `files`
    )
    files: dict[str, str] | None = None  # path in the archive -> digest in its footer; of the days without a marker
    days: tuple[str, ...] = ()  # folders of this partition's other days


class DayMarker(msgspec.Struct, frozen=True, kw_only=True):
    """What `_COMPLETE.json` says."""

    closed_through: int  # the day's last tick
    files: dict[str, str] | None = None  # of the day, as in `Progress`


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
    for path, digest in _listed(archive, clock, first_tick, last_tick).items():
        examples, close = _read_parquet(path, digest)
        rows = np.flatnonzero((close >= first_tick) & (close <= last_tick))
        parts.append(examples if len(rows) == len(close) else examples.take(rows))
        ticks.append(close[rows])
    examples, close = ExampleColumns.concat(parts), np.concatenate(ticks)
    order = np.lexsort((examples.row, examples.offset, examples.impression, examples.shown_ms, close))
    return examples.take(order), close[order]


def _listed(archive: Path, clock: Hours, first_tick: int, last_tick: int) -> dict[Path, str | None]:
    """The files that hold these ticks, in order, with the digest that each must have; None where that is not known.

    Raises CorruptStateError where files are missing, or there are others. What is still written is not judged: the
    hour of a replay's end, which a log that goes on writes anew.
    """
    first, last = (clock.folder(archive, clock.hour(tick)) for tick in (first_tick, last_tick))
    found = {path for path in archive.glob("day=*/hour=*/[!.]*") if first <= path.parent <= last}
    progress = list(progress_of_all(archive).values())  # before the markers: what a marker takes over leaves it later
    out: dict[Path, str | None] = {}
    marked = {archive / name for part in progress for name in part.days}
    for day in sorted({path.parent.parent for path in found} | set(archive.glob("day=*")) | marked):
        if not first.parent <= day <= last.parent:
            continue
        marker = read_marker(day)
        if marker is None and day in marked:
            raise CorruptStateError(f"{day / COMPLETE} is missing: {mend(archive)}")
        listed = _of_day(progress, day) if marker is None else marker.files
        there = {path for path in found if path.parent.parent == day}
        if listed is None:
            out |= dict.fromkeys(sorted(there, key=_by_hour_and_part))
            continue
        wanted = {archive / name: digest for name, digest in listed.items() if first <= (archive / name).parent <= last}
        open_now = {clock.folder(archive, clock.hour(p.closed_through + 1)) / part_name(p.partition) for p in progress}
        _compare(archive, set(wanted), there, open_now)
        chosen = sorted(set(wanted) | (there & open_now), key=_by_hour_and_part)
        out |= {path: None if path in open_now else wanted.get(path) for path in chosen}
    return out


def _compare(archive: Path, wanted: set[Path], there: set[Path], open_now: set[Path]) -> None:
    missing, extra = sorted(wanted - there), sorted(there - wanted - open_now)
    if missing or extra:
        what = [f"{path} is missing" for path in missing[:2]] + [f"{path} does not belong there" for path in extra[:2]]
        more = f" (and {len(missing) + len(extra) - len(what)} more)" if len(missing) + len(extra) > len(what) else ""
        raise CorruptStateError(f"{'; '.join(what)}{more}: {mend(archive)}")


def _of_day(progress: list[Progress], day: Path) -> dict[str, str] | None:
    """What the partitions' progress lists for a day; None where an older release wrote one of them."""
    listed: dict[str, str] = {}
    for part in progress:
        if part.files is None:
            return None
        listed |= {name: digest for name, digest in part.files.items() if name.startswith(f"{day.name}/")}
    return listed


def _by_hour_and_part(path: Path) -> tuple[Path, int, str]:
    return path.parent, int("".join(filter(str.isdigit, path.name)) or 0), path.name


def part_name(partition: int) -> str:
    return f"part-{partition}.parquet"


def mend(archive: Path) -> str:
    """What to do about an archive that is not as it was written."""
    return f"stop the run, then `ouzel archive --run {archive.parent} --again` makes the archive from `examples` again"


def day_name(day: int) -> str:
    return f"day={datetime.fromtimestamp(day * DAY_S, UTC):%Y-%m-%d}"


def last_tick_of(day: str, clock: Hours) -> int:
    """The last tick that begins in a day, named as its folder is."""
    start = datetime.fromisoformat(f"{day.removeprefix('day=')}T00:00:00+00:00")
    return -(-int(start.timestamp() + DAY_S) * 1000 // clock.tick_ms) - 1


def read_progress(archive: Path, partition: int) -> Progress | None:
    try:
        return checked.from_json(archive / "progress" / f"{partition}.json", Progress, mend(archive))
    except FileNotFoundError:
        return None


def progress_of_all(archive: Path) -> dict[int, Progress]:
    """The progress of every partition that has one."""
    first = read_progress(archive, 0)
    found = {p: read_progress(archive, p) for p in range(first.partitions if first is not None else 0)}
    return {p: progress for p, progress in found.items() if progress is not None}


def read_marker(day: Path) -> DayMarker | None:
    """What the marker of a day's folder says; None where the day is not complete."""
    try:
        return checked.from_json(day / COMPLETE, DayMarker, mend(day.parent))
    except FileNotFoundError:
        return None


def sweep(archive: Path) -> None:
    """Remove what killed writers of the archive left half written."""
    temporary.sweep([*archive.glob("day=*/hour=*"), *archive.glob("day=*"), archive / "progress"])


def write_parquet(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", write_page_checksum=True)
    write_file(path, sink.getvalue())


def digest_in(path: Path) -> str:
    """The digest that the footer of an hour's file names. Raises CorruptStateError."""
    try:
        return str(pq.read_metadata(path).metadata[b"digest"].decode())
    except (pa.ArrowException, OSError, LookupError, TypeError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"{path}: {error}; {mend(path.parents[2])}") from error


def _read_parquet(path: Path, wanted: str | None) -> tuple[ExampleColumns, I64]:
    """The examples of a file and their close ticks; `wanted`: the digest that it must have, where that is known."""
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        batch = table.combine_chunks().to_batches()[0]
        ticks = np.array(batch.column(batch.schema.get_field_index("close_tick")))
        columns = EXAMPLE_CODEC.columns(batch)
        digest = digest_of(columns, ticks)
        if table.schema.metadata[b"digest"].decode() != digest or (wanted or digest) != digest:
            raise ValueError("its columns are not those that were written")
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptStateError(f"{path}: {error}; {mend(path.parents[2])}") from error
    return ExampleColumns(**columns), ticks


def digest_of(columns: dict[str, Any], ticks: I64) -> str:
    whole = blake2b(EXAMPLE_CODEC.encode(columns), digest_size=16)
    whole.update(ticks.tobytes())
    return whole.hexdigest()


def write_file(path: Path, data: Any) -> None:
    """Temporary name, fsync, rename, fsync of the folder. Raises RetryableError where the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        durable_folder(path.parent)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RetryableError(
            f"{path}: {error.strerror}; make room, the archive goes on by itself", after_s=1.0
        ) from error
