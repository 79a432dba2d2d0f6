"""Whether the brokers answer: said once when they stop, once when they are back, and countable in between.

Nothing here decides anything: calls wait and go on by themselves; this tells a person, and a metric, that they do.
"""

import sys
import threading
import time
from collections.abc import Callable

SAY_AFTER_S = 2.0  # an answer that takes longer is an outage


def to_stderr(text: str) -> None:
    """One line for whoever watches; a full disk under our own output stops nothing."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return


class Link:
    """Shared by everything that one log opens; any thread may call it."""

    def __init__(
        self, where: str, say: Callable[[str], None] = to_stderr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._where, self._say, self._clock = where, say, clock
        self._lock = threading.Lock()
        self._down_since: float | None = None
        self._heard_at = float("-inf")
        self.outages = 0
        self.last_error = ""  # what a broker or the network said last, for messages

    @property
    def waiting_s(self) -> float:
        """How long nothing has answered, s; 0 while the brokers do."""
        since = self._down_since
        return 0.0 if since is None else max(self._clock() - since, 1e-9)

    def lost(self, why: str, *, for_s: float = 0.0) -> None:
        """Nothing answers, for `for_s` seconds already."""
        with self._lock:
            if self._down_since is not None:
                return
            self._down_since = self._clock() - for_s
            self.outages += 1
        self._say(f"{self._where}: no answer ({why}); waiting, and going on by itself when the brokers are back")

    def reported(self, why: str) -> None:
        """A client says that no connection is left. When it noticed it does not say: newer answers count more."""
        if self._clock() - self._heard_at >= SAY_AFTER_S:
            self.lost(why)

    def answered(self) -> None:
        """A broker did what it was asked."""
        self._heard_at = self._clock()
        if self._down_since is None:
            return
        with self._lock:
            since, self._down_since = self._down_since, None
        if since is not None:  # else another thread has said it
            self._say(f"{self._where}: answers again after {self._clock() - since:.1f} s")
