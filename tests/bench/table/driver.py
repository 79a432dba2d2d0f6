"""Runs comparisons: a fresh process for each side, ABAB, medians.

Sides of comparisons that follow one another and name the same two processes share them; all others end and give their
memory back.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.bench.table.contender import FILL
from tests.bench.table.plan import Comparison, Side, at_highest_load

ROOT = Path(__file__).resolve().parents[3]
TORCHREC = ROOT / "build/bench/torchrec"  # put there by `make bench-table`
Record = dict[str, Any]


class Worker:
    """A contender's process."""

    def __init__(self, side: Side, keys: int) -> None:
        self.keys = max(1, round(keys * side.scale))
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        path = os.pathsep.join((str(ROOT), str(TORCHREC)))
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.table.contender"]
        self._process = subprocess.Popen(
            [*command, side.contender, str(self.keys), str(side.dim)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **one, "PYTHONPATH": path, "TORCH_LOGS": "-all"},
        )  # fmt: skip
        self.filled: dict[str, float] = {}

    def ask(self, **request: Any) -> dict[str, float]:
        """Do one measurement."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args}: ended with {self._process.wait()} at {request}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def fill(self) -> None:
        """Hold all keys, once."""
        if not self.filled:
            self.filled = self.ask(case="fill")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def run(plan: list[Comparison], keys: int, rounds: int | None, say: Callable[[str], None]) -> Iterator[Record]:
    """Records of all comparisons, as they come."""
    for _, group in groupby(plan, key=lambda c: (c.ours.place, c.rival.place, c.fill, c.at_load)):
        comparisons = list(group)
        sides = {side.place: side for c in comparisons for side in (c.ours, c.rival)}
        total = at_highest_load(keys) if comparisons[0].at_load else keys
        workers = {place: Worker(side, total) for place, side in sides.items()}
        try:
            if comparisons[0].fill:
                for place, worker in workers.items():
                    say(f"filling {place[0]} with {worker.keys:,} keys")
                    worker.fill()
            for comparison in comparisons:
                say(f"{comparison.case}: ours against {comparison.title}")
                yield from _compare(comparison, workers, rounds or comparison.rounds)
            if comparisons[0].fill:
                yield from _memory(comparisons[0], workers)
        finally:
            for worker in workers.values():
                worker.close()


def _compare(comparison: Comparison, workers: dict[Any, Worker], rounds: int) -> Iterator[Record]:
    ours, rival = workers[comparison.ours.place], workers[comparison.rival.place]
    for distribution in comparison.distributions:
        for batch in comparison.batches:
            what = {"distribution": distribution, "batch": batch}
            ids = ours.keys if comparison.whole else comparison.ids
            mine, theirs = [], []
            for part in range(-1, rounds):  # the first is not counted: it meets cold caches and first allocations
                if part < 0 and comparison.whole:
                    continue
                few = {**what, "part": part + 1, "ids": batch if part < 0 else ids}
                a = ours.ask(case=comparison.ours.case, **few)
                b = rival.ask(case=comparison.rival.case, **few)
                if part >= 0:
                    mine.append(a)
                    theirs.append(b)
            yield (record := _record(comparison, distribution, batch, ids, ours.keys, mine, theirs))
            if comparison.whole and distribution == "uniform":
                yield _pause(record, mine, theirs)


def _record(
    comparison: Comparison, distribution: str, batch: int, ids: int, keys: int, mine: list[Any], theirs: list[Any]
) -> Record:
    rates = [[ids / answer["seconds"] for answer in answers] for answers in (mine, theirs)]
    per_s, rival_per_s = (statistics.median(r) for r in rates)
    ratios = [a / b for a, b in zip(*rates, strict=True)]
    record = {
        "case": comparison.case, "distribution": distribution, "batch": batch, "per_s": per_s,
        "rival": comparison.title, "rival_per_s": rival_per_s, "ratio": per_s / rival_per_s,
        "ratio_least": min(ratios), "ratio_most": max(ratios),
        "ratio_best": max(rates[0]) / max(rates[1]),  # what other guests of the host disturbed least, on both sides
        "bar": comparison.bar, "keys": keys,
        "dim": comparison.ours.dim, "rounds": len(mine),
    }  # fmt: skip
    if all("cpu_s" in answer for answer in (*mine, *theirs)):  # what a busy machine distorts less
        cpu, rival_cpu = (statistics.median(a["cpu_s"] for a in answers) for answers in (mine, theirs))
        record["ratio_cpu"] = rival_cpu / cpu
    return record


def _pause(record: Record, mine: list[Any], theirs: list[Any]) -> Record:
    """The longest call among all that inserted, as a rate: what growing makes one caller wait."""
    longest, rival = (statistics.median(a["longest_s"] for a in answers) for answers in (mine, theirs))
    kept = {name: record[name] for name in ("distribution", "batch", "rival", "keys", "dim", "rounds")}
    return {
        **kept, "case": "longest insert call", "bar": None,
        "per_s": record["batch"] / longest, "rival_per_s": record["batch"] / rival, "ratio": rival / longest,
        "longest_call_s": longest, "rival_longest_call_s": rival,
    }  # fmt: skip


def _memory(comparison: Comparison, workers: dict[Any, Worker]) -> Iterator[Record]:
    """Bytes a key beyond vectors and optimizer state, as the system counts them before and after filling."""
    ours, rival = workers[comparison.ours.place], workers[comparison.rival.place]
    if comparison.ours.contender == comparison.rival.contender or comparison.rival.contender == "torch_adagrad":
        return
    mine, theirs = ours.filled, rival.filled
    keys, row = ours.keys, 4 * comparison.ours.dim
    overhead = (mine["resident_bytes"] - mine["state_bytes"]) / keys - row
    rival_overhead = theirs["resident_bytes"] / keys - row
    yield {
        "case": "bytes a key beyond the row", "distribution": "uniform", "batch": FILL,
        "per_s": keys / mine["seconds"], "rival": comparison.title.partition(",")[0],
        "rival_per_s": keys / theirs["seconds"], "ratio": theirs["seconds"] / mine["seconds"],
        "bytes_per_key": overhead, "rival_bytes_per_key": rival_overhead,
        "bytes_per_key_by_own_account": (mine["accounted_bytes"] - mine["state_bytes"]) / keys - row,
        "load": keys / (mine["index_bytes"] / 64 * 5),
        "bytes_bar": 20.0 if comparison.at_load else None, "bar": None, "keys": keys,
        "dim": comparison.ours.dim, "rounds": 1,
    }  # fmt: skip
