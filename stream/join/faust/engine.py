"""The joiner with Faust as the one who brings the records: the same cores, the same commit, the same bytes.

Faust's word is a hint, like its committed offset. Before a record is fed, its offset is compared with the one that
the core takes next; what lies between is read from the log by our own client (`gaps`). Where Faust hands on nothing
for `OVERDUE_S` although the log goes on, the records are read without it. So what Faust loses is read later, never
left out; it is counted in `ouzel_faust_reread_total`.

For the log's sake (back-pressure, retention, `ouzel topics`) the positions are also kept under the joiner's name, as
the own engine keeps them: what was read, and L.
"""

import queue
import sys
import time
from collections.abc import Callable
from pathlib import Path

from infra.config import KafkaConfig, WireConfig
from infra.errors import OuzelError, RetryableError
from infra.eventlog import EventLog, Reader, Record
from infra.eventlog.kafka import KafkaLog
from infra.eventlog.pressure import Pressure
from infra.metrics import Metrics
from stream.examples import ExampleMeta
from stream.join.core import JoinSettings
from stream.join.faust.app import COMMIT_EVERY_S, FaustThread, app_settings
from stream.join.faust.gaps import by_partition, missing, stretches
from stream.join.faust.told import Assigned, Batch, Bringer, Failed
from stream.join.held import NEVER_WAITED_FOR, HeldPartitions

OVERDUE_S = 5.0
REREAD_RECORDS = 1_024  # at a time
WARNING = (
    "ouzel join --engine faust: Faust reads records that it never hands on. Positions are checked, and what is missing "
    f"is read from the log, up to {2 * OVERDUE_S:.0f} s later: the output is that of the own engine. Not guaranteed: "
    "that Faust's own metrics count such records; that an aborted transaction on `events` is skipped (Faust reads it); "
    "speed. See infra/docs/kafka.md"
)


def start_faust(
    log: KafkaLog,
    config: KafkaConfig,
    datadir: Path,
    *,
    name: str = "joiner",
    instance: str | None = None,
    metrics: Metrics | None = None,
) -> FaustThread:
    """Start Faust over `events`, and say what it does not guarantee.

    `datadir`: a folder that Faust makes, and leaves empty; `instance`: see `app_settings`.
    """
    print(WARNING, file=sys.stderr, flush=True)
    settings = app_settings(log.address, config, f"{name}-faust", datadir, instance)
    thread = FaustThread(settings, log.address.topic("events"), metrics)
    thread.start()
    return thread


class FaustFailed(OuzelError):
    """Faust has ended by itself; start the joiner again, it goes on from its output."""


