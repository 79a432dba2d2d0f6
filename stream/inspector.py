"""Buries what is malformed in `items`. Readers of the catalogue pass over it; one process writes the dead letters.

It reads every record as the catalogue's readers do, decides nothing, and commits behind what it has buried: after a
crash a letter may come again under its key.
"""

from collections.abc import Callable

from infra.config import WireConfig
from infra.eventlog import EventLog, GroupLog, Member
from stream.deadletters import TOPIC, Buried, letter_of
from stream.retry import Retrier
from stream.wire.dead import DeadRow
from stream.wire.items import read_items
from stream.wire.limits import Rules

NAME = "inspector"
_RECORDS = 64


class ItemsInspector:
    """`step()` until it returns 0. For one thread."""

    def __init__(
        self,
        log: EventLog,
        wire: WireConfig,
        *,
        skew_ms: int,
        grouped: bool = False,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`grouped`: of all that run, in a log that has groups, the one to which it gives the topic's partition."""
        self._rules = Rules(wire, skew_ms)
        self._dead, self._most_bytes = log.writer(TOPIC), log.max_record_bytes
        if grouped and isinstance(log, GroupLog):
            self._reader = log.member("items", NAME, Member(self._given, self._taken, self._taken))
        else:
            self._reader = log.reader("items", NAME)
        self._buried, self._until_done = Buried(log), Retrier(stopping)
        self._buried.update()
        self.dead: dict[str, int] = {}  # by reason, since this inspector began

    def _given(self, _partitions: list[int]) -> None:
        self._buried.update()  # what another has buried behind its last commit

    def _taken(self, _partitions: list[int]) -> None:
        """Nothing is unwritten between steps."""

    def step(self) -> int:
        """Look at what is there; the number of records read."""
        records = self._reader.poll(_RECORDS)
        for _, record in records:
            buried = self._buried.rows("items", 0, record.offset)
            for dead in read_items(record, self._rules, buried).dead:
                self._bury(dead, record.timestamp_ms)
        if records:
            self._until_done(self._dead.flush)
            self._reader.commit()
        return len(records)

    def _bury(self, dead: DeadRow, timestamp_ms: int) -> None:
        letter = letter_of(dead, "items", 0, timestamp_ms, most_bytes=self._most_bytes)
        reason = letter.meta.reason
        self.dead[reason] = self.dead.get(reason, 0) + letter.meta.events
        self._until_done(lambda: letter.append_to(self._dead))

    def close(self) -> None:
        """Let go of the log."""
        self._reader.close()
        self._dead.close()
