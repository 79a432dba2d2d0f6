"""Keeps the archive: a reader of `examples`, not a part of the joiner.

An hour's file is written when the hour is complete; then the progress is noted, which lists it, then the reader's
position committed. A day that every partition has closed gets a marker that lists its files, and leaves the progress.
Whatever a crash interrupts is read and written again, equal byte for byte. At a replay's end the unfinished hour is
written as well, and not committed: if the log goes on, the whole hour replaces it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra import checked
from infra.errors import CorruptStateError, OuzelError
from infra.eventlog import EventLog, Record
from infra.process import Process
from infra.ticks import Timeline
from stream.archive import (
    CLOSE_TICK,
    COMPLETE,
    NOTHING_ARCHIVED,
    DayMarker,
    Hours,
    Progress,
    complete_through,
    day_name,
    digest_in,
    digest_of,
    last_tick_of,
    mend,
    part_name,
    progress_of_all,
    read_marker,
    read_progress,
    sweep,
    write_file,
    write_parquet,
)
from stream.examples import EXAMPLE_CODEC, decode_example_meta, follows
from stream.retry import Retrier

AGAIN = "archive-again"  # the reader that makes an archive again: `stream.rebuild`


@dataclass(slots=True)
class _Part:
    """The hour of a partition that is being collected."""

    progress: int
    first_offset: int  # of the hour's first record, in `examples`
    hour: int | None = None
    seq: int | None = None
    ticks: list[int] = field(default_factory=list)  # of each batch
    batches: list[pa.RecordBatch] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # as in `Progress`
    days: set[str] = field(default_factory=set)


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
        self._clock = Hours(timeline.tick_ms, hours)
        self._all = log.partitions("examples")
        numbers = list(range(self._all) if partitions is None else partitions)
        self._reader = log.reader("examples", name, numbers)
        sweep(folder)
        (folder / "progress").mkdir(parents=True, exist_ok=True)
        self._parts = {p: self._part(p) for p in numbers}
        self._day = NOTHING_ARCHIVED  # days before it have their marker; the first hour looks at all

    def _part(self, p: int) -> _Part:
        """Where a partition stands. Raises CorruptStateError where the log was read further than the archive knows."""
        done, position = read_progress(self._folder, p), self._reader.position(p)
        known = self._log.start_offset("examples", p) if done is None else done.next_offset
        if known is not None and position > known:
            raise CorruptStateError(
                f"{self._folder}/progress/{p}.json: {'missing' if done is None else 'old'}, `examples` was archived up "
                f"to offset {position}: {mend(self._folder)}"
            )
        files = {} if done is None else self._adopt(p) if done.files is None else dict(done.files)
        part = _Part(progress=NOTHING_ARCHIVED, first_offset=position, files=files)
        if done is not None:
            part.progress, part.days = done.closed_through, set(done.days)
        return part

    def _adopt(self, p: int) -> dict[str, str]:
        """The files of days without a marker, where an older release wrote no list of them."""
        paths = self._folder.glob(f"day=*/hour=*/{part_name(p)}")
        return {
            str(path.relative_to(self._folder)): digest_in(path)
            for path in sorted(paths)
            if read_marker(path.parents[1]) is None
        }

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
    def ended(self) -> bool:
        """Whether everything in `examples` was read, and ends a replay in every partition."""
        last = [self._log.last_record("examples", p) for p in self._parts]
        return self.caught_up and all(r is not None and decode_example_meta(r.meta).end for r in last)

    @property
    def closed_through(self) -> int:
        """Every tick up to this one is on disk, over this archive's partitions."""
        return min(part.progress for part in self._parts.values())

    def close(self) -> None:
        """Let go of the reader."""
        self._reader.close()

    def _take(self, p: int, part: _Part, record: Record) -> None:
        meta = decode_example_meta(record.meta)
        if not follows(meta, part.seq, record.offset):
            return
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
            self._note(p, part, meta.closed_through, part.first_offset)

    def _finish(self, p: int, part: _Part, closed_through: int, next_offset: int) -> None:
        """The hour is complete: write it, note it, and only then let the log forget it."""
        self._write(p, part, next_offset)
        self._note(p, part, closed_through, next_offset)
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
            "digest": digest_of(examples, ticks),
        }
        table = table.append_column(CLOSE_TICK, pa.array(ticks)).replace_schema_metadata(footer)
        path = self._clock.folder(self._folder, part.hour) / part_name(p)
        self._until_done(lambda: write_parquet(path, table))
        part.files[str(path.relative_to(self._folder))] = footer["digest"]

    def _note(self, p: int, part: _Part, closed_through: int, next_offset: int) -> None:
        part.progress = closed_through
        marked = [name for name in part.files if read_marker(self._folder / name.partition("/")[0]) is not None]
        for name in marked:
            del part.files[name]
            part.days.add(name.partition("/")[0])
        progress = Progress(
            partition=p,
            partitions=self._all,
            tick_ms=self._clock.tick_ms,
            hours=self._clock.hours,
            closed_through=closed_through,
            next_offset=next_offset,
            files=dict(sorted(part.files.items())),
            days=tuple(sorted(part.days)),
        )
        path, data = self._folder / "progress" / f"{p}.json", checked.to_json(progress)
        self._until_done(lambda: write_file(path, data))
        complete = complete_through(self._folder)
        day = self._clock.day(complete + 1)
        if complete > NOTHING_ARCHIVED and day > self._day:
            self._day = day
            for folder in sorted(self._folder.glob("day=*")):
                if folder.name < day_name(day) and not (folder / COMPLETE).exists():
                    self._mark(folder)

    def _mark(self, day: Path) -> None:
        files: dict[str, str] = {}
        for progress in progress_of_all(self._folder).values():
            files |= {
                name: digest for name, digest in (progress.files or {}).items() if name.startswith(f"{day.name}/")
            }
        data = checked.to_json(
            DayMarker(closed_through=last_tick_of(day.name, self._clock), files=dict(sorted(files.items())))
        )
        self._until_done(lambda: write_file(day / COMPLETE, data))


def open_archive(process: Process, log: EventLog) -> Archive:
    """The archive of a run, over a log that is its own."""
    config = process.config
    return Archive(
        log,
        process.folder.archive,
        config.time.build(),
        hours=config.join.archive_hours,
        stopping=lambda: process.stopping,
    )


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