class FaustWorker:
    """As `JoinWorker`, over the partitions that Faust's group gives it. For one thread; Faust runs in others."""

    def __init__(
        self,
        log: EventLog,
        settings: JoinSettings,
        bringer: Bringer,
        *,
        wire: WireConfig | None = None,
        name: str = "joiner",
        metrics: Metrics | None = None,
        max_lag_records: int = 1 << 62,
        overdue_s: float = OVERDUE_S,
        stopping: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bringer`: Faust, running (`start_faust`); it is stopped by `close`."""
        self._log, self._name, self._metrics = log, name, metrics
        self._pressure, self._overdue_s = (
            Pressure(log, "examples", max_lag_records, ignored=NEVER_WAITED_FOR),
            overdue_s,
        )
        self._stopping, self._sleep, self._clock = stopping, sleep, clock
        self.held = HeldPartitions(log, settings, wire or WireConfig(), stopping=stopping, sleep=sleep)
        self._active: frozenset[int] = frozenset()  # partitions that are ours now; others may be held, and not fed
        self._place: Reader | None = None
        self._looked: dict[int, tuple[int, int]] = {}  # next offset, and end of the log, at the last look
        self._next_look = self._next_commit = 0.0
        self.reread = 0
        self.rebalances = 0
        self._faust = bringer

    def step(self, timeout_s: float = 0.0) -> int:
        """Take what Faust has told (waiting for the first), join it, make it durable; the number of records joined."""
        before, reread = self._fed(), self.reread
        try:
            told = self._faust.inbox.get(timeout=timeout_s) if timeout_s else self._faust.inbox.get_nowait()
        except queue.Empty:
            told = None
        match told:
            case Batch(records):
                for p, some in by_partition(records).items():
                    self._take(p, some)
            case Assigned(partitions):
                self._assigned(partitions)
            case None:
                pass
            case Failed(why):
                raise FaustFailed(f"Faust ended: {why}; start the joiner again, it goes on from its output")
            case _:
                self._active -= told.partitions
        self._look_behind()
        self.flush()
        if self._metrics is not None:
            self._metrics.add("ouzel_faust_reread_total", self.reread - reread)
        if isinstance(told, Batch):
            self._hold_back()
        return max(self._fed() - before, 0)

    def flush(self) -> None:
        """Make every output durable. A core that was built anew finds its gap when the next record comes."""
        self._pressure.wrote(len(self.held.outputs))
        self.held.flush()
        if self._clock() >= self._next_commit:
            self.commit()

    def commit(self) -> None:
        """Acknowledge to Faust, and note for the log, what a rebuild will never read again: hints, all of them."""
        self._next_commit = self._clock() + COMMIT_EVERY_S
        low = {p: offset for p, offset in self.held.low().items() if p in self._active}
        self._faust.acknowledge(low)
        try:
            self._note(low)
        except RetryableError as error:  # a worker of the own engine died here: its group keeps its place for a while
            print(f"positions are not noted yet: {error}", file=sys.stderr, flush=True)

    def _note(self, low: dict[int, int]) -> None:
        """Keep positions under the joiner's name, for back-pressure and retention."""
        if self._place is None and self._active:
            self._place = self._log.reader("events", self._name, sorted(self._active))
        if self._place is None:
            return
        for p in self._active:
            self._place.seek(p, self.held.next_offset(p))
        if low:
            self._place.commit(low)

    @property
    def ended(self) -> bool:
        """Every partition's last record ends a replay, and nothing follows it in `events`; also in those of others."""
        return bool(self._active) and self.held.ended(self.held.next_offset) and self.held.others_ended()

    @property
    def partitions(self) -> list[int]:
        """Those that it joins now."""
        return sorted(self._active)

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
        """Cumulative counters over the partitions of this worker."""
        return self.held.counts()

    def watermark_ms(self) -> int:
        """The smallest W."""
        return self.held.watermark_ms()

    def close(self) -> None:
        """Flush, commit, let go."""
        self.flush()
        self.commit()
        self._faust.stop()
        if self._place is not None:
            self._place.close()
        self.held.close()

    def _assigned(self, partitions: frozenset[int]) -> None:
        """Hold these, and no others. A core whose output nobody touched meanwhile goes on as it is."""
        self.held.drop(self.held.joiners.keys() - partitions)
        for p in sorted(partitions):
            if p not in self.held.joiners or self.held.moved(p):
                self.held.start(p)
        self._active = partitions
        self.rebalances += 1
        self._looked.clear()
        self._next_look = self._clock() + self._overdue_s
        if self._place is not None:
            self._place.close()
            self._place = None

    def _take(self, p: int, records: list[Record]) -> None:
        """Feed what Faust handed on, and before each stretch what is missing."""
        if p not in self._active:
            return
        for stretch in stretches(records):
            if not self._read_on(p, stretch[0].offset):
                return
            self.held.feed(p, stretch)

    def _read_on(self, p: int, stop: int) -> bool:
        """Join what lies before `stop` and was not joined yet, without Faust; whether nothing is left of it.

        A flush may put the core back, and the gap is then larger.
        """
        while (start := self.held.next_offset(p)) < stop:
            if self._stopping():
                return False
            records = missing(self._log, p, start, stop, REREAD_RECORDS)
            if not records:
                return True  # compacted, or a transaction's marker: nothing was there
            self.reread += len(records)
            self.held.feed(p, records)
            self._pressure.wrote(len(self.held.outputs))
            self.held.flush()
        return True

    def _look_behind(self) -> None:
        """Where nothing came since the last look, read on to where the log ended then."""
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + self._overdue_s
        for p in sorted(self._active):
            at, end = self._looked.get(p, (-1, -1))
            if self.held.next_offset(p) == at:
                self._read_on(p, end)
            self._looked[p] = self.held.next_offset(p), self._log.end_offset("events", p)

    def _fed(self) -> int:
        return sum(joiner.next_offset for joiner in self.held.joiners.values())

    def _hold_back(self) -> None:
        """Back-pressure, as the own engine."""
        while self._pressure.too_far() and not self._stopping():
            self._pressure.nap(self._sleep)
