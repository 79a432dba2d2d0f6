"""What every contender is: a process of its own that fills itself once and then does what it is asked, one line a time.

`python -m tests.bench.table.contender NAME KEYS DIM` reads JSON from standard input, answers on standard output, and
ends with its input. The driver asks one contender at a time, so that the others wait and take no processor.
"""

import gc
import importlib
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import psutil

from tests.bench.table.inputs import Inputs

TOUCHED_BYTES = 384  # a row of 32 floats, its place in a dict, and Python's integers
FILL = 16_384  # keys a call while filling: what a call needs for itself stays small beside what is measured
Item = TypeVar("Item")
Answer = dict[str, float]

MODULES = {
    "ours": "tests.bench.table.ours",
    "expiring": "tests.bench.table.expiring",
    "index_select": "tests.bench.table.known_rows",
    "dict": "tests.bench.table.dictionary",
    "lines": "tests.bench.table.lines",
    "torchrec": "tests.bench.table.managed_collision",
    "torch_adagrad": "tests.bench.table.torch_adagrad",
}


class Contender:
    """A table, or what stands in for one. A method with the name of a case measures it."""

    def __init__(self, inputs: Inputs, dim: int) -> None:
        self.inputs, self.dim = inputs, dim

    def fill(self) -> None:
        """Hold all keys, in order of their numbers."""

    def account(self) -> Answer:
        """Bytes by its own account, where it keeps one."""
        return {}


def touch_memory(ids: int) -> None:
    """Use memory and give it back, as much as an insert of so many keys takes, before the timer of either side.

    A virtual machine gets a page from its host when it is first touched, which took 110 ns a row of 32 here: that is
    the host's time, the same for whoever comes first. Without this, `insert` ran at 5 times the dict's rate.
    """
    np.ones(ids * TOUCHED_BYTES // 8).sum()


def touch_output(batch: int, dim: int) -> None:
    """Use memory as large as what a call returns, and give it back: the first call finds it as the others do.

    Large arrays come from the system each time and go back to it. Where others had been freed before, as the inputs of
    `1 % new` are, the first of four calls took up to 50 ns a key and not 28.
    """
    np.ones((batch, dim), np.float32)


def timed(step: Callable[[Item], object], batches: Iterable[Item]) -> Answer:
    """Seconds for all batches, by the clock and of this thread, and of the longest call."""
    longest, cpu, last = 0.0, time.thread_time(), time.perf_counter()
    started = last
    for batch in batches:
        step(batch)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return {"seconds": last - started, "cpu_s": time.thread_time() - cpu, "longest_s": longest}


def at_once(step: Callable[[int, Item], object], batches: Sequence[Item], threads: int = 2) -> Answer:
    """Seconds by the clock that threads need for all batches, each taking its share; a step learns whose it is."""
    start = threading.Barrier(threads + 1)

    def share(me: int) -> None:
        start.wait()
        for batch in batches[me::threads]:
            step(me, batch)

    running = [threading.Thread(target=share, args=(me,)) for me in range(threads)]
    for thread in running:
        thread.start()
    start.wait()
    started = time.perf_counter()
    for thread in running:
        thread.join()
    return {"seconds": time.perf_counter() - started}


def at_once_apart(step: Callable[[int, Item], object], batches: Sequence[Item], processes: int = 2) -> Answer:
    """`at_once` by forked processes, which share what there is in memory and no interpreter."""
    fork = multiprocessing.get_context("fork")
    start, times = fork.Barrier(processes), fork.SimpleQueue()

    def share(me: int) -> None:
        step(me, batches[0])  # its own copies of pages
        start.wait()
        started = time.perf_counter()
        for batch in batches[me::processes]:
            step(me, batch)
        times.put((started, time.perf_counter()))

    running = [fork.Process(target=share, args=(me,)) for me in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a forked process ended with {process.exitcode}; its error is above")
    starts, ends = zip(*(times.get() for _ in running), strict=True)
    return {"seconds": max(ends) - min(starts)}


def _filled(contender: Contender) -> Answer:
    gc.collect()
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    contender.fill()
    seconds = time.perf_counter() - started
    gc.collect()
    taken = psutil.Process().memory_info().rss - before
    return {"seconds": seconds, "resident_bytes": taken, **contender.account()}


def main() -> None:
    """Entry point of a contender's process."""
    name, keys, dim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    contender: Contender = importlib.import_module(MODULES[name]).CONTENDER(Inputs(keys), dim)
    gc.disable()  # nobody is to pay for a collection that another one's garbage caused
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        case = request.pop("case")
        answer = _filled(contender) if case == "fill" else getattr(contender, case)(**request)
        gc.collect()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
