"""A slot as the trainer holds it: its tables, its update rules, and its part of a version.

    slot/<table>/keys values state [last_seen] [frequency]  rows; a delta has those that were touched
    slot/<table>/tombstones                                 keys that lost their row, in a delta only
    admission/<slot>…                                       counts of keys that have no row yet (`trainer.admission`)

<table> is the slot's name, and `<slot>.factors` for what grows when a key is popular. Everything here is a function of
the ticks learned: which row a key got, and when memory was swept, is in none of these.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.config import GROWN, SlotConfig
from infra.embedding import Policy, Segment, SegmentedTable, Table
from infra.embedding import Rows as WholeRows
from stream.features.batch import Batch
from stream.features.occurrences import occurrences
from trainer.admission import SketchTensors, Tensors
from trainer.rules import RULES, Rule
from trainer.rules.segments import apply

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]
Rows = Mapping[str, NDArray[np.int32]]
ROW_COLUMNS = ("keys", "values", "state")
SWEEP_ROWS = 4_096  # expired rows whose memory one tick gives back: some 0.1 ms


class Slot:
    """One slot's rows under one configuration. One thread."""

    def __init__(self, name: str, options: SlotConfig, *, seed: int, tick_ms: int) -> None:
        self.name, self.options = name, options
        self.rules = _rules(options)
        self.table = SegmentedTable(
            slot=name,
            segments=_segments(options, self.rules),
            seed=seed,
            policy=_policy(options, tick_ms),
        )
        self._sketch = None if self.table.admission is None else SketchTensors(name, self.table)
        self._counts_uses = options.admit_after > 1 or options.admit_probability < 1 or options.grow_after > 0
        self._counts_uses |= options.byte_budget > 0 and options.evict == "least-frequent"

    @property
    def tables(self) -> dict[str, Table]:
        """By the name they have in tensors."""
        return {self._called(group): table for group, table in self.table.tables.items()}

    def _called(self, group: str) -> str:
        return f"{self.name}.{group}" if group else self.name

    # -- learning ----------------------------------------------------------------------------------------------

    def assign(self, batch: Batch, tick: int) -> Rows:
        """Rows of the batch's distinct keys, made where the policy admits them."""
        uses = np.maximum(occurrences(batch, self.name), 1) if self._counts_uses else None
        return self.table.assign(batch.keys[self.name], tick, uses)

    def find(self, batch: Batch) -> Rows:
        """Rows of the batch's distinct keys, none made."""
        return self.table.find(batch.keys[self.name])

    def learn(self, rows: Rows, grads: Floats, lr: float) -> int:
        """One step of every segment's rule; how many rows were refused because a gradient was not finite."""
        return apply(self.rules, self.table, rows, grads, lr=lr)

    def advance(self, tick: int) -> None:
        """Event time moves on; some of the memory of expired rows is given back."""
        if self._sketch is not None:
            self._sketch.before_advance(tick)
        self.table.advance(tick)
        if self.options.expiry_s:
            self.table.sweep(SWEEP_ROWS)

    # -- tensors -----------------------------------------------------------------------------------------------

    def changes(self, touched: Keys) -> Tensors:
        """Since the last call: the touched keys' rows as they are now, what lost its row, and the sketch's cells."""
        out: Tensors = {}
        gone = self.table.take_tombstones()
        for group, table in self.table.tables.items():
            rows = table.pick(touched)
            if len(rows.keys):
                out |= self._tensors(group, rows)
            if len(gone[group]):
                out[f"slot/{self._called(group)}/tombstones"] = gone[group]
        if self._sketch is not None:
            out |= self._sketch.delta()
        return out

    def export(self) -> Tensors:
        """All rows, sorted by key, and the sketch."""
        out: Tensors = {}
        for group, rows in self.table.export().items():
            out |= self._tensors(group, rows)
        return out if self._sketch is None else out | self._sketch.export()

    def _tensors(self, group: str, rows: WholeRows) -> Tensors:
        return {f"slot/{self._called(group)}/{column}": getattr(rows, column) for column in self._columns(group)}

    def _columns(self, group: str) -> tuple[str, ...]:
        policy = self.table.tables[group].policy
        kept = {"last_seen": policy.loses_rows, "frequency": policy.frequency}
        return (*ROW_COLUMNS, *(column for column, keeps in kept.items() if keeps))

    def load(self, tensors: Mapping[str, NDArray[Any]], tick: int) -> None:
        """Take a whole state's rows instead of what is here."""
        self.table.clear()
        self._put(tensors, tick, whole=True)

    def apply(self, tensors: Mapping[str, NDArray[Any]], tick: int) -> None:
        """Redo a delta: after it, rows and sketches are what learning the tick left."""
        self._put(tensors, tick, whole=False)

    def _put(self, tensors: Mapping[str, NDArray[Any]], tick: int, *, whole: bool) -> None:
        for group, table in self.table.tables.items():
            if (gone := tensors.get(f"slot/{self._called(group)}/tombstones")) is not None:
                table.remove(gone)
        for group in self.table.tables:
            prefix = f"slot/{self._called(group)}"
            if f"{prefix}/keys" in tensors:
                columns = {c: tensors[f"{prefix}/{c}"] for c in self._columns(group) if f"{prefix}/{c}" in tensors}
                unknown = np.full(len(columns["keys"]), tick, np.int32)  # written before the slot had an expiry
                self.table.put(group, **{"last_seen": unknown} | columns)
        if self._sketch is not None:
            self._sketch.apply(tensors, whole=whole)
        self.table.advance(max(tick, self.table.tick))
        self.table.take_tombstones()  # they are in the log already

    def copy(self) -> "Slot":
        """An independent slot that goes on from here."""
        twin = Slot.__new__(Slot)
        twin.__dict__.update(self.__dict__)
        twin.table = self.table.copy()
        twin._sketch = None if self._sketch is None else self._sketch.of(twin.table)
        return twin


