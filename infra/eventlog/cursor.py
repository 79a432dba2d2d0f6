"""Reads a partition forward: one open segment, one read-ahead buffer, nothing beyond the high-water mark.

The mark is read before the bytes: every frame below it is whole and final, so a broken one is corruption. Bytes
beyond it may be half written; they may be read but are never looked at.
"""

from bisect import bisect_right
from typing import NoReturn

from infra.errors import CorruptStateError, RetryableError
from infra.eventlog import frames
from infra.eventlog.base import Record
from infra.eventlog.frames import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, FrameError
from infra.eventlog.partition import Partition

READ_BYTES = 256 << 10
MAX_POLL_BYTES = 64 << 20  # a poll ends after this many bytes, however few records they are


class Cursor:
    """Position in one partition; `offset` is the next to be read."""

    def __init__(self, partition: Partition, number: int, offset: int) -> None:
        self._partition = partition
        self._number = number
        self._fd = -1
        self._path = ""
        self._data = memoryview(b"")  # what was read ahead
        self._data_start = 0  # its byte position in the segment
        self._at = 0  # where the frame of `offset` begins in it
        self._whole_to = 0  # frames below this offset were final when it was read
        self.seek(offset)

    def seek(self, offset: int) -> None:
        self._close_segment()
        self.offset = offset
        # Where the log ends now, its next record will begin: remembered, so that following a log never scans it.
        tail = self._partition.highwater.tail()
        self._end_hint = tail if tail is not None and tail.next_offset == offset else None

    def take(self, max_records: int, out: list[tuple[int, Record]]) -> int:
        """Append up to `max_records` durable records to `out`; how many. CorruptStateError where bytes are damaged."""
        end = self._partition.highwater.next_offset()
        first = self.offset
        if first >= end:
            return 0
        stop = min(end, first + max_records)
        taken_bytes = 0
        try:
            while self.offset < stop and taken_bytes < MAX_POLL_BYTES:
                if self.offset >= self._whole_to or self._at >= len(self._data):
                    self._fill(end)
                before = len(out)
                at = frames.decode_frames(
                    self._data, self._at, self.offset, min(stop, self._whole_to), out, self._number
                )
                taken_bytes += at - self._at
                self._at = at
                self.offset += len(out) - before
                if len(out) == before:
                    self._fill(end)
        except FrameError as error:
            self._close_segment()  # half opened, perhaps: the next call finds its place anew
            raise self._partition.corrupt(self._path, error) from error
        except OSError as error:
            self._close_segment()
            raise RetryableError(
                f"{self._path}: {error.strerror}; check the disk, then read again", after_s=1.0
            ) from error
        return self.offset - first

    def _fill(self, end: int) -> None:
        """Read on at the next frame: afterwards the buffer starts with the whole frame of `offset`."""
        fs = self._partition.fs
        if self._fd < 0:
            self._locate()
        position = self._data_start + self._at
        left = fs.size(self._fd) - position
        if left <= 0:
            self._next_segment()
            position = SEGMENT_HEADER_BYTES
            left = fs.size(self._fd) - position
        data = fs.pread(self._fd, min(left, READ_BYTES) if left > 0 else 0, position)
        need, _ = frames.peek(data, 0, self.offset)
        if need > left:
            raise FrameError(f"record {self.offset}: the file ends inside its frame")
        if need > len(data):
            data = fs.pread(self._fd, need, position)
        self._data, self._data_start, self._at, self._whole_to = memoryview(data), position, 0, end

    def _locate(self) -> None:
        """Open the segment of `offset` and find its frame."""
        hint, tail = self._end_hint, self._partition.highwater.tail()
        if hint is not None and hint.next_offset == self.offset:
            self._open(hint.base)
            self._data_start = hint.end
            return
        if tail is not None and tail.next_offset == self.offset + 1 and tail.last:
            self._open(tail.base)
            self._data_start = tail.last
            return
        bases = self._partition.segments()
        index = bisect_right(bases, self.offset) - 1
        if index < 0:
            self._missing()
        self._open(bases[index])
        self._data_start = self._position_of(bases[index])

    def _position_of(self, base: int) -> int:
        """Byte position of the frame of `offset` in the open segment: hop over frame headers."""
        fs = self._partition.fs
        position, offset, size = SEGMENT_HEADER_BYTES, base, fs.size(self._fd)
        while offset < self.offset and position < size:
            data = fs.pread(self._fd, READ_BYTES, position)
            at = 0
            while offset < self.offset and at + FRAME_HEADER_BYTES <= len(data):
                at += frames.peek(data, at, offset)[0]
                offset += 1
            if at == 0:
                raise FrameError(f"record {offset}: the file ends inside its frame")
            position += at
        if offset < self.offset:
            self._missing()
        return position

    def _next_segment(self) -> None:
        if self.offset not in self._partition.segments():
            self._missing()
        self._open(self.offset)

    def _open(self, base: int) -> None:
        self._close_segment()
        self._path = self._partition.segment_path(base)
        try:
            self._fd = self._partition.fs.open(self._path)
        except FileNotFoundError:
            self._missing()
        frames.check_segment_header(self._partition.fs.pread(self._fd, SEGMENT_HEADER_BYTES, 0), base)
        self._data_start = SEGMENT_HEADER_BYTES

    def _missing(self) -> NoReturn:
        self._close_segment()
        raise CorruptStateError(
            f"{self._partition.path}: record {self.offset} is missing (the log starts at "
            f"{self._partition.start_offset()}); a segment was deleted while it was needed: restore it, or let the "
            "reader start anew from a snapshot"
        )

    def _close_segment(self) -> None:
        if self._fd >= 0:
            self._partition.fs.close(self._fd)
        self._fd = -1
        self._data = memoryview(b"")
        self._data_start = self._at = self._whole_to = 0

    def close(self) -> None:
        self._close_segment()


def last_record(partition: Partition) -> Record | None:
    """The newest durable record: its place is in the tail, else found by hopping through its segment."""
    end = partition.highwater.next_offset()
    if end == 0 or partition.start_offset() >= end:
        return None
    out: list[tuple[int, Record]] = []
    cursor = Cursor(partition, 0, end - 1)
    try:
        cursor.take(1, out)
    finally:
        cursor.close()
    return out[0][1]
