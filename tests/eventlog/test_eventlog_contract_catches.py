"""The contract is worth something: implementations that are wrong on purpose, each caught by one of its claims."""

import inspect

import pytest
from contract import test_log_contract as contract

from infra.config import LogConfig
from infra.eventlog.appender import Appender
from infra.eventlog.cursor import Cursor
from infra.eventlog.log import EmbeddedLog
from infra.eventlog.positions import Positions
from infra.eventlog.reader import EmbeddedReader
from infra.eventlog.writer import EmbeddedWriter

append, take, flush, commit = EmbeddedWriter.append, Cursor.take, EmbeddedWriter.flush, Positions.commit


def append_and_show(self, partition, value, **fields):
    append(self, partition, value, **fields)
    flush(self)


def append_without_copy(self, partition, value, **fields):
    append(self, partition, b"", **fields)
    self._pending[partition][-1] = self._pending[partition][-1]._replace(value=value)


def take_one_twice(self, max_records, out):
    taken = take(self, max_records, out)
    if taken == 2:
        self.seek(self.offset - 1)
    return taken


def first_partition_first(self, max_records):
    out = []
    for number, cursor in self._cursors.items():
        cursor.take(max_records - len(out), out)
        self._positions.set_read(number, cursor.offset)
    return out


def stale_tail(self):
    return self._tail or self._partition.recover()


WRONG = {
    "shows what was not flushed": (
        EmbeddedWriter,
        "append",
        append_and_show,
        contract.test_nothing_is_visible_before_the_flush_and_everything_after,
    ),
    "keeps the caller's buffer": (
        EmbeddedWriter,
        "append",
        append_without_copy,
        contract.test_the_buffer_owns_its_bytes,
    ),
    "forgets to flush on close": (
        EmbeddedWriter,
        "close",
        EmbeddedWriter.abandon,
        contract.test_closing_a_writer_flushes,
    ),
    "delivers twice": (Cursor, "take", take_one_twice, contract.test_a_reader_starts_again_where_it_committed),
    "starves a partition": (
        EmbeddedReader,
        "_poll_now",
        first_partition_first,
        contract.test_polling_is_fair_over_partitions,
    ),
    "starts again at what was read": (
        Positions,
        "committed",
        Positions.read_position,
        contract.test_a_reader_starts_again_where_it_committed,
    ),
    "counts lag from what was committed": (
        Positions,
        "read_position",
        Positions.released,
        contract.test_lag_counts_what_was_not_read_whatever_was_committed,
    ),
    "drops what a reader still needs": (
        Positions,
        "released",
        lambda self, partition: 1 << 40,
        contract.test_retention_drops_old_segments_that_every_reader_has_committed,
    ),
    "believes its own end of the log": (
        Appender,
        "_current_tail",
        stale_tail,
        contract.test_writers_interleave_and_nobody_loses,
    ),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_contract_catches_a_log_that(name, tmp_path, monkeypatch):
    owner, attribute, wrong, claim = WRONG[name]
    monkeypatch.setattr(owner, attribute, wrong)
    logs = []

    def opened(**options):
        logs.append(EmbeddedLog(str(tmp_path / "log"), LogConfig(**options)))
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
