"""The embedded writer: a bounded buffer per partition, made durable together."""

import time

from infra.eventlog.appender import Appender
from infra.eventlog.base import Record
from infra.eventlog.frames import MAX_FRAME_BYTES, frame_bytes
from infra.eventlog.partition import Partition

MAX_TIMESTAMP_MS = (1 << 63) - 1


class EmbeddedWriter:
    """See `base.Writer`. Every writer has its own open files, so several in one process exclude each other too."""

    def __init__(self, partitions: list[Partition], *, segment_bytes: int, flush_bytes: int, flush_s: float) -> None:
        self._appenders = [Appender(partition, segment_bytes) for partition in partitions]
        self._pending: list[list[Record]] = [[] for _ in partitions]
        self._pending_bytes = 0
        self._flush_bytes = flush_bytes
        self._flush_s = flush_s
        self._oldest_s = 0.0
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
        size = frame_bytes(len(value), len(key), len(meta))
        if self.closed:
            raise ValueError("the writer is closed")
        if not 0 <= partition < len(self._pending):
            raise ValueError(f"partition {partition} of a topic with {len(self._pending)}")
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a record of {size} bytes; at most {MAX_FRAME_BYTES}: cut it into parts")
        if not -MAX_TIMESTAMP_MS <= timestamp_ms <= MAX_TIMESTAMP_MS:
            raise ValueError(f"timestamp {timestamp_ms} ms is no 64-bit number")
        if self._pending_bytes >= self._flush_bytes:
            self.flush()
        if not self._pending_bytes:
            self._oldest_s = time.monotonic()
        self._pending[partition].append(Record(-1, timestamp_ms, key, meta, value))
        self._pending_bytes += size

    def flush(self) -> None:
        try:
            for appender, records in zip(self._appenders, self._pending, strict=True):
                if records:
                    appender.append(records)
        finally:
            self._pending_bytes = sum(
                frame_bytes(len(r.value), len(r.key), len(r.meta)) for records in self._pending for r in records
            )

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
        """Let go of the files; what is buffered is dropped."""
        if not self.closed:
            self.closed = True
            for appender in self._appenders:
                appender.close()
