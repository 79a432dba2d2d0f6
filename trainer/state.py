"""Everything the trainer knows after a tick, and its form as named tensors.

    slot/… admission/…                          embedding rows with their optimizer state, admission (`trainer.slots`)
    dense/<weight>, graph/score, graph/step     the net of this generation
    counters/… lagged/… pending/…               counters, newest and as shown, and the deltas between
    items/…                                     the catalogue as known through this tick

A state is a pure function of the ticks it learned; where a row lies in a table never reaches its tensors. Counters and
catalogue belong to no generation: opening one replaces tables and net and leaves them alone.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.config import Config
from infra.embedding import Table
from stream.features.batch import SLOTS
from stream.features.catalogue import Catalogue, ItemRows
from stream.features.counters import CounterDelta, LaggedCounters
from trainer.guard import Forecast, unfit
from trainer.slots import Slot
from trainer.stepper import Floats, StepNet

Tensors = dict[str, NDArray[Any]]
BEFORE = -(2**62)  # before every tick


class ModelState:
    """Tables, net, counters and catalogue, as they are after `tick`. One thread."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.model, self.train = config.model, config.train
        self.timeline = config.time.build()
        self.slots = {
            slot: Slot(slot, config.model.slots[slot], seed=config.model.seed, tick_ms=self.timeline.tick_ms)
            for slot in SLOTS
        }
        self.counters = LaggedCounters.build(config.model, self.timeline)
        self.catalogue = Catalogue()
        self.dense: dict[str, Floats] = {}
        self.graphs: dict[str, bytes] = {}
        self.generation = -1  # -1: none yet, ticks are only counted
        self.tick = BEFORE
        self.refused = dict.fromkeys(SLOTS, 0)  # gradients of rows that were not finite, since this process began
        self.forecast = Forecast()  # of the tick learned last
        self._net: StepNet | None = None

    @property
    def tables(self) -> dict[str, Table]:
        """Every table, by the name that it has in tensors."""
        return {name: table for slot in self.slots.values() for name, table in slot.tables.items()}

    @property
    def forgets(self) -> bool:
        """Whether rows expire: then a tick without examples may change the state."""
        return any(slot.options.expiry_s for slot in self.slots.values())

    @property
    def net(self) -> StepNet:
        """The step graph, filled with this generation's weights. ValueError before the first generation."""
        if self._net is None:
            if "step" not in self.graphs:
                raise ValueError("there is no net before the first generation")
            self._net = StepNet(self.graphs["step"], self.dense)
        return self._net

    def set_net(self, dense: Mapping[str, Floats], graphs: Mapping[str, bytes]) -> None:
        """Take another generation's weights, and graphs where the architecture changed."""
        same = self._net is not None and graphs.get("step") == self.graphs.get("step")
        self.dense, self.graphs = dict(dense), dict(graphs)
        if self._net is not None and same:
            self._net.load(self.dense)
        else:
            self._net = None

    def open(self, tensors: Mapping[str, NDArray[Any]], generation: int, tick: int) -> None:
        """Open a generation from a snapshot's tensors as of `tick`: its rows and net; counters and catalogue stay."""
        for slot in self.slots.values():
            slot.load(tensors, tick)
        self.set_net(_dense(tensors), _graphs(tensors))
        self.generation = generation

    def apply(self, tick: int, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Redo a published tick from its delta: after it, the state is what learning the tick would have left."""
        for slot in self.slots.values():
            slot.apply(tensors, tick)
        delta = CounterDelta.from_tensors(tensors, "counters")
        if len(delta):
            self.counters.newest.apply(delta)
            self.counters.pending.append(delta)
        self.counters.as_shown(tick + 1)
        self.catalogue.add(ItemRows.from_tensors(tensors))
        self.tick = tick

    def export(self) -> Tensors:
        """The whole state as tensors, rows sorted by key: what a snapshot holds."""
        out: Tensors = {}
        for slot in self.slots.values():
            out |= slot.export()
        out |= {f"dense/{name}": weight for name, weight in self.dense.items()}
        out |= {f"graph/{name}": np.frombuffer(graph, np.uint8) for name, graph in self.graphs.items()}
        out |= self.counters.export()
        out |= self.catalogue.section(BEFORE, self.tick).tensors()
        return dict(sorted(out.items()))

    @staticmethod
    def restore(config: Config, tensors: Mapping[str, NDArray[Any]], generation: int, tick: int) -> "ModelState":
        """Continue, bit for bit, what was exported under the same configuration."""
        state = ModelState(config)
        state.open(tensors, generation, tick)
        state.counters = LaggedCounters.restore(tensors, config.model, state.timeline)
        state.catalogue = Catalogue.restore(tensors)
        state.tick = tick
        return state

    def digest(self) -> str:
        """blake2b-256 of generation, tick and every tensor, hex: equal states, equal digests."""
        h = hashlib.blake2b(f"{self.generation}/{self.tick}\n".encode(), digest_size=32)
        for name, tensor in self.export().items():
            h.update(f"{name}/{tensor.dtype.str}/{tensor.shape}\n".encode())
            h.update(np.ascontiguousarray(tensor).data)
        return h.hexdigest()

    def copy(self) -> "ModelState":
        """An independent state that continues from here; it shares the graphs."""
        twin = ModelState.__new__(ModelState)
        twin.__dict__.update(self.__dict__)
        twin.slots = {name: slot.copy() for name, slot in self.slots.items()}
        twin.counters, twin.catalogue = self.counters.copy(), self.catalogue.copy()
        twin.refused, twin.forecast = dict(self.refused), Forecast()
        twin.dense, twin.graphs, twin._net = dict(self.dense), dict(self.graphs), None
        return twin

    def unfit(self, forecast: Forecast) -> str:
        """Why rows and net must not be served, "" where they may; `forecast`: of what was predicted with them."""
        net = {f"dense/{name}": weight for name, weight in self.dense.items()}
        rows = {n: t for slot in self.slots.values() for n, t in slot.export().items() if n.startswith("slot/")}
        return unfit(net | rows, forecast, self.train)


def _dense(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    return {name.removeprefix("dense/"): t for name, t in tensors.items() if name.startswith("dense/")}


def _graphs(tensors: Mapping[str, NDArray[Any]]) -> dict[str, bytes]:
    return {name.removeprefix("graph/"): t.tobytes() for name, t in tensors.items() if name.startswith("graph/")}
