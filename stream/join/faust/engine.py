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
from pathlib import Path
from typing import Unpack

from infra.config import KafkaConfig
from infra.errors import OuzelError, RetryableError
from infra.eventlog import EventLog, Reader, Record
from infra.eventlog.kafka import KafkaLog
from infra.metrics import Metrics
from stream.join.base import Options, Worker
from stream.join.core import JoinSettings
from stream.join.faust.app import FaustThread, app_settings
from stream.join.faust.gaps import by_partition, missing, stretches
from stream.join.faust.told import Assigned, Batch, Bringer, Failed

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


class FaustWorker(Worker):
    """See `base.Worker`. Its partitions are those that Faust's group gives it; Faust runs in threads of its own."""

    def __init__(
        self,
        log: EventLog,
        settings: JoinSettings,
        bringer: Bringer,
        *,
        name: str = "joiner",
        metrics: Metrics | None = None,
        overdue_s: float = OVERDUE_S,
        **options: Unpack[Options],
    ) -> None:
        """`bringer`: Faust, running (`start_faust`); it is stopped by `close`."""
        super().__init__(log, settings, **options)
        self._name, self._metrics, self._overdue_s = name, metrics, overdue_s
        self._active: frozenset[int] = frozenset()  # partitions that are ours now; others may be held, and not fed
        self._place: Reader | None = None
        self._looked: dict[int, tuple[int, int]] = {}  # next offset, and end of the log, at the last look
        self._next_look = 0.0
        self.reread = 0
        self._faust = bringer

    def step(self, timeout_s: float = 0.0) -> int:
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

    def _note(self, low: dict[int, int]) -> None:
        """Acknowledge to Faust, and keep positions under the joiner's name: hints, all of them."""
        low = {p: offset for p, offset in low.items() if p in self._active}
        self._faust.acknowledge(low)
        try:
            self._keep_place(low)
        except RetryableError as error:  # a worker of the own engine died here: its group keeps its place for a while
            print(f"positions are not noted yet: {error}", file=sys.stderr, flush=True)

    def _keep_place(self, low: dict[int, int]) -> None:
        """For back-pressure and retention."""
        if self._place is None and self._active:
            self._place = self._log.reader("events", self._name, sorted(self._active))
        if self._place is None:
            return
        for p in self._active:
            self._place.seek(p, self.held.next_offset(p))
        if low:
            self._place.commit(low)

    def _built_anew(self, partition: int) -> None:
        """Nothing: the gap is found when the next record comes."""

    @property
    def ended(self) -> bool:
        return bool(self._active) and self.held.ended(self.held.next_offset) and self.held.others_ended()

    @property
    def partitions(self) -> list[int]:
        return sorted(self._active)

    def _let_go(self) -> None:
        self._faust.stop()
        if self._place is not None:
            self._place.close()

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
