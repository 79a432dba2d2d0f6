"""Power loss: whatever was acknowledged is there after it, whatever else is there was appended, and the log goes on."""

import contextlib
import random

import pytest
from losing_disk import LosingDisk

from infra.config import LogConfig
from infra.errors import CorruptStateError
from infra.eventlog import frames
from infra.eventlog.log import EmbeddedLog

SEEDS = range(60)
STATES_PER_SEED = 40  # at most; 2,000 crash states and more in all
CONFIG = LogConfig(segment_bytes=1_500, flush_bytes=1 << 20)


class Killed(BaseException):
    """The process ends here, SIGKILL."""


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


@pytest.mark.slow
def test_what_was_acknowledged_survives_power_loss_at_100_000_moments():
    assert sum(survive(seed) for seed in range(1_000, 3_600)) >= 100_000


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


def test_a_log_that_takes_a_torn_write_for_damage_is_caught(monkeypatch):
    encode = frames.encode_frame
    monkeypatch.setattr("infra.eventlog.frames.encode_frame", lambda offset, record, place: encode(offset, record, 0))
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
