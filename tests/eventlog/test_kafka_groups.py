"""Members of one group: Kafka hands partitions out and takes them back; what one committed, the next goes on from."""

import time
import uuid
from collections import defaultdict

import pytest

from infra.config import LogConfig
from infra.errors import ConfigError
from infra.eventlog import open_log
from infra.eventlog.kafka.reader import Member

PARTITIONS = 4
TIMEOUT_S = 30.0


class Worker:
    """A member that notes what it is told and what it reads."""

    def __init__(self, url, start=None):
        self.log = open_log(url, LogConfig())
        self.mine, self.got = set(), defaultdict(list)
        self.reader = self.log.member("t", "w", Member(self.assigned, self.revoked, self.lost))
        self.start = start or {}

    def assigned(self, numbers):
        assert not self.mine & set(numbers)
        self.mine |= set(numbers)
        return self.start

    def revoked(self, numbers):
        assert set(numbers) <= self.mine
        self.reader.commit()
        self.mine -= set(numbers)

    def lost(self, numbers):
        self.mine -= set(numbers)

    def poll(self):
        for partition, record in self.reader.poll(64, timeout_s=0.05):
            assert partition in self.mine
            self.got[partition].append(record.offset)


@pytest.fixture
def url(kafka):
    url = f"kafka://{kafka}/g{uuid.uuid4().hex}"
    log = open_log(url, LogConfig())
    log.create_topic("t", PARTITIONS)
    yield url
    log.close()


@pytest.fixture
def join(url):
    workers = []

    def join(**options):
        workers.append(Worker(url, **options))
        return workers[-1]

    yield join
    for worker in workers:
        worker.log.close()


def write(url, count, numbers=range(PARTITIONS)):
    log = open_log(url, LogConfig())
    writer = log.writer("t")
    for number in numbers:
        for _ in range(count):
            writer.append(number, b"x", timestamp_ms=1)
    writer.close()
    log.close()


def until(condition, *workers):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, [(w.mine, dict(w.got)) for w in workers]
        for worker in workers:
            worker.poll()


def test_members_share_the_partitions_and_nothing_is_lost_or_doubled_when_one_leaves(url, join):
    write(url, 10)
    one = join()
    until(lambda: sum(map(len, one.got.values())) == 40, one)
    two = join()
    until(lambda: len(one.mine) == len(two.mine) == 2, one, two)
    write(url, 5)
    until(lambda: all(len(one.got[p]) + len(two.got[p]) == 15 for p in range(PARTITIONS)), one, two)
    one.reader.close()
    write(url, 5)
    until(lambda: all(len(one.got[p]) + len(two.got[p]) == 20 for p in range(PARTITIONS)), two)
    for p in range(PARTITIONS):
        assert one.got[p] + two.got[p] == list(range(20))


def test_a_member_may_choose_where_it_goes_on(url, join):
    write(url, 10)
    worker = join(start={0: 7, 3: 9})
    until(lambda: sum(map(len, worker.got.values())) == 24, worker)
    assert {p: offsets[0] for p, offsets in worker.got.items()} == {0: 7, 1: 0, 2: 0, 3: 9}


def test_what_members_have_read_counts_for_back_pressure(url, join):
    write(url, 10)
    worker, log = join(), open_log(url, LogConfig())
    until(lambda: sum(map(len, worker.got.values())) == 40, worker)
    until(lambda: log.reader_lag("t") == {"w": 0}, worker)
    write(url, 3, [1])
    assert log.reader_lag("t") == {"w": 3}
    log.close()


def test_a_group_whose_members_run_is_not_forgotten(url, join):
    worker = join()
    until(lambda: len(worker.mine) == PARTITIONS, worker)
    with pytest.raises(ConfigError, match="members still run"):
        worker.log.forget_reader("t", "w")
