"""The Kafka writer: a bounded buffer, handed to an idempotent producer by each flush, waited for until acknowledged.

1. `append` buffers here: nothing is visible before the flush.
2. `flush` hands the buffer over, in order. From then on the producer holds it, and tries again without end: a broker
   that restarts, a leader that moves or a cut network neither loses, doubles nor reorders (sequence numbers within a
   partition, `acks=all`). One request at a time: a broker takes any first number from a producer that it does not know,
   so that of several requests under way to a partition just made or moved, the first can be refused, the second be
   taken, and the first, sent again, be mistaken for a duplicate: acknowledged, and lost (seen in 1 of 12 new topics).
3. `flush` returns when everything is acknowledged by all in-sync replicas. Where that takes longer than `FLUSH_S` it
   raises RetryableError; the records stay with the producer, some may already be visible, and the next flush waits on.

What the embedded log can promise and this cannot: after a SIGKILL, bytes that the kernel already held may still reach
the broker, milliseconds after the process is gone.
"""

import time
from collections import deque
from typing import Any

from confluent_kafka import KafkaException

from infra.eventlog.base import Record
from infra.eventlog.kafka.cluster import Cluster, passes
from infra.eventlog.kafka.link import SAY_AFTER_S
from infra.eventlog.kafka.producers import PRODUCERS, Lent
from infra.eventlog.kafka.records import FRAME_BYTES, MAX_TIMESTAMP_MS, headers_of, wire_time

FLUSH_S = 10.0  # how long one flush waits; whoever called decides whether to stop or to wait on
TURN_S = 0.5


class KafkaWriter:
    """See `base.Writer`."""

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        partitions: int,
        *,
        flush_bytes: int,
        flush_s: float,
        compression: str,
        appended: bool = False,
        flush_wait_s: float = FLUSH_S,
    ) -> None:
        """`appended`: the broker may write the messages' timestamps, so that each record says its own."""
        self._compression, self._appended = compression, appended
        self._cluster, self._topic, self._partitions = cluster, topic, partitions
        self._max_bytes = cluster.config.max_record_bytes - FRAME_BYTES
        self._flush_bytes, self._flush_s, self._flush_wait_s = flush_bytes, flush_s, flush_wait_s
        self._buffer: deque[tuple[int, Record]] = deque()
        self._pending_bytes = 0
        self._oldest_s = 0.0
        self._lent: Lent | None = None
        self._failed: Any = None  # the KafkaError of a record that no waiting will make durable
        self.closed = False

    @property
    def pending_bytes(self) -> int:
        return self._pending_bytes

    def append(
        self,
        partition: int,
        value: bytes | memoryview,
        *,
        timestamp_ms: int,
        key: bytes = b"",
        meta: bytes = b"",
    ) -> None:
        value = bytes(value)
        size = len(value) + len(key) + len(meta)
        if self.closed:
            raise ValueError("the writer is closed")
        if not 0 <= partition < self._partitions:
            raise ValueError(f"partition {partition} of a topic with {self._partitions}")
        if size > self._max_bytes:
            raise ValueError(f"a record of {size} bytes; at most {self._max_bytes}: cut it into parts")
        if not -MAX_TIMESTAMP_MS <= timestamp_ms <= MAX_TIMESTAMP_MS:
            raise ValueError(f"timestamp {timestamp_ms} ms is no 64-bit number")
        if self._pending_bytes >= self._flush_bytes:
            self.flush()
        if not self._pending_bytes:
            self._oldest_s = time.monotonic()
        self._buffer.append((partition, Record(-1, timestamp_ms, key, meta, value)))
        self._pending_bytes += size + FRAME_BYTES

    def flush(self) -> None:
        if not self._pending_bytes:
            return
        started = time.monotonic()
        if self._lent is None:
            self._lent = self._cluster.producer(self._settings(), self._on_failure)
        producer = self._lent.client
        self._hand_over(producer, started)
        while producer.flush(TURN_S):
            self._check(started)
        self._check(None)
        self._pending_bytes = 0
        self._cluster.link.answered()

    def _hand_over(self, producer: Any, started: float) -> None:
        now_ms = int(time.time() * 1000)
        while self._buffer:
            partition, record = self._buffer[0]
            wire_ms = wire_time(record.timestamp_ms, now_ms)
            try:
                producer.produce(
                    self._topic,
                    record.value,
                    record.key or None,
                    partition,
                    timestamp=wire_ms,
                    headers=headers_of(record.timestamp_ms, wire_ms, record.meta, appended=self._appended),
                )
            except BufferError:  # the producer's own queue is full: it moves on as the brokers answer
                producer.poll(TURN_S)
                self._check(started)
            except KafkaException as error:
                if passes(error.args[0]):
                    raise self._cluster.no_answer("producing", 0, error.args[0].str()) from error
                raise self._cluster.verdict(f"writing {self._topic}", error.args[0]) from error
            else:
                self._buffer.popleft()

    def _check(self, started: float | None) -> None:
        """Say that we wait; raise what failed for good, or that one flush has waited long enough."""
        if self._failed is not None:
            raise self._cluster.verdict(f"writing {self._topic}", self._failed)
        if started is None:
            return
        waited = time.monotonic() - started
        if waited >= SAY_AFTER_S:
            self._cluster.link.lost(f"writing {self._topic}", for_s=waited)
        if waited >= self._flush_wait_s:
            raise self._cluster.no_answer(f"flushing {self._topic}", waited, "records wait in the producer")

    def flush_if_due(self) -> bool:
        if not self._pending_bytes or time.monotonic() - self._oldest_s < self._flush_s:
            return False
        self.flush()
        return True

    def close(self) -> None:
        if not self.closed:
            self.flush()
            self.abandon()

    def abandon(self) -> None:
        """Let go; what is not acknowledged is dropped here, and may still be on its way."""
        if not self.closed:
            self.closed = True
            lent, self._lent = self._lent, None
            if lent is None:
                return
            if self._failed is None and not lent.client.flush(0):
                PRODUCERS.give_back(lent)
            else:
                lent.client.purge()
                lent.client.flush(0)

    def _on_failure(self, error: Any) -> None:
        """A record that the producer does not try again."""
        if self._failed is None:
            self._failed = error

    def _settings(self) -> dict[str, Any]:
        config = self._cluster.config
        return {
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": 0,  # no end: whether to stop is decided above
            "max.in.flight.requests.per.connection": 1,
            "message.max.bytes": config.max_record_bytes,
            "batch.size": min(1 << 20, config.max_record_bytes),
            "batch.num.messages": 100_000,
            "linger.ms": 5,  # a flush does not wait for it
            "queue.buffering.max.kbytes": max(4 * self._flush_bytes, 64 << 20) >> 10,
            "queue.buffering.max.messages": 200_000,
            "compression.type": self._compression,
            "partitioner": "murmur2_random",
            "delivery.report.only.error": True,
            "retry.backoff.ms": 50,
        }
