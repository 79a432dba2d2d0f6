"""Progressive validation: score what closes in tick c with versions through live(c − a), then, and only then, advance.

The rule, in the order in which `take` keeps it:
    1. wait until the replica holds exactly the versions through live(c − a), and it is certain that no more can come;
    2. refuse to go on if it holds anything beyond: a score with it would know labels that nobody had;
    3. score the impressions that close in c, every arm on the same ones;
    4. count.
Scoring "through s" instead of live(s) leaks the labels of the k + 1 ticks before s.

What has been counted, and the positions it was counted up to, are saved together: a killed evaluator goes on from
there and ends with the same numbers, to the bit.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.config import TrainConfig
from infra.errors import CorruptStateError
from infra.ticks import Timeline
from serving.evaluator.arms import ArmScores
from serving.evaluator.ledger import Ledger
from serving.model import View
from stream.examples import ExampleColumns
from stream.outcomes import left_out, with_outcomes
from stream.ticks_in import NOTHING_CLOSED, TickExamples

WAIT_S = 0.2  # between two looks at whether to stop
WAIT_BIN_S = 0.1  # resolution of label_wait_s


class Served(Protocol):
    """What is asked of `serving.replica.Replica`."""

    @property
    def through(self) -> int: ...

    def view(self) -> View | None: ...

    def advance(self, max_tick: int, *, timeout_s: float = 0.0) -> bool: ...


class Scoring(Protocol):
    """What is asked of `serving.evaluator.arms.Arms`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def score(self, view: View, examples: ExampleColumns, live: int) -> ArmScores: ...


class Evaluation:
    """The evaluator's state. Feed it ticks in order."""

    def __init__(self, served: Served, arms: Scoring, timeline: Timeline, train: TrainConfig) -> None:
        self._served, self._arms, self._timeline, self._train = served, arms, timeline, train
        self.ledger: Ledger | None = None
        self.tick = NOTHING_CLOSED  # the last one taken
        self.positions: dict[int, int] = {}  # of `examples`, after that tick
        self.impressions = 0  # read
        self.shown_items = 0
        self.left_out = 0  # shown items whose engagements are no outcome that is learned (`stream.outcomes`)
        self.before_first_version = 0  # impressions read while nothing was served yet
        self.first_version: tuple[int, int] | None = None  # generation, tick
        bins = (timeline.attribution_ticks + 1) * timeline.tick_ms + timeline.disorder_bound_ms
        self._waits = np.zeros(int(bins / 1000 / WAIT_BIN_S) + 2, np.int64)

    def take(self, ticks: TickExamples, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """Count a tick; False, and nothing changed, where `stop` ended the wait for the trainer."""
        examples = ticks.examples
        if len(examples):
            live = self._bound(ticks.tick)
            while not self._served.advance(live, timeout_s=WAIT_S):
                if stop():
                    return False
            self._refuse_to_leak(ticks.tick)
            self._count(examples, ticks.tick, live)
        self.tick = ticks.tick
        self.positions = dict(ticks.positions)
        return True

    def _bound(self, close_tick: int) -> int:
        return self._timeline.live_at_close(close_tick)

    def _refuse_to_leak(self, close_tick: int) -> None:
        live = self._timeline.live_at_close(close_tick)
        if self._served.through > live:
            raise CorruptStateError(
                f"the evaluator's replica holds versions through tick {self._served.through}; what closes in tick "
                f"{close_tick} is scored by versions through {live}; delete the run's evaluation folder, evaluate again"
            )

    def _count(self, examples: ExampleColumns, close_tick: int, live: int) -> None:
        if self.ledger is None:
            self.ledger = Ledger(self._arms.names, first_ms=int(examples.shown_ms[0]))
        self.impressions += len(examples)
        self.shown_items += len(examples.items.values)
        self._count_waits(examples, close_tick)
        self.left_out += left_out(examples, self._train)
        examples = with_outcomes(examples, self._train)
        view = self._served.view()
        if view is None:
            self.before_first_version += len(examples)
            return
        if self.first_version is None:
            self.first_version = (view.version.generation, view.version.tick)
        scores = self._arms.score(view, examples, live)
        shown_ms = self._timeline.start_ms(close_tick - self._timeline.attribution_ticks)
        self.ledger.add(shown_ms, examples.items.offsets, examples.labels.values, scores.f, scores.logit)

    def _count_waits(self, examples: ExampleColumns, close_tick: int) -> None:
        engaged = examples.first_engaged_ms[examples.first_engaged_ms >= 0]
        closed_ms = self._timeline.end_ms(close_tick) + self._timeline.disorder_bound_ms
        bins = ((closed_ms - engaged) / 1000 / WAIT_BIN_S).astype(np.int64)
        np.add.at(self._waits, np.clip(bins, 0, len(self._waits) - 1), 1)

    # -- results -----------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """evaluation.json, NaN and all."""
        arms = {} if self.ledger is None else self.ledger.report()
        return {
            "tick": self.tick,
            "impressions": self.impressions,
            "shown_items": self.shown_items,
            "left_out_items": self.left_out,
            "before_first_version": self.before_first_version,
            "first_version": self.first_version,
            "label_wait_s": label_wait(self._waits),
            "arms": arms,
        }

    # -- restart -----------------------------------------------------------------------------------------------

    def save(self) -> dict[str, NDArray[Any]]:
        """Everything counted so far and up to where, as tensors."""
        first = self.first_version or (-1, -1)
        numbers = [self.tick, self.impressions, self.shown_items, self.before_first_version, *first]
        saved: dict[str, NDArray[Any]] = {
            "numbers": np.array(numbers, np.int64),
            "positions": np.array(sorted(self.positions.items()), np.int64).reshape(-1, 2),
            "waits": self._waits.copy(),
            "left_out": np.array(self.left_out, np.int64),
        }
        if self.ledger is not None:
            saved |= {f"ledger/{name}": array for name, array in self.ledger.save().items()}
        return saved

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `save` gave."""
        self.tick, self.impressions, self.shown_items, self.before_first_version, *first = saved["numbers"].tolist()
        self.first_version = None if first[0] < 0 else (first[0], first[1])
        self.positions = {int(p): int(offset) for p, offset in saved["positions"]}
        self._waits = saved["waits"].copy()
        self.left_out = int(saved.get("left_out", 0))  # what an older evaluator saved has no such number
        books = {n.removeprefix("ledger/"): a for n, a in saved.items() if n.startswith("ledger/")}
        self.ledger = Ledger.restore(self._arms.names, books) if books else None


def label_wait(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Percentiles of bins of WAIT_BIN_S, s, and a histogram of some forty bins to draw."""
    total = int(counts.sum())
    if total == 0:
        return {"p50": None, "p99": None, "edges": [], "counts": []}
    below = np.cumsum(counts)
    out: dict[str, Any] = {
        f"p{q}": round((int(np.searchsorted(below, q / 100 * total)) + 0.5) * WAIT_BIN_S, 2) for q in (50, 99)
    }
    width = max(1, -(-len(counts) // 40 // 10) * 10)  # whole seconds
    edges = np.arange(0, len(counts) + width, width)
    padded = np.zeros(int(edges[-1]), np.int64)
    padded[: len(counts)] = counts
    out["edges"] = [round(float(e) * WAIT_BIN_S, 3) for e in edges]
    out["counts"] = padded.reshape(-1, width).sum(1).tolist()
    return out
