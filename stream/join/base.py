"""What the joiner's engines share: they differ in who brings the records and who gives partitions, in nothing else.

An engine feeds `held`, whose flush is the only commit, keeps a hint of where it stands (`commit`, once a second), and
waits while the readers of `examples` are too far behind.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypedDict

from infra.config import WireConfig
from infra.eventlog import EventLog
from infra.eventlog.pressure import Pressure
from stream.examples import ExampleMeta
from stream.join.core import JoinSettings
from stream.join.held import NEVER_WAITED_FOR, HeldPartitions

COMMIT_EVERY_S = 1.0


class Options(TypedDict, total=False):
    """What any engine may be given; see `Worker`."""

    wire: WireConfig
    max_lag_records: int  # of the readers of `examples`
    while_waiting: Callable[[], object]
    stopping: Callable[[], bool]
    sleep: Callable[[float], None]
    clock: Callable[[], float]


class Worker(ABC):
    """Joins some partitions of a log until told otherwise. For one thread.

    `while not stopping: worker.step()`, then `worker.close()`; between steps nothing is unwritten.
    """

    def __init__(
        self,
        log: EventLog,
        settings: JoinSettings,
        *,
        wire: WireConfig = WireConfig(),  # noqa: B008 - frozen
        max_lag_records: int = 1 << 62,
        while_waiting: Callable[[], object] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._while_waiting = log, while_waiting
        self._stopping, self._sleep, self._clock = stopping, sleep, clock
        self._pressure = Pressure(log, "examples", max_lag_records, ignored=NEVER_WAITED_FOR)
        self.held = HeldPartitions(log, settings, wire, stopping=stopping, sleep=sleep)
        self.rebalances = 0
        self._next_commit = 0.0

    @abstractmethod
    def step(self, timeout_s: float = 0.0) -> int:
        """Take what was brought (waiting for the first), join it, make it durable; the number of records joined."""

    def close(self) -> None:
        """Flush, commit, let go."""
        self.flush()
        self.commit()
        self._let_go()
        self.held.close()

    @abstractmethod
    def _let_go(self) -> None:
        """Of whoever brings the records."""

    @property
    @abstractmethod
    def partitions(self) -> list[int]:
        """Those that it joins now."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Every partition's last record ends a replay, and nothing follows it in `events`; also in those of others."""

    @abstractmethod
    def _note(self, low: dict[int, int]) -> None:
        """Tell whom it concerns what a rebuild will never read again: before these offsets, by partition."""

    @abstractmethod
    def _built_anew(self, partition: int) -> None:
        """The core of a partition goes on from elsewhere, `held.next_offset`: another worker wrote to its output."""

    def flush(self) -> None:
        """Make every output durable."""
        self._pressure.wrote(len(self.held.outputs))
        for p in self.held.flush():
            self._built_anew(p)
        if self._clock() >= self._next_commit:
            self.commit()

    def commit(self) -> None:
        """Note L as the position: a hint for retention, nothing else."""
        self._note(self.held.low())
        self._next_commit = self._clock() + COMMIT_EVERY_S

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
        """Cumulative counters over its partitions, what is not yet written included."""
        return self.held.counts()

    def watermark_ms(self) -> int:
        """The smallest W."""
        return self.held.watermark_ms()

    def _hold_back(self) -> None:
        """Back-pressure: wait while a reader of `examples` is too far behind, but for the retrain."""
        while self._pressure.too_far() and not self._stopping():
            self._while_waiting()
            self._pressure.nap(self._sleep)
