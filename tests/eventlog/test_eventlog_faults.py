"""Disk full, EIO, failed sync: the flush stops loudly, the log is as before, and a later flush goes on."""

import errno
import resource

import pytest

from infra.config import LogConfig
from infra.errors import RetryableError
from infra.eventlog.filesystem import FileSystem
from infra.eventlog.log import EmbeddedLog


class FaultyDisk(FileSystem):
    """Calls named in `failing` raise; a failing write takes half of its bytes first."""

    def __init__(self):
        self.failing = {}  # call -> errno
        self.failed = 0

    def _fail(self, call):
        if call in self.failing:
            self.failed += 1
            raise OSError(self.failing[call], "Input/output error")

    def open(self, path, *, write=False, create=False):
        if create:
            self._fail("create")
        return super().open(path, write=write, create=create)

    def pread(self, fd, size, position):
        self._fail("pread")
        return super().pread(fd, size, position)

    def pwrite(self, fd, data, position):
        if "pwrite" in self.failing:
            super().pwrite(fd, memoryview(data)[: len(data) // 2], position)
        self._fail("pwrite")
        return super().pwrite(fd, data, position)

    def truncate(self, fd, size):
        self._fail("truncate")
        super().truncate(fd, size)

    def sync(self, fd):
        self._fail("sync")
        super().sync(fd)

    def sync_folder(self, path):
        self._fail("sync_folder")
        super().sync_folder(path)

    def sync_map(self, mapped):
        self._fail("sync_map")
        super().sync_map(mapped)

    def unlink(self, path):
        self._fail("unlink")
        super().unlink(path)


class Bench:
    """A log on a faulty disk, and the same log on a good one beside it."""

    def __init__(self, folder, segment_bytes):
        self.disk = FaultyDisk()
        self.config = LogConfig(segment_bytes=segment_bytes)
        self.root = str(folder / "log")
        self.logs = []
        self.log = self.open(self.disk)
        self.log.create_topic("t", 1)
        self.writer = self.log.writer("t")
        self.writer.append(0, b"first", timestamp_ms=1)
        self.writer.flush()

    def open(self, disk=None):
        self.logs.append(EmbeddedLog(self.root, self.config, disk))
        return self.logs[-1]

    def values(self):
        return [bytes(r.value) for r in self.open().read("t", 0, 0)]

    def close(self):
        self.disk.failing = {}
        for log in self.logs:
            log.close()


@pytest.fixture(params=[1 << 20, 1], ids=["within a segment", "into a new segment"])
def bench(request, tmp_path):
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["create", "pwrite", "sync", "sync_folder"])
def test_a_failed_flush_changes_nothing_and_a_later_one_succeeds(bench, call, number):
    bench.writer.append(0, b"second", timestamp_ms=2)
    bench.writer.append(0, b"third", timestamp_ms=2)
    bench.disk.failing = {call: number}
    for _ in range(2):
        if call in ("create", "sync_folder") and bench.config.segment_bytes > 1:
            continue  # happens only with a new segment
        with pytest.raises(RetryableError, match="nothing was lost, 2 records stay buffered"):
            bench.writer.flush()
        assert bench.writer.pending_bytes > 0
        assert bench.values() == [b"first"]
    bench.disk.failing = {}
    bench.writer.flush()
    assert bench.writer.pending_bytes == 0
    assert bench.values() == [b"first", b"second", b"third"]


def test_a_limit_of_the_system_itself_is_met_the_same_way(tmp_path):
    log = EmbeddedLog(str(tmp_path), LogConfig())
    log.create_topic("t", 1)
    writer = log.writer("t")
    values = [b"%d" % number + bytes(200) for number in range(40)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for value in values:
        writer.append(0, value, timestamp_ms=1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))  # the kernel takes 3,000 bytes, then refuses
        with pytest.raises(RetryableError, match="File too large; nothing was lost"):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.end_offset("t", 0) == 0
    writer.flush()
    assert [bytes(record.value) for record in log.read("t", 0, 0)] == values
    log.close()


def test_others_may_write_after_a_failed_flush(bench):
    bench.writer.append(0, b"late", timestamp_ms=2)
    bench.disk.failing = {"sync": errno.EIO}
    with pytest.raises(RetryableError):
        bench.writer.flush()
    other = bench.open().writer("t")
    other.append(0, b"other", timestamp_ms=2)
    other.flush()
    bench.disk.failing = {}
    bench.writer.flush()
    assert bench.values() == [b"first", b"other", b"late"]


def test_nobody_builds_on_bytes_that_could_not_be_cut_back(bench, monkeypatch):
    monkeypatch.setattr("infra.eventlog.partition.LOCK_WAIT_S", 0.02)
    bench.writer.append(0, b"late", timestamp_ms=2)
    bench.disk.failing = dict.fromkeys(["sync", "truncate", "unlink"], errno.EIO)
    for _ in range(2):
        with pytest.raises(RetryableError):
            bench.writer.flush()
    other = bench.open().writer("t")
    other.append(0, b"other", timestamp_ms=2)
    with pytest.raises(RetryableError, match="another writer has held the lock"):
        other.flush()
    assert bench.values() == [b"first"]
    bench.disk.failing = {}
    bench.writer.flush()
    other.flush()
    assert bench.values() == [b"first", b"late", b"other"]


def test_what_a_stuck_writer_leaves_is_repaired_once_it_is_gone(bench):
    bench.writer.append(0, b"late", timestamp_ms=2)
    bench.disk.failing = dict.fromkeys(["pwrite", "truncate", "unlink"], errno.ENOSPC)
    with pytest.raises(RetryableError):
        bench.writer.flush()
    bench.log.close()
    other = bench.open().writer("t")
    other.append(0, b"other", timestamp_ms=2)
    other.flush()
    assert bench.values() == [b"first", b"other"]


def test_a_full_buffer_refuses_the_record_while_the_disk_is_full(tmp_path):
    disk = FaultyDisk()
    log = EmbeddedLog(str(tmp_path), LogConfig(flush_bytes=500), disk)
    log.create_topic("t", 1)
    writer = log.writer("t")
    disk.failing = {"pwrite": errno.ENOSPC}
    accepted = 0
    while writer.pending_bytes < 500:
        writer.append(0, bytes(100), timestamp_ms=1)
        accepted += 1
    with pytest.raises(RetryableError):
        writer.append(0, b"refused", timestamp_ms=1)
    disk.failing = {}
    writer.append(0, bytes(100), timestamp_ms=1)
    writer.close()
    assert log.end_offset("t", 0) == accepted + 1
    log.close()


def test_a_failed_read_is_retried(bench):
    reader = bench.log.reader("t", "r")
    bench.disk.failing = {"pread": errno.EIO}
    for _ in range(2):
        with pytest.raises(RetryableError, match="check the disk"):
            reader.poll()
    bench.disk.failing = {}
    assert [bytes(record.value) for _, record in reader.poll()] == [b"first"]


def test_a_failed_commit_releases_nothing(bench):
    for value in (b"second", b"third"):
        bench.writer.append(0, value, timestamp_ms=1)
        bench.writer.flush()
    reader = bench.log.reader("t", "r")
    reader.poll()
    bench.disk.failing = {"sync_map": errno.EIO}
    with pytest.raises(RetryableError, match="commit again"):
        reader.commit()
    assert bench.open().retain("t", before_ms=1 << 60) == 0
    bench.disk.failing = {}
    reader.commit()
    assert bench.open().reader("t", "r").position(0) == 3


@pytest.mark.parametrize("call", ["create", "pwrite", "sync", "sync_folder"])
def test_creating_and_registering_can_be_tried_again(tmp_path, call):
    disk = FaultyDisk()
    log = EmbeddedLog(str(tmp_path), LogConfig(), disk)
    disk.failing = {call: errno.ENOSPC}
    with pytest.raises(RetryableError, match="creating topic t"):
        log.create_topic("t", 2)
    disk.failing = {}
    log.create_topic("t", 2)
    disk.failing = {call: errno.ENOSPC}
    with pytest.raises(RetryableError, match="registering reader r"):
        log.reader("t", "r")
    disk.failing = {}
    assert log.reader("t", "r").poll() == []
    log.close()
