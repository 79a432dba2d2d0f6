"""Waiting out what the log or the disk says can be tried again: loudly counted, and never pretending."""

import sys
import time
from collections.abc import Callable

from infra.errors import RetryableError


class Retrier:
    """Runs an action until it succeeds; the number of failed tries is in `retries`.

    It says so after the first failed try of an action, the second, the fourth: an outage of hours is some lines.
    """

    def __init__(
        self, stopping: Callable[[], bool] = lambda: False, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.stopping = stopping
        self.sleep = sleep
        self.retries = 0

    def __call__(self, action: Callable[[], object]) -> None:
        """Raises the last RetryableError where the process is told to stop meanwhile."""
        failed = 0
        while True:
            try:
                action()
                return
            except RetryableError as error:
                self.retries += 1
                failed += 1
                if failed & (failed - 1) == 0:
                    _say(f"waiting, to try again: {error}")
                if self.stopping():
                    raise
                self.sleep(error.after_s)


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return  # our own output lies on the disk that refuses: the supervisor says so
