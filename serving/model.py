"""What a replica serves from: tables, net, counters and catalogue of one version, seen through an immutable view.

A `View` is one version, whole, for as long as it is held: its tables are left-right (`infra.embedding.ServingTable`),
its counters too (`CounterPair`), its catalogue and its net are replaced by changed copies. A promotion builds new
tables and leaves the old ones to whoever still looks at them. Nothing here reads a clock, a log or a file.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.config import ModelConfig, Precision
from infra.embedding import ServingTable, TableView
from infra.errors import CorruptStateError
from infra.paramstore.version import VersionId
from infra.ticks import Timeline
from stream.features.catalogue import Catalogue, ItemRows
from stream.features.counters import CounterDelta, CounterState
from stream.features.score_net import ScoreNet

Tensors = Mapping[str, NDArray[Any]]
NO_KEYS = np.empty(0, dtype=np.int64)
GRAPH = "graph/score"
DENSE = "dense/"
# What a replica reads of a version: no optimizer state, no step graph, no bookkeeping of the trainer.
_SLOT_COLUMNS = ("/keys", "/values", "/tombstones")


def is_served(name: str) -> bool:
    """Whether a tensor belongs to the projection that a replica holds."""
    section = name.partition("/")[0]
    return (
        section in ("counters", "items", "dense")
        or name == GRAPH
        or (section == "slot" and name.endswith(_SLOT_COLUMNS))
    )


@dataclass(frozen=True, slots=True, weakref_slot=True)
class View:
    """One version, immutable while held. `counters` and `catalogue` are read with a tick: see `read_tick`."""

    version: VersionId
    digest: str
    tables: Mapping[str, TableView]
    net: ScoreNet
    counters: CounterState
    catalogue: Catalogue
    lease: "Lease"  # keeps `counters` from learning while the view is held

    def read_tick(self, shown_tick: int, timeline: Timeline) -> int:
        """live(shown), or the version's own tick where it is already newer: what counters are decayed to."""
        return max(timeline.live(shown_tick), self.counters.tick)

    @property
    def lookup(self) -> dict[str, Callable[[NDArray[np.int64]], NDArray[np.float32]]]:
        """Slot → keys (n,) to vectors (n, dim), zeros for what an absent key, or one that did not grow, has not."""
        grown = {name.partition(".")[0]: table for name, table in self.tables.items() if "." in name}
        return {
            slot: partial(_side_by_side, table, grown[slot]) if slot in grown else table.gather
            for slot, table in self.tables.items()
            if "." not in slot
        }


