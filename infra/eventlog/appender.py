"""Makes a batch of records of one partition durable, or leaves the partition as it was.

Under the partition's lock, per segment touched:
 1. where the durable end moved or a dead writer left bytes behind, the tail is recovered first;
 2. the frames are written behind the tail (or into a new segment);
 3. the segment is synced, and the folder where the segment is new;
 4. the high-water mark is published: only now does anyone see the records.
A failure in 2 or 3 cuts the segment back. Where even that fails the lock is kept: no other writer may build on what
lies there, nor publish it, until this one has cut it back or its process has ended.
"""

from infra.errors import RetryableError
from infra.eventlog import frames
from infra.eventlog.base import Record
from infra.eventlog.filesystem import write_all
from infra.eventlog.frames import SEGMENT_HEADER_BYTES
from infra.eventlog.marks import Tail
from infra.eventlog.partition import Partition


class Appender:
    """The writing side of one partition; holds its newest segment open."""

    def __init__(self, partition: Partition, segment_bytes: int) -> None:
        self._partition = partition
        self._segment_bytes = segment_bytes
        self._fd = -1
        self._base = -1
        self._tail: Tail | None = None  # what this appender published last
        self._uncut: Tail | None = None  # a failed write is still to be cut back to here

    def append(self, records: list[Record]) -> None:
        """Make `records` durable and remove them from the list, segment by segment.

        Raises RetryableError; what is then left in the list is not in the log.
        """
        try:
            if self._uncut is None:
                self._partition.lock()
            try:
                self._append_locked(records)
            finally:
                if self._uncut is None:
                    self._partition.unlock()
        except OSError as error:
            raise RetryableError(
                f"{self._partition.path}: {error.strerror}; nothing was lost, {len(records)} records stay buffered: "
                "make room or mend the disk, then flush again",
                after_s=1.0,
            ) from error

    def _append_locked(self, records: list[Record]) -> None:
        if self._uncut is not None:
            self._cut_back(self._uncut)
        tail = self._current_tail()
        while records:
            rolls = tail.end == 0 or self._is_full(tail, records[0])
            start = Tail(tail.next_offset, 0, 0, tail.next_offset) if rolls else tail
            try:
                tail, count = self._write(start, records)
            except OSError:
                self._tail = None
                self._cut_back(start)
                raise
            self._partition.highwater.publish(tail)
            self._tail = tail
            del records[:count]

    def _current_tail(self) -> Tail:
        """The tail that the segments bear out; cheap where nobody else wrote."""
        tail = self._tail
        fs, highwater = self._partition.fs, self._partition.highwater
        if tail is None or tail != highwater.tail() or self._base != tail.base or fs.size(self._fd) != tail.end:
            return self._partition.recover()
        if fs.exists(self._partition.segment_path(tail.next_offset)):
            return self._partition.recover()  # a writer died while it made the next segment
        return tail

    def _is_full(self, tail: Tail, record: Record) -> bool:
        return tail.end > SEGMENT_HEADER_BYTES and tail.end + _size(record) > self._segment_bytes

    def _write(self, start: Tail, records: list[Record]) -> tuple[Tail, int]:
        """Write and sync as many records as the segment takes, at least one; the new tail and how many."""
        chunk = [] if start.end else [frames.encode_segment_header(start.base, self._partition.before(start.base))]
        end = start.end + sum(map(len, chunk))
        last, offset = start.last, start.next_offset
        for record in records:
            if self._is_full(Tail(start.base, end, last, offset), record):
                break
            frame = frames.encode_frame(offset, record, offset - start.next_offset)
            last = end
            end += len(frame)
            offset += 1
            chunk.append(frame)
        fs = self._partition.fs
        self._open(start.base)
        write_all(fs, self._fd, b"".join(chunk), start.end)
        fs.sync(self._fd)
        if start.end == 0:
            fs.sync_folder(self._partition.path)
        return Tail(start.base, end, last, offset), offset - start.next_offset

    def _open(self, base: int) -> None:
        if base != self._base:
            self.close_segment()
            self._fd = self._partition.fs.open(self._partition.segment_path(base), write=True, create=True)
            self._base = base

    def _cut_back(self, start: Tail) -> None:
        """Make the segment end at `start` again; a segment that began with the failed write disappears."""
        self._uncut = start
        fs = self._partition.fs
        if start.end:
            self._open(start.base)
            fs.truncate(self._fd, start.end)
        else:
            self.close_segment()
            if start.base in self._partition.segments():
                fs.unlink(self._partition.segment_path(start.base))
        self._uncut = None

    def close_segment(self) -> None:
        if self._fd >= 0:
            self._partition.fs.close(self._fd)
        self._fd = self._base = -1

    def close(self) -> None:
        self.close_segment()
        if self._uncut is not None:
            self._uncut = None
            self._partition.unlock()
        self._partition.close()


def _size(record: Record) -> int:
    return frames.frame_bytes(len(record.value), len(record.key), len(record.meta))
