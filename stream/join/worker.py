"""The joiner's own loop: reads `events`, feeds one core per partition, appends what comes out to `examples`.

What it writes is the only commit (`held`). Once a second it commits L as the reader's position: a hint for retention,
nothing else.
"""

import time
from collections.abc import Callable, Sequence

from infra.config import WireConfig
from infra.eventlog import EventLog
from stream.examples import ExampleMeta
from stream.join.core import JoinSettings
from stream.join.held import HeldPartitions, lag_of_readers

POLL_RECORDS = 128
COMMIT_EVERY_S = 1.0


class JoinWorker:
    """Joins some partitions of a log until told otherwise. For one thread.

    `while not stopping: worker.step()`, then `worker.close()`; between steps nothing is unwritten.
    """

    def __init__(
        self,
        log: EventLog,
        settings: JoinSettings,
        partitions: Sequence[int] | None = None,
        *,
        wire: WireConfig | None = None,
        name: str = "joiner",
        max_lag_records: int = 1 << 62,
        while_waiting: Callable[[], object] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._max_lag, self._while_waiting = max_lag_records, while_waiting
        self._stopping, self._sleep, self._clock = stopping, sleep, clock
        numbers = list(range(log.partitions("events")) if partitions is None else partitions)
        self._reader = log.reader("events", name, numbers)
        self.held = HeldPartitions(log, settings, wire or WireConfig(), stopping=stopping, sleep=sleep)
        self._next_commit = 0.0
        for p in numbers:
            self._reader.seek(p, self.held.start(p))

    def step(self, timeout_s: float = 0.0) -> int:
        """Read what is there (waiting for the first record), join it, make it durable; the number of records read."""
        records = self._reader.poll(POLL_RECORDS, timeout_s)
        for p in self.held.joiners:
            self.held.feed(p, [record for q, record in records if q == p])
        self.flush()
        if records:
            self._hold_back()
        return len(records)

    def flush(self) -> None:
        """Make every output durable; a partition that has another writer is read on from where that one is."""
        for p in self.held.flush():
            self._reader.seek(p, self.held.next_offset(p))
        if self._clock() >= self._next_commit:
            self.commit()

    def commit(self) -> None:
        """Tell retention what a rebuild will never read again."""
        if low := self.held.low():
            self._reader.commit(low)
        self._next_commit = self._clock() + COMMIT_EVERY_S

    @property
    def ended(self) -> bool:
        """Every partition's last record ends a replay, and nothing follows it in `events`."""
        return self.held.ended(self._reader.position)

    @property
    def resyncs(self) -> int:
        """How often another worker was found to have written to a partition of this one."""
        return self.held.resyncs

    @property
    def dead(self) -> dict[str, int]:
        """Dead events by reason, since this worker began."""
        return self.held.dead

    def last(self, partition: int) -> ExampleMeta | None:
        """Meta of the last durable record of a partition."""
        return self.held.last[partition]

    def counts(self) -> dict[str, int]:
        """Cumulative counters over all partitions, what is not yet written included."""
        return self.held.counts()

    def watermark_ms(self) -> int:
        """The smallest W."""
        return self.held.watermark_ms()

    def close(self) -> None:
        """Flush, commit, let go."""
        self.flush()
        self.commit()
        self._reader.close()
        self.held.close()

    def _hold_back(self) -> None:
        """Back-pressure: wait while a reader of `examples` is too far behind, but for the retrain."""
        while lag_of_readers(self._log) > self._max_lag and not self._stopping():
            self._while_waiting()
            self._sleep(0.002)