def _side_by_side(base: TableView, grown: TableView, keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """Bias and factors of keys: (n, 1 + d)."""
    return np.concatenate((base.gather(keys), grown.gather(keys)), axis=1)


class Lease:
    """Held by every view of one copy of the counters: while it lives, that copy does not change."""

    __slots__ = ("__weakref__",)


class CounterPair:
    """Counters left-right: the copy that views read never changes; the other one learns the next delta.

    `exclusive`: one owner who never holds a view across `apply` (the evaluator); one copy, changed in place.
    """

    def __init__(self, empty: CounterState, *, exclusive: bool) -> None:
        self.current = empty
        self.lease = Lease()  # of `current`
        self.copies = 0  # times a reader was still there, so that the state was copied instead
        self._exclusive = exclusive
        self._standby: CounterState | None = None
        self._standby_lease: weakref.ref[Lease] | None = None
        self._missed: CounterDelta | None = None

    def apply(self, delta: CounterDelta) -> None:
        """Learn a delta; views shown before keep what they read."""
        if not len(delta):
            return
        if self._exclusive:
            self.current.apply(delta)
            return
        fresh = self._unread()
        fresh.apply(delta)
        self._standby, self._standby_lease, self._missed = self.current, weakref.ref(self.lease), delta
        self.current, self.lease = fresh, Lease()

    def _unread(self) -> CounterState:
        """A copy that equals `current` and that nobody reads."""
        in_use = self._standby_lease is not None and self._standby_lease() is not None
        if self._standby is None or self._missed is None or in_use:
            self.copies += 1
            return self.current.copy()
        self._standby.apply(self._missed)
        return self._standby


class ServedModel:
    """The served state while it moves from version to version. One thread applies; `view()` shows the result."""

    def __init__(
        self, model: ModelConfig, timeline: Timeline, *, precision: Precision = "float16", exclusive: bool = False
    ) -> None:
        self._model, self._timeline = model, timeline
        self._precision, self._exclusive = precision, exclusive
        self.tables = self._empty_tables()
        self.counters = self._empty_counters()
        self.catalogue = Catalogue()
        self._graph = b""
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._net: ScoreNet | None = None
        self._view: View | None = None

    @property
    def table_rows(self) -> dict[str, int]:
        return {slot: len(table) for slot, table in self.tables.items()}

    def open(self, tensors: Tensors) -> None:
        """Take a whole state: sections that it brings replace what is here, the others stay."""
        sections = {name.partition("/")[0] for name in tensors}
        if "slot" in sections:
            self.tables = self._empty_tables()
        if "counters" in sections:
            self.counters = self._empty_counters()
        if "items" in sections:
            self.catalogue = Catalogue()
        self.apply(tensors)

    def apply(self, tensors: Tensors) -> None:
        """Upsert a delta's rows, remove its tombstones, take dense weights where it carries them."""
        for name, table in self.tables.items():
            keys = tensors.get(f"slot/{name}/keys", NO_KEYS)
            dead = tensors.get(f"slot/{name}/tombstones", NO_KEYS)
            if len(keys) or len(dead):
                table.apply(keys, _values(name, tensors, len(keys), table.dim), dead)
        self.counters.apply(CounterDelta.from_tensors(tensors))
        items = ItemRows.from_tensors(tensors)
        if len(items.keys):
            if not self._exclusive:
                self.catalogue = self.catalogue.copy()
            self.catalogue.add(items)
        self._load_net(tensors)

    def show(self, version: VersionId, digest: str) -> View | None:
        """Make the present state the view of this version; None while no net was opened."""
        if self._net is not None:
            tables = {slot: table.view() for slot, table in self.tables.items()}
            counters, lease = self.counters.current, self.counters.lease
            self._view = View(version, digest, tables, self._net, counters, self.catalogue, lease)
        return self._view

    def _load_net(self, tensors: Tensors) -> None:
        graph = tensors.get(GRAPH)
        fresh = {n.removeprefix(DENSE): t for n, t in tensors.items() if n.startswith(DENSE)}
        if graph is None and not fresh:
            return
        self._graph = self._graph if graph is None else graph.tobytes()
        self._weights = {**self._weights, **fresh}
        if not self._graph:
            raise CorruptStateError("dense weights came without a score graph; open the generation again with one")
        try:
            self._net = ScoreNet(self._graph, self._weights)
        except ValueError as error:
            raise CorruptStateError(f"{error}; the generation's snapshot is not whole: open another one") from error

    def _empty_tables(self) -> dict[str, ServingTable]:
        return {
            name: ServingTable(dim=dim, dtype=options.precision or self._precision, exclusive=self._exclusive)
            for slot, options in self._model.slots.items()
            for name, dim in options.tables(slot)
        }

    def _empty_counters(self) -> CounterPair:
        return CounterPair(CounterState.build(self._model, self._timeline), exclusive=self._exclusive)


def _values(table: str, tensors: Tensors, rows: int, dim: int) -> NDArray[np.float32]:
    values = tensors.get(f"slot/{table}/values", np.empty((0, dim), dtype=np.float32))
    if values.shape != (rows, dim):
        raise CorruptStateError(
            f"slot {table}: rows of shape {values.shape}, the run's configuration says ({rows}, {dim}); serve with "
            f"the configuration that the versions were trained with"
        )
    return values
