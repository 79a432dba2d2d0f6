"""Times in a partition: retention, which drops whole segments from the old end, and the first offset at a time.

How far retention takes is written down first, durably (`retained`), so that a segment that something else deleted is
told from one that retention dropped. Then oldest first, one at a time, so that a crash in between leaves a shorter log
and never a hole. The newest segment stays: it holds the next offset.
"""

from collections.abc import Iterator
from itertools import pairwise

from infra.eventlog import frames
from infra.eventlog.cursor import READ_BYTES
from infra.eventlog.frames import SEGMENT_HEADER_BYTES, FrameError
from infra.eventlog.partition import Partition
from infra.eventlog.retained import write_retained


def drop_segments(partition: Partition, upto: int, before_ms: int) -> int:
    """Drop leading segments that end at or before offset `upto` and hold nothing as new as `before_ms`; how many."""
    going = []
    start = 0
    for base, end in pairwise(partition.segments()):
        if end > upto or _newest_ms(partition, base, end) >= before_ms:
            break
        going.append(base)
        start = end
    if going:
        write_retained(partition.fs, partition.path, start)
    for base in going:
        partition.fs.unlink(partition.segment_path(base))
        partition.fs.sync_folder(partition.path)
    return len(going)


def offset_at(partition: Partition, timestamp_ms: int) -> int:
    """First offset whose record is at or after a time, else the end; reads the headers of everything before it."""
    end = partition.highwater.next_offset()
    bases = partition.segments()
    for base, stop in pairwise([*bases, end]):
        for offset, found_ms in _times(partition, base, stop):
            if found_ms >= timestamp_ms:
                return offset
    return end


def _newest_ms(partition: Partition, base: int, end: int) -> int:
    """The largest timestamp of a segment."""
    return max((found_ms for _, found_ms in _times(partition, base, end)), default=-(1 << 63))


def _times(partition: Partition, base: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, timestamp) of each record of a segment; read from frame headers alone."""
    fs, path = partition.fs, partition.segment_path(base)
    fd = fs.open(path)
    offset, position = base, SEGMENT_HEADER_BYTES
    try:
        while offset < end:
            data = fs.pread(fd, READ_BYTES, position)
            at = 0
            while offset < end and (at == 0 or at + frames.FRAME_HEADER_BYTES <= len(data)):
                size, timestamp_ms = frames.peek(data, at, offset)
                yield offset, timestamp_ms
                at += size
                offset += 1
            position += at
    except FrameError as error:
        raise partition.corrupt(path, error) from error
    finally:
        fs.close(fd)
