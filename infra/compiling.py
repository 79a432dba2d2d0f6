"""Says when numba compiles: a kernel's first use on a machine takes seconds, and whoever waits should know why.

numba keeps what it compiled beside the source, and broadcasts an event when it found nothing there. So a message
appears exactly when something is compiled, and never where everything came from the cache; nothing is guessed from
files.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba.core import event

KIND = "numba:compile"
REPEAT_S = 5.0


def to_stderr(line: str) -> None:
    """Where a message goes that nobody else takes."""
    print(line, file=sys.stderr, flush=True)


class Compiling(event.Listener):
    """Counts kernels as they are compiled, and says so: at the first one, and every few seconds while it goes on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.kernels: list[str] = []
        self.seconds = 0.0  # of the outermost compilations: a kernel compiles those that it calls
        self._say, self._depth, self._began, self._next = say, 0, 0.0, 0.0

    def on_start(self, event: event.Event) -> None:
        """A compilation begins."""
        now = time.monotonic()
        if not self._depth:
            self._began = now
        self._depth += 1
        if not self.kernels:
            self._say("compiling kernels (once, cached): some seconds …")
            self._next = now + REPEAT_S
        elif now >= self._next:
            self._say(f"compiling kernels (once, cached): {len(self.kernels)} done …")
            self._next = now + REPEAT_S
        self.kernels.append(event.data["dispatcher"].__name__)

    def on_end(self, event: event.Event) -> None:
        """A compilation ended."""
        self._depth -= 1
        if not self._depth:
            self.seconds += time.monotonic() - self._began


@contextmanager
def announced(say: Callable[[str], None] = to_stderr) -> Iterator[Compiling]:
    """Say what is compiled within: `with announced(console.print) as compiling: …`. Silent where nothing is."""
    listener = Compiling(say)
    event.register(KIND, listener)  # type: ignore[no-untyped-call]
    try:
        yield listener
    finally:
        event.unregister(KIND, listener)  # type: ignore[no-untyped-call]
        if listener.kernels:
            say(f"compiled {len(listener.kernels)} kernels in {listener.seconds:.1f} s")
