"""Back-pressure without asking more often than needed: on a cluster every look at the readers costs requests.

After a look that found the slowest reader L records behind, a writer may append `limit` − L more before the next look
can find too much. Nothing here goes by wall time, so the bound is as sharp as with a look at every record, but for
readers that begin in between.
"""

import time
from collections.abc import Callable

from infra.eventlog.base import EventLog

LOOK_EVERY_S = 0.5
FIRST_NAP_S = 0.002


class Pressure:
    """How far one writer of a topic may still run ahead of its readers. For one thread."""

    def __init__(self, log: EventLog, topic: str, limit: int, *, ignored: frozenset[str] = frozenset()) -> None:
        self._log, self._topic, self._limit, self._ignored = log, topic, limit, ignored
        self._room = 0  # records that may be appended before the next look
        self._look_s = 0.0  # what the last look took

    def wrote(self, records: int = 1) -> None:
        """So many records were made durable since."""
        self._room -= records

    def too_far(self) -> bool:
        """Whether a reader that counts is more than `limit` records behind. Goes by what was read, not committed."""
        if self._room > 0:
            return False
        started = time.perf_counter()
        lags = self._log.reader_lag(self._topic).items()
        self._look_s = time.perf_counter() - started
        lag = max((lag for name, lag in lags if name not in self._ignored), default=0)
        self._room = self._limit - lag
        return lag > self._limit

    def nap(self, sleep: Callable[[float], None]) -> None:
        """Wait a little between two looks: as long as a look takes, so that waiting costs readers little."""
        sleep(max(FIRST_NAP_S, min(self._look_s, LOOK_EVERY_S)))


class Lags:
    """Lag by reader, for people and metrics: asked at most twice a second."""

    def __init__(self, log: EventLog, topic: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._topic, self._clock = log, topic, clock
        self._next, self._last = float("-inf"), dict[str, int]()

    def of(self, reader: str) -> int:
        """Records that a reader has still to read, in the partition where it has most."""
        return self.all().get(reader, 0)

    def all(self) -> dict[str, int]:
        """As `EventLog.reader_lag`, half a second old at most; older while no broker answers: no work waits for it."""
        if self._clock() >= self._next and not self._log.waiting_s:
            self._last = self._log.reader_lag(self._topic)
            self._next = self._clock() + LOOK_EVERY_S
        return self._last