def _rules(options: SlotConfig) -> dict[str, Rule]:
    """Segment → rule."""
    rule = _rule(options.rule, options)
    if not options.has_bias:
        return {"whole": rule}
    return {"bias": _rule(options.bias_rule or options.rule, options), GROWN: rule}


def _rule(name: str, options: SlotConfig) -> Rule:
    """The rule as the slot's options say; FTRL has its own strengths instead of decay and cap."""
    own: dict[str, dict[str, float]] = {
        "rowwise-adagrad": {"accumulator_init": options.adagrad_init},
        "adagrad": {"accumulator_init": options.adagrad_init},
        "adam": {"beta1": options.momentum, "beta2": options.second_moment},
        "momentum": {"momentum": options.momentum},
        "sgd": {},
        "ftrl": {"l1": options.ftrl_l1, "l2": options.ftrl_l2},
    }
    caps = {"weight_decay": options.weight_decay, "row_norm_cap": options.row_norm_cap} if name != "ftrl" else {}
    return RULES[name](lr=options.lr, grad_cap=options.grad_cap, **caps, **own[name])


def _segments(options: SlotConfig, rules: Mapping[str, Rule]) -> list[Segment]:
    parts = [("bias", 1, 1), (GROWN, options.dim - 1, options.grow_after or 1)]
    if not options.has_bias:
        parts = [("whole", options.dim, 1)]
    return [
        Segment(
            name=name,
            dim=dim,
            init_scale=0.0 if name == "bias" and options.bias_rule == "ftrl" else options.init_scale,
            state_dim=rules[name].state_dim(dim),
            state_init=rules[name].state_init(dim),
            admit_after=after,
        )
        for name, dim, after in parts
    ]


def _policy(options: SlotConfig, tick_ms: int) -> Policy:
    """Seconds become ticks, rounded up: a row stays at least as long as it says."""
    return Policy(
        admit_after=options.admit_after,
        admit_probability=options.admit_probability,
        admit_window_ticks=-(-options.admit_window_s * 1000 // tick_ms),
        sketch_bytes=options.sketch_bytes,
        expiry_ticks=-(-options.expiry_s * 1000 // tick_ms),
        byte_budget=options.byte_budget,
        evict=options.evict,
    )
