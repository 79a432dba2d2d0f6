"""One partition on disk: a folder of segments named by their first offset, and its high-water mark.

The segments are the truth. Opening checks that none is missing: the oldest is where retention left it (`retained`),
and each names the one before it. `recover` brings the rest in line with them, under the partition's lock:
 1. the newest segment is found; one that never got its header is removed (it was being made when the writer died);
 2. frames beyond the known tail are checked; whole ones were written by a process that died before it published
    them: they are synced and published; a torn tail is cut off, and `torn.keep_aside` keeps its bytes;
 3. a log that ends before the high-water mark has lost acknowledged records: CorruptStateError, nothing is touched.
A segment is synced before the next one is made, so a broken frame in any but the newest is corruption, not a torn tail.

In the newest, a broken frame begins a torn tail only where nothing that can be read follows it. One thing may: records
of the same write, whose pages a power loss kept while it lost others; none of them was acknowledged. That holds while
there is a high-water mark, if an old one. Where the mark is lost as well, any readable record that follows makes it
corruption. Corruption is raised and changes nothing.
"""

import time
from bisect import bisect_left

from infra.errors import CorruptStateError, RetryableError
from infra.eventlog import frames
from infra.eventlog.base import Record
from infra.eventlog.filesystem import FileSystem, write_all, write_new_file
from infra.eventlog.frames import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, FrameError
from infra.eventlog.marks import EMPTY_MARK, HIGHWATER_BYTES, HighWater, Tail
from infra.eventlog.retained import ANEW, check_whole, segment_name
from infra.eventlog.torn import keep_aside

LOCK_WAIT_S = 10.0  # a flush holds the lock for milliseconds; only a stuck disk holds it longer
SCAN_BYTES = 1 << 20
NEW_TAIL = Tail(0, 0, 0, 0)  # no segment yet


def create_partition(fs: FileSystem, path: str) -> None:
    """Make the folder and its empty high-water mark, or do nothing where they exist."""
    fs.make_folder(path)
    names = fs.list(path)
    if "highwater" not in names:
        # Written, not only sized: a mapped page without a disk block would kill the process when the disk is full.
        # Zeros, no mark at all, where there are segments: then it is not known how far they were durable.
        lost = any(name.endswith(".log") for name in names)
        write_new_file(fs, path, "highwater", bytes(HIGHWATER_BYTES) if lost else EMPTY_MARK)


