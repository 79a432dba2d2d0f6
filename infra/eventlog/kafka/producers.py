"""Idle producers of this process, lent again: a new one waits half a second for its id, whatever the brokers do.

(librdkafka asks for the id of an idempotent producer over the first connection, finds that it has just been replaced,
and tries again 500 ms later.) A producer is kept only when everything it was given is acknowledged; its numbering then
goes on where it was, so that the next writer's records are as safe from doubling as the last one's.
"""

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

MAX_IDLE = 4


class Lent:
    """A producer and whom its callbacks reach: the writer that has it now."""

    def __init__(self, key: object) -> None:
        self.key, self.process = key, os.getpid()
        self.client: Any = None
        self.on_delivery: Callable[[Any], None] = _nobody
        self.on_error: Callable[[Any], None] = _nobody

    def delivered(self, error: Any, _message: Any) -> None:
        if error is not None:
            self.on_delivery(error)


def _nobody(_error: Any) -> None:
    """The ear of an idle producer: what its connection meets, the next writer meets again."""


class Producers:
    """At most `MAX_IDLE` idle producers, the longest idle first to go. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Lent] = []

    def take(self, settings: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Any]) -> Lent:
        """A producer with these settings, idle or new; the caller sets its ears."""
        key = frozenset(settings.items())
        with self._lock:
            for lent in reversed(self._idle):
                if lent.key == key and lent.process == os.getpid():
                    self._idle.remove(lent)
                    return lent
        lent = Lent(key)
        lent.client = make({**settings, "on_delivery": lent.delivered, "error_cb": lambda error: lent.on_error(error)})
        return lent

    def give_back(self, lent: Lent) -> None:
        """Keep a producer that has nothing left to do."""
        lent.on_delivery = lent.on_error = _nobody
        with self._lock:
            self._idle.append(lent)
            del self._idle[:-MAX_IDLE]


PRODUCERS = Producers()
