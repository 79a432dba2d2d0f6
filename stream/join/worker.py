"""The joiner's own loop: reads `events`, feeds one core per partition, appends what comes out to `examples`.

What it writes is the only commit (`held`). Once a second it commits L as the reader's position: a hint for retention,
nothing else.

Which partitions: those that it is given, or, as one of several workers (`grouped`), those that the log's group protocol
gives it. A partition that comes is built from the last record of its output, like after a restart; one that goes is
forgotten. Rebalances happen inside `poll` and `commit`, where nothing is unwritten. A worker that was stopped and
finds itself replaced may still append what it had made: identical bytes, which readers drop by their number.
"""

import time
from collections.abc import Callable, Sequence

from infra.config import WireConfig
from infra.errors import ConfigError
from infra.eventlog import EventLog, GroupLog, Member
from infra.eventlog.pressure import Pressure
from stream.examples import ExampleMeta
from stream.join.core import JoinSettings
from stream.join.held import NEVER_WAITED_FOR, HeldPartitions

POLL_RECORDS = 128
LOOK_AT_OTHERS_S = 0.25  # how often a worker without work looks whether the others have ended
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
        grouped: bool = False,
        wire: WireConfig | None = None,
        name: str = "joiner",
        max_lag_records: int = 1 << 62,
        while_waiting: Callable[[], object] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`grouped`: be one of the workers of this name, in a log that has groups; `partitions` is then not given."""
        self._log, self._grouped, self._while_waiting = log, grouped, while_waiting
        self._pressure = Pressure(log, "examples", max_lag_records, ignored=NEVER_WAITED_FOR)
        self._stopping, self._sleep, self._clock = stopping, sleep, clock
        self.held = HeldPartitions(log, settings, wire or WireConfig(), stopping=stopping, sleep=sleep)
        self._next_commit = self._next_look = 0.0
        self.rebalances = 0
        if grouped:
            if not isinstance(log, GroupLog):
                raise ConfigError("only a log on Kafka has workers that share its partitions; here one joins them all")
            self._reader = log.member("events", name, Member(self._given, self._taken, self._taken))
            return
        numbers = list(range(log.partitions("events")) if partitions is None else partitions)
        self._reader = log.reader("events", name, numbers)
        for p in numbers:
            self._reader.seek(p, self.held.start(p))

    @property
    def partitions(self) -> list[int]:
        """Those that it joins now."""
        return sorted(self.held.joiners)

    def step(self, timeout_s: float = 0.0) -> int:
        """Read what is there (waiting for the first record), join it, make it durable; the number of records read."""
        records = self._reader.poll(POLL_RECORDS, timeout_s)
        for p in sorted({p for p, _ in records}):
            self.held.feed(p, [record for q, record in records if q == p])
        self.flush()
        if records:
            self._hold_back()
        return len(records)

    def flush(self) -> None:
        """Make every output durable; a partition that has another writer is read on from where that one is."""
        self._pressure.wrote(len(self.held.outputs))
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
        """Every partition's last record ends a replay, and nothing follows it in `events`; also in those of others."""
        return self.held.ended(self._reader.position) and (not self._grouped or self._others_ended())

    def _others_ended(self) -> bool:
        """Whether the last record of every partition that another worker joins ends a replay."""
        if self._clock() < self._next_look:
            return False
        self._next_look = self._clock() + LOOK_AT_OTHERS_S
        return self.held.others_ended()

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
        while self._pressure.too_far() and not self._stopping():
            self._while_waiting()
            self._pressure.nap(self._sleep)

    def _given(self, numbers: list[int]) -> dict[int, int]:
        """Partitions that another worker had, or nobody: where to read on in each."""
        self.rebalances += 1
        return {p: self.held.start(p) for p in numbers}

    def _taken(self, numbers: list[int]) -> None:
        """Partitions that are another worker's now, who goes on from what is durable."""
        self.rebalances += 1
        self.held.drop(numbers)
