"""The contract is worth something on Kafka too: logs that are wrong on purpose, each caught by one of its claims."""

import inspect
import uuid

import pytest
from contract import test_log_contract as contract

from infra.config import LogConfig
from infra.eventlog.kafka.fetch import Fetcher
from infra.eventlog.kafka.log import KafkaLog
from infra.eventlog.kafka.places import Place, Places
from infra.eventlog.kafka.reader import KafkaReader
from infra.eventlog.kafka.writer import KafkaWriter

append, flush, readers, commit = KafkaWriter.append, KafkaWriter.flush, Places.readers, KafkaReader.commit


def append_and_show(self, partition, value, **fields):
    append(self, partition, value, **fields)
    flush(self)


def first_partition_first(self, max_records):
    out = []
    for number in sorted(self._buffers):
        self._move(number, max_records - len(out), out)
    return out


def hand_over_and_hope(self):
    if self._pending_bytes:
        self._lent = self._cluster.producer(self._settings(), self._on_failure)
        self._hand_over(self._lent.client, 0.0)
        self._pending_bytes = 0


def all_committed(self, topic):
    return {name: {n: Place(1 << 40, p.read) for n, p in at.items()} for name, at in readers(self, topic).items()}


def read_is_committed(self, topic):
    return {
        name: {n: Place(p.committed, p.committed or 0) for n, p in at.items()}
        for name, at in readers(self, topic).items()
    }


WRONG = {
    "shows what was not flushed": (
        [(KafkaWriter, "append", append_and_show)],
        contract.test_nothing_is_visible_before_the_flush_and_everything_after,
    ),
    "forgets to flush on close": (
        [(KafkaWriter, "close", KafkaWriter.abandon)],
        contract.test_closing_a_writer_flushes,
    ),
    "flushes without waiting": (
        [(KafkaWriter, "flush", hand_over_and_hope)],
        contract.test_large_records_pass,
    ),
    "comes back empty though something is there": (
        [(Fetcher, "_hear_ends", lambda self, wait_s: False), (Fetcher, "_feed_hungry", lambda self, wait_s: None)],
        contract.test_a_reader_starts_again_where_it_committed,
    ),
    "starves a partition": ([(Fetcher, "_take", first_partition_first)], contract.test_polling_is_fair_over_partitions),
    "commits what was read, whatever it is told": (
        [(KafkaReader, "commit", lambda self, positions=None: commit(self))],
        contract.test_commit_takes_given_positions_and_may_go_back,
    ),
    "counts lag from what was committed": (
        [(Places, "readers", read_is_committed), (KafkaReader, "place", lambda self, partition: None)],
        contract.test_lag_counts_what_was_not_read_whatever_was_committed,
    ),
    "drops what a reader still needs": (
        [(Places, "readers", all_committed)],
        contract.test_retention_drops_old_segments_that_every_reader_has_committed,
    ),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_contract_catches_a_log_that(name, kafka, monkeypatch):
    wrong, claim = WRONG[name]
    for owner, attribute, replacement in wrong:
        monkeypatch.setattr(owner, attribute, replacement)
    logs, url = [], f"kafka://{kafka}/w{uuid.uuid4().hex}"

    def opened(**options):
        logs.append(KafkaLog(url, LogConfig(**options)))
        return logs[-1]

    arguments = {"opened": opened}
    if "log" in inspect.signature(claim).parameters:
        arguments["log"] = opened()
        arguments["log"].create_topic("t", 2)
    wanted = {key: value for key, value in arguments.items() if key in inspect.signature(claim).parameters}
    with pytest.raises(AssertionError):
        claim(**wanted)
    for log in logs:
        log.close()