class Partition:
    """Shared by the reading and the writing side of one process; opening it repairs it."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.fs = fs
        self.path = path
        if not fs.exists(path):
            raise CorruptStateError(f"{path}: the partition's folder is gone: restore it from a copy, {ANEW}")
        create_partition(fs, path)
        self._lock_fd = fs.open(f"{path}/highwater", write=True)
        # Whoever holds the lock is a live writer: it has repaired the partition already.
        alone = fs.try_lock(self._lock_fd)
        try:
            if alone and fs.size(self._lock_fd) != HIGHWATER_BYTES:
                write_all(fs, self._lock_fd, bytes(HIGHWATER_BYTES), 0)
            self.highwater = HighWater(fs.map(self._lock_fd, HIGHWATER_BYTES), f"{path}/highwater")
            if alone:
                check_whole(fs, path, self.segments())
                self.recover()
                self.unlock()
        except BaseException:
            fs.close(self._lock_fd)
            raise
        self._closed = False

    def lock(self) -> None:
        """Take the partition's lock. RetryableError where another process holds it for too long."""
        deadline = time.monotonic() + LOCK_WAIT_S
        wait_s = 0.0002
        while not self.fs.try_lock(self._lock_fd):
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"{self.path}: another writer has held the lock for {LOCK_WAIT_S:.0f} s; its disk may be full or "
                    "failing: see its messages",
                    after_s=1.0,
                )
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, 0.005)

    def unlock(self) -> None:
        self.fs.unlock(self._lock_fd)

    def segments(self) -> list[int]:
        """Base offsets of the kept segments, ascending."""
        return sorted(int(name[:-4]) for name in self.fs.list(self.path) if len(name) == 24 and name.endswith(".log"))

    def segment_path(self, base: int) -> str:
        return f"{self.path}/{segment_name(base)}"

    def start_offset(self) -> int:
        """Offset of the oldest kept record."""
        bases = self.segments()
        return bases[0] if bases else 0

    def before(self, base: int) -> int | None:
        """Base offset of the kept segment before a (coming) one; None where it is the first."""
        bases = self.segments()
        index = bisect_left(bases, base)
        return bases[index - 1] if index else None

    def recover(self) -> Tail:
        """Repair and publish the tail; see the module. For the holder of the lock."""
        tail, floor = self._stored()
        bases = self._drop_unborn(self.segments(), floor)
        if not bases:
            found = NEW_TAIL
        else:
            first = bases.index(tail.base) if tail and tail.base in bases else len(bases) - 1
            found = Tail(bases[first], SEGMENT_HEADER_BYTES, 0, bases[first])
            if tail is not None and tail.base == bases[first]:
                found = tail
            found = self._scan(bases[first:], found)
        if found.next_offset < floor:
            raise CorruptStateError(
                f"{self.path}: the log ends at offset {found.next_offset}, but {floor} had been made durable: "
                "the disk lost acknowledged records; restore the folder from a copy, or delete its `highwater` to go "
                "on without them"
            )
        if found != tail or self.highwater.stored_offset() != found.next_offset:
            self.fs.sync_folder(self.path)
            self.highwater.publish(found)
        return found

    def _stored(self) -> tuple[Tail | None, int]:
        """The tail if it is whole, and the offset below which everything was durable."""
        tail = self.highwater.tail()
        return tail, max(self.highwater.stored_offset() or 0, tail.next_offset if tail else 0)

    def _drop_unborn(self, bases: list[int], floor: int) -> list[int]:
        """Remove a newest segment without a header: only one beyond the high-water mark can be."""
        if not bases:
            return bases
        path = self.segment_path(bases[-1])
        fd = self.fs.open(path)
        head = b""
        try:
            head = self.fs.pread(fd, SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES, 0)
            frames.check_segment_header(head, bases[-1])
            return bases
        except FrameError as error:
            # Header and first frame share a sector: where the frame is there, the header was and has been damaged.
            if bases[-1] < floor or frames.is_frame_header(head, SEGMENT_HEADER_BYTES, bases[-1]):
                raise self.corrupt(path, error) from error
            self._put_aside(fd, path, Tail(bases[-1], 0, 0, bases[-1]), error)
        finally:
            self.fs.close(fd)
        self.fs.unlink(path)
        self.fs.sync_folder(self.path)
        return bases[:-1]

    def _scan(self, bases: list[int], tail: Tail) -> Tail:
        """Follow the frames from `tail` to the end of the log; cut off what is torn."""
        for index, base in enumerate(bases):
            path = self.segment_path(base)
            if index:
                if base != tail.next_offset:
                    raise self.corrupt(path, f"offsets {tail.next_offset} to {base - 1} are missing before it")
                tail = Tail(base, SEGMENT_HEADER_BYTES, 0, base)
            newest = index == len(bases) - 1
            fd = self.fs.open(path, write=newest)
            try:
                tail = self._scan_segment(fd, path, tail, newest=newest)
            finally:
                self.fs.close(fd)
        return tail

    def _scan_segment(self, fd: int, path: str, tail: Tail, *, newest: bool) -> Tail:
        size = self.fs.size(fd)
        start = tail
        try:
            while tail.end < size:
                tail = self._scan_chunk(fd, size, tail)
        except FrameError as error:
            floor = self._stored()[1]
            if not newest or tail.next_offset < floor:
                raise self.corrupt(path, error) from error
            self._put_aside(fd, path, tail, error)
            self.fs.truncate(fd, tail.end)
            size = tail.end
        if size < tail.end:
            raise self.corrupt(path, f"it ends at byte {size}, {tail.end} had been made durable")
        if newest and tail != start:
            self.fs.sync(fd)
        return tail

    def _scan_chunk(self, fd: int, size: int, tail: Tail) -> Tail:
        data = memoryview(self.fs.pread(fd, SCAN_BYTES, tail.end))
        need, _ = frames.peek(data, 0, tail.next_offset)
        if need > size - tail.end:
            raise FrameError(f"record {tail.next_offset}: the file ends inside its frame")
        if need > len(data):
            data = memoryview(self.fs.pread(fd, need, tail.end))
        out: list[tuple[int, Record]] = []
        used = frames.decode_frames(data, 0, tail.next_offset, 1 << 62, out, 0)
        last = out[-1][1]
        last_bytes = frames.frame_bytes(len(last.value), len(last.key), len(last.meta))
        return Tail(tail.base, tail.end + used, tail.end + used - last_bytes, tail.next_offset + len(out))

    def _put_aside(self, fd: int, path: str, tail: Tail, error: FrameError) -> None:
        """Keep what is to be cut off behind `tail`. Raises CorruptStateError where that is more than a torn tail."""
        data = self.fs.pread(fd, self.fs.size(fd) - tail.end, tail.end)
        found = frames.readable_after(data, tail.next_offset)
        marked = self.highwater.stored_offset() is not None
        if found is not None and (not marked or found.durable_before > tail.next_offset):
            raise CorruptStateError(
                f"{path}: byte {tail.end}: {error}; yet record {found.offset} can be read behind it, at byte "
                f"{tail.end + found.position}: this is damage, not an unfinished write, and nothing was changed. "
                f"Restore the file from a copy, {ANEW}. To go on without records {tail.next_offset} and later: keep a "
                f"copy, remove {self.path}/highwater, then `truncate -s {tail.end} {path}`"
            )
        keep_aside(self.fs, self.path, tail, data)

    def corrupt(self, path: str, what: object) -> CorruptStateError:
        """The error for bytes that were durable and are no longer right."""
        return CorruptStateError(
            f"{path}: {what}; the disk damaged a durable record: restore the file from a copy, {ANEW}"
        )

    def close(self) -> None:
        """Let go of the files, and with them of the lock."""
        if not self._closed:
            self._closed = True
            self.highwater.close()
            self.fs.close(self._lock_fd)
