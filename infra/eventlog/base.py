"""What an event log is: topics of ordered partitions, written in flushes, read by named readers.

The law: what a reader sees is durable, stays, and is seen by every reader in the same order under the same offsets.
A record gets its offset when it is flushed, not when it is appended. Delivery to a named reader is at least once: it
starts again at what it *committed*; what it has *read* is back-pressure's business alone. Both
implementations, files (`log`) and Kafka (`kafka`), pass the same contract tests.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

TOPICS = ("events", "items", "examples", "versions", "control", "dead-letters")
KEYED_TOPICS = frozenset({"events", "examples"})  # one partition per `log.partitions`; the others have one
UNREADABLE_META = b"\xc1"  # `meta` of a record whose own cannot be read; msgpack never begins so


class Record(NamedTuple):
    """One record as it lies in a partition; `value` may be a view into a larger read."""

    offset: int
    timestamp_ms: int
    key: bytes
    meta: bytes
    value: bytes | memoryview


class Writer(Protocol):
    """Buffers records of one topic and makes them durable together. For one thread; many writers may share a topic."""

    @property
    def pending_bytes(self) -> int:
        """Bytes buffered and not yet durable."""

    def append(
        self,
        partition: int,
        value: bytes | memoryview,
        *,
        timestamp_ms: int,
        key: bytes = b"",
        meta: bytes = b"",
    ) -> None:
        """Buffer one record; a full buffer (`log.flush_bytes`) is flushed *before* the record is accepted.

        Raises RetryableError where that flush fails: the record was then not accepted. ValueError: no such partition,
        or a record beyond the size limit.
        """

    def flush(self) -> None:
        """Return once every buffered record is durable and visible.

        Raises RetryableError (disk full, failed fsync, lock held): the log is as before, what is not durable stays
        buffered in order, and a later flush writes it.
        """

    def flush_if_due(self) -> bool:
        """Flush when the oldest buffered record has waited `log.flush_s`; whether it did."""

    def close(self) -> None:
        """Flush, then let go of the files."""


class Reader(Protocol):
    """A named reader of some partitions of a topic: retention and back-pressure know it. For one thread."""

    def poll(self, max_records: int = 256, timeout_s: float = 0.0) -> list[tuple[int, Record]]:
        """Next (partition, record) pairs: offset order within a partition, fair over partitions.

        Waits up to `timeout_s` for the first. Advances the *read* positions past what it returns.
        Raises CorruptStateError where stored bytes contradict their checksum or a segment is missing.
        """

    def position(self, partition: int) -> int:
        """Next offset that `poll` returns."""

    def seek(self, partition: int, offset: int) -> None:
        """Read on from `offset`. ValueError outside [start_offset, end_offset]."""

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        """Durably note that everything before `positions` (default: all that was polled) is no longer needed."""

    def close(self) -> None:
        """Let go of the files; the reader stays registered with its positions."""


class EventLog(Protocol):
    """Topics by name. Safe to open from many processes at once."""

    @property
    def max_record_bytes(self) -> int:
        """Most bytes that value, key and meta of one record may have together; larger values travel in parts."""

    @property
    def waiting_s(self) -> float:
        """How long nothing has answered, s (brokers that are away); 0 while the log works."""

    def create_topic(self, topic: str, partitions: int) -> None:
        """Create a topic, or do nothing where it exists. Another partition count is a ConfigError."""

    def partitions(self, topic: str) -> int:
        """Number of partitions of a topic. ConfigError where it does not exist."""

    def writer(self, topic: str) -> Writer: ...

    def reader(self, topic: str, name: str, partitions: Sequence[int] | None = None) -> Reader:
        """Register (or resume) a named reader at its committed positions, else at the start of the log."""

    def start_offset(self, topic: str, partition: int) -> int:
        """Offset of the oldest kept record."""

    def end_offset(self, topic: str, partition: int) -> int:
        """Offset that the next record will get: one past the newest durable record."""

    def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int:
        """Offset of the first record at or after a time, else the end offset. Times need not ascend."""

    def last_record(self, topic: str, partition: int) -> Record | None:
        """The newest durable record, if any is kept."""

    def read(self, topic: str, partition: int, offset: int, max_records: int = 256) -> list[Record]:
        """Records from `offset` on, without a named reader. ValueError outside [start_offset, end_offset]."""

    def reader_lag(self, topic: str) -> dict[str, int]:
        """Per registered reader: the largest end offset − *read* position over its partitions, in records."""

    def read_positions(self, topic: str, name: str) -> dict[int, int]:
        """The next offset that a registered reader reads, by partition; what it does not read is left out."""

    def forget_reader(self, topic: str, name: str) -> None:
        """Remove a registration, so that retention and back-pressure stop waiting for it."""

    def retain(self, topic: str, *, before_ms: int) -> int:
        """Drop the oldest whole pieces whose records are all older than `before_ms` and committed by every reader.

        A piece is a segment of the embedded log, a record on Kafka. Returns the number of pieces dropped. The newest
        piece of a partition always stays: writers go on from the last record.
        """

    def close(self) -> None:
        """Let go of every file; writers and readers of this log are closed, buffered records dropped."""


def create_topics(log: EventLog, partitions: int) -> None:
    """Create every topic of the system: `partitions` for the keyed ones, one for the others."""
    for topic in TOPICS:
        log.create_topic(topic, partitions if topic in KEYED_TOPICS else 1)


def wait_for_readers(
    log: EventLog, topic: str, max_lag_records: int, *, stop: Callable[[], bool], poll_s: float = 0.002
) -> None:
    """Back-pressure: return once no registered reader is more than `max_lag_records` behind, or `stop()` says so.

    Goes by what was read, not committed. Flush first: a reader cannot catch up with what it cannot see.
    """
    while max(log.reader_lag(topic).values(), default=0) > max_lag_records and not stop():
        time.sleep(poll_s)
