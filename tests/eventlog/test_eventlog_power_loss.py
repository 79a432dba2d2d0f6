"""Power loss: whatever was acknowledged is there after it, whatever else is there was appended, and the log goes on.

`LosingDisk` is a file system in memory that knows what was synced. A power loss keeps that, and of the rest any subset:
written sectors of 512 bytes dropped one by one (torn writes, reordered writes), sizes, names of new files, mapped pages
as they were at any moment since their last sync, even between two words. Folders are durable once made: not modelled.
"""

import contextlib
import random

import pytest

from infra.config import LogConfig
from infra.errors import CorruptStateError
from infra.eventlog.filesystem import FileSystem
from infra.eventlog.log import EmbeddedLog

SECTOR = 512
SEEDS = range(60)
STATES_PER_SEED = 40  # at most; 2,000 crash states and more in all
CONFIG = LogConfig(segment_bytes=1_500, flush_bytes=1 << 20)


class Killed(BaseException):
    """The process ends here, SIGKILL."""


class Mapped(bytearray):
    """A mapped file: everyone who maps it gets this one object."""

    def close(self):
        """Its pages outlive whoever mapped them."""


class Node:
    """A file: what is live, what is durable, and what happened in between."""

    def __init__(self, durable=b""):
        self.durable = durable
        self.live = bytearray(durable)
        self.changes = []  # ("write", position, data) or ("size", size), not yet synced
        self.moments = []  # contents of a mapped file since its last sync

    def content(self):
        return bytes(self.live[:])

    def look(self):
        if isinstance(self.live, Mapped) and (not self.moments or self.moments[-1] != self.content()):
            self.moments.append(self.content())

    def synced(self):
        self.durable, self.changes = self.content(), []
        self.moments = [self.durable] if isinstance(self.live, Mapped) else []

    def after_power_loss(self, rng):
        if self.moments:
            return self._mapped_after_power_loss(rng)
        content = bytearray(self.durable)
        keep = rng.choice([0.0, 1.0, rng.random()])
        for kind, where, data in self.changes:
            if kind == "size":
                if rng.random() < keep:
                    content[where:] = bytes(max(0, where - len(content)))
                continue
            if rng.random() < 0.3:  # the size reached the disk, the data perhaps not
                content.extend(bytes(max(0, where + len(data) - len(content))))
            start = where
            while start < where + len(data):
                stop = min(where + len(data), (start // SECTOR + 1) * SECTOR)
                if rng.random() < keep:
                    content.extend(bytes(max(0, stop - len(content))))
                    content[start:stop] = data[start - where : stop - where]
                start = stop
        return bytes(content)

    def _mapped_after_power_loss(self, rng):
        index = rng.randrange(len(self.moments))
        before, after = self.moments[max(0, index - 1)], self.moments[index]
        if rng.random() < 0.6:
            return after
        words = range(0, len(after), 8)
        return b"".join((before if rng.random() < 0.5 else after)[at : at + 8] for at in words)


class LosingDisk(FileSystem):
    """See the module. `before_call` is called before each call that changes something."""

    def __init__(self):
        self.folders = {}  # path -> {name: Node}
        self.durable_names = {}
        self.name_changes = {}  # path -> [(name, Node or None, old name or None)]
        self.files = {}  # fd -> Node
        self.locks = {}  # Node -> fd
        self.next_fd = 1_000
        self.before_call = lambda name: None

    def _change(self, call):
        for names in self.folders.values():
            for node in names.values():
                node.look()
        self.before_call(call)

    def unfinished(self):
        """Whether anything but mapped pages waits for a sync."""
        nodes = (node for names in self.folders.values() for node in names.values())
        return any(self.name_changes.values()) or any(node.changes for node in nodes)

    def power_loss(self, rng):
        """What the disk holds when power returns."""
        left = LosingDisk()
        for path, durable in self.durable_names.items():
            names = dict(durable)
            for name, node, old in self.name_changes[path]:
                if rng.random() < 0.5:
                    continue
                if old is not None:
                    names.pop(old, None)
                if node is None:
                    names.pop(name, None)
                else:
                    names[name] = node
            kept = {name: Node(node.after_power_loss(rng)) for name, node in names.items()}
            left.folders[path], left.durable_names[path], left.name_changes[path] = kept, dict(kept), []
        return left

    def end_process(self):
        self.files, self.locks = {}, {}
        self.before_call = lambda name: None

    def open(self, path, *, write=False, create=False):
        folder, _, name = path.rpartition("/")
        names = self.folders.get(folder, {})
        if name not in names:
            if not create:
                raise FileNotFoundError(2, "No such file or directory", path)
            self._change("create")
            names[name] = Node()
            self.name_changes[folder].append((name, names[name], None))
        self.next_fd += 1
        self.files[self.next_fd] = names[name]
        return self.next_fd

    def close(self, fd):
        node = self.files.pop(fd, None)
        if self.locks.get(node) == fd:
            del self.locks[node]

    def pread(self, fd, size, position):
        return bytes(self.files[fd].live[position : position + size])

    def pwrite(self, fd, data, position):
        self._change("pwrite")
        node = self.files[fd]
        if position > len(node.live):
            node.live.extend(bytes(position - len(node.live)))
        node.live[position : position + len(data)] = data
        node.changes.append(("write", position, bytes(data)))
        return len(data)

    def truncate(self, fd, size):
        self._change("truncate")
        node = self.files[fd]
        node.live[size:] = bytes(max(0, size - len(node.live)))
        node.changes.append(("size", size, b""))

    def sync(self, fd):
        self._change("sync")
        self.files[fd].synced()

    def size(self, fd):
        return len(self.files[fd].live)

    def exists(self, path):
        folder, _, name = path.rpartition("/")
        return path in self.folders or name in self.folders.get(folder, {})

    def list(self, path):
        return list(self.folders[path])

    def make_folder(self, path):
        for table, empty in ((self.folders, {}), (self.durable_names, {}), (self.name_changes, [])):
            table.setdefault(path, empty)

    def rename(self, source, target):
        self._change("rename")
        folder, _, old = source.rpartition("/")
        name = target.rpartition("/")[2]
        self.folders[folder][name] = self.folders[folder].pop(old)
        self.name_changes[folder].append((name, self.folders[folder][name], old))

    def unlink(self, path):
        self._change("unlink")
        folder, _, name = path.rpartition("/")
        del self.folders[folder][name]
        self.name_changes[folder].append((name, None, None))

    def sync_folder(self, path):
        self._change("sync_folder")
        if path in self.folders:
            self.durable_names[path], self.name_changes[path] = dict(self.folders[path]), []

    def map(self, fd, size):
        node = self.files[fd]
        if not isinstance(node.live, Mapped):
            assert len(node.live) == size
            node.live = Mapped(node.live)
            node.live.node = node
            node.moments = [node.durable, node.content()]
        return node.live

    def sync_map(self, mapped):
        self._change("sync_map")
        mapped.node.synced()

    def try_lock(self, fd):
        return self.locks.setdefault(self.files[fd], fd) == fd

    def unlock(self, fd):
        self.locks.pop(self.files[fd], None)


class Run:
    """A seeded workload on a losing disk, and what was promised to whoever watched it."""

    def __init__(self, disk, rng, name):
        self.disk, self.rng, self.name = disk, rng, name
        self.appended = []  # values by offset, in the order of their flush; the last ones may be in flight
        self.acknowledged = 0
        self.commits = [0]  # the reader restarts at one of these; the last may be in flight
        self.committed = 0

    def open(self):
        self.log = EmbeddedLog("/log", CONFIG, self.disk)
        self.log.create_topic("t", 1)

    def flush(self, writer, count):
        for _ in range(count):
            value = b"%s-%d-" % (self.name, len(self.appended)) + self.rng.randbytes(self.rng.choice([0, 40, 700]))
            self.appended.append(value)
            writer.append(0, value, timestamp_ms=len(self.appended))
        writer.flush()
        self.acknowledged = len(self.appended)

    def commit(self, reader):
        reader.poll(self.rng.randrange(1, 9))
        self.commits.append(reader.position(0))
        reader.commit()
        self.committed = len(self.commits) - 1

    def work(self, steps=30):
        writers = [self.log.writer("t"), self.log.writer("t")]
        reader = self.log.reader("t", "r")
        for _ in range(steps):
            step = self.rng.random()
            if step < 0.7:
                self.flush(self.rng.choice(writers), self.rng.randrange(1, 5))
            elif step < 0.9:
                self.commit(reader)
            else:
                self.log.retain("t", before_ms=1 << 60)

    def promised(self):
        return len(self.appended), self.acknowledged, self.commits[self.committed :]

    def check(self, disk, promised):
        """The law, after the power returned."""
        appended, acknowledged, commits = promised
        log = EmbeddedLog("/log", CONFIG, disk)
        log.create_topic("t", 1)
        start, end = log.start_offset("t", 0), log.end_offset("t", 0)
        assert acknowledged <= end <= appended, f"{acknowledged} acknowledged, {appended} appended, {end} found"
        found = [bytes(record.value) for record in log.read("t", 0, start, 10_000)]
        assert found == self.appended[start:end]
        reader = log.reader("t", "r")
        assert reader.position(0) in {max(commit, start) if commit == 0 else commit for commit in commits}
        assert start <= reader.position(0)
        writer = log.writer("t")
        writer.append(0, b"after", timestamp_ms=1)
        writer.flush()
        assert log.end_offset("t", 0) == end + 1
        assert bytes(log.last_record("t", 0).value) == b"after"
        assert bytes(EmbeddedLog("/log", CONFIG, disk).read("t", 0, end)[0].value) == b"after"


def crash_states(run, rng):
    """Run the workload; (disk, promised) at moments with unfinished work."""
    states = []

    def before_call(call):
        if call == "sync_map" or run.disk.unfinished():
            states.append((run.disk.power_loss(rng), run.promised()))

    run.open()
    run.disk.before_call = before_call
    run.work()
    run.disk.before_call = lambda name: None
    rng.shuffle(states)
    return states[:STATES_PER_SEED]


def survive(seed, disk_class=LosingDisk):
    """Check one seed; how many crash states."""
    rng = random.Random(seed)
    run = Run(disk_class(), rng, b"first")
    states = crash_states(run, rng)
    for disk, promised in states:
        try:
            run.check(disk, promised)
        except (AssertionError, CorruptStateError) as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return len(states)


def test_what_was_acknowledged_survives_power_loss():
    assert sum(survive(seed) for seed in SEEDS) >= 2_000


def lost(disk_class):
    """Whether the test notices this disk."""
    for seed in SEEDS:
        try:
            survive(seed, disk_class)
        except AssertionError:
            return True
    return False


class NoSync(LosingDisk):
    def sync(self, fd):
        self._change("sync")


class NoFolderSync(LosingDisk):
    def sync_folder(self, path):
        self._change("sync_folder")


class NoCommitSync(LosingDisk):
    def sync_map(self, mapped):
        self._change("sync_map")


@pytest.mark.parametrize("broken", [NoSync, NoFolderSync, NoCommitSync])
def test_a_skipped_sync_is_caught(broken):
    assert lost(broken)


def test_a_removed_checksum_is_caught(monkeypatch):
    monkeypatch.setattr("infra.eventlog.frames.checksum", lambda data, start=0: 0)
    assert lost(LosingDisk)


def kill_in_a_flush(disk, seed):
    """A writer is killed between write and sync, another process opens the log, then power goes: what that process
    showed to its readers must stay."""
    rng = random.Random(seed)
    run = Run(disk, rng, b"killed")
    run.open()
    writer = run.log.writer("t")
    run.flush(writer, 3)

    def kill(call):
        if call == "sync":
            raise Killed

    disk.before_call = kill
    with pytest.raises(Killed):
        run.flush(writer, rng.randrange(1, 5))
    disk.end_process()
    run.open()
    run.acknowledged = run.log.end_offset("t", 0)
    run.check(disk.power_loss(rng), run.promised())


def test_what_a_repair_shows_survives_power_loss():
    for seed in range(100):
        kill_in_a_flush(LosingDisk(), seed)


def test_a_repair_that_does_not_sync_is_caught():
    class DeafRepair(LosingDisk):
        def end_process(self):
            super().end_process()
            self.sync = lambda fd: None

    def try_all():
        for seed in range(100):
            kill_in_a_flush(DeafRepair(), seed)

    with pytest.raises((AssertionError, CorruptStateError)):
        try_all()


@pytest.mark.parametrize("call", ["create", "pwrite", "sync", "sync_folder"])
def test_a_process_killed_at_any_call_leaves_a_log_that_goes_on(call):
    for seed in range(40):
        rng = random.Random(seed)
        run = Run(LosingDisk(), rng, b"killed")
        run.open()
        left = rng.randrange(12)

        def kill(name, left=[left]):  # noqa: B006 - counts down
            left[0] -= name == call
            if left[0] < 0:
                raise Killed

        run.disk.before_call = kill
        with contextlib.suppress(Killed):
            run.work()
        run.disk.end_process()
        run.check(run.disk, run.promised())
