"""The joiner's own loop: reads `events`, feeds one core per partition, appends what comes out to `examples`.

What it writes is the only commit (`held`). Once a second it commits L as the reader's position: a hint for retention,
nothing else.

Which partitions: those that it is given, or, as one of several workers (`grouped`), those that the log's group protocol
gives it. A partition that comes is built from the last record of its output, like after a restart; one that goes is
forgotten. Rebalances happen inside `poll` and `commit`, where nothing is unwritten. A worker that was stopped and
finds itself replaced may still append what it had made: identical bytes, which readers drop by their number.
"""

from collections.abc import Sequence
from typing import Unpack

from infra.errors import ConfigError
from infra.eventlog import EventLog, GroupLog, Member
from stream.join.base import Options, Worker
from stream.join.core import JoinSettings

POLL_RECORDS = 128
LOOK_AT_OTHERS_S = 0.25  # how often a worker without work looks whether the others have ended


class JoinWorker(Worker):
    """See `base.Worker`. Its partitions: those given, or, `grouped`, those of Kafka's group protocol."""

    def __init__(
        self,
        log: EventLog,
        settings: JoinSettings,
        partitions: Sequence[int] | None = None,
        *,
        grouped: bool = False,
        name: str = "joiner",
        **options: Unpack[Options],
    ) -> None:
        """`grouped`: be one of the workers of this name, in a log that has groups; `partitions` is then not given."""
        super().__init__(log, settings, **options)
        self._grouped, self._next_look = grouped, 0.0
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
        return sorted(self.held.joiners)

    def step(self, timeout_s: float = 0.0) -> int:
        records = self._reader.poll(POLL_RECORDS, timeout_s)
        for p in sorted({p for p, _ in records}):
            self.held.feed(p, [record for q, record in records if q == p])
        self.flush()
        if records:
            self._hold_back()
        return len(records)

    def _note(self, low: dict[int, int]) -> None:
        if low:
            self._reader.commit(low)

    def _built_anew(self, partition: int) -> None:
        self._reader.seek(partition, self.held.next_offset(partition))

    @property
    def ended(self) -> bool:
        return self.held.ended(self._reader.position) and (not self._grouped or self._others_ended())

    def _others_ended(self) -> bool:
        """Whether the last record of every partition that another worker joins ends a replay."""
        if self._clock() < self._next_look:
            return False
        self._next_look = self._clock() + LOOK_AT_OTHERS_S
        return self.held.others_ended()

    def _let_go(self) -> None:
        self._reader.close()

    def _given(self, numbers: list[int]) -> dict[int, int]:
        """Partitions that another worker had, or nobody: where to read on in each."""
        self.rebalances += 1
        return {p: self.held.start(p) for p in numbers}

    def _taken(self, numbers: list[int]) -> None:
        """Partitions that are another worker's now, who goes on from what is durable."""
        self.rebalances += 1
        self.held.drop(numbers)
