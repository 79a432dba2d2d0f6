"""A candidate: a night's net and rows, carried on from its cut to its promotion by the minute loop's own step.

ticks M … M + H learned with N(d + 1)'s dense weights      snapshot candidate-<M + H>: rows and net, nothing else
"""

from collections.abc import Callable

from infra.eventlog import EventLog
from infra.paramstore.store import ParamStore
from stream.ticks_in import TickExamples
from trainer.guard import Forecast
from trainer.items import ItemsFollower
from trainer.online import learn_tick
from trainer.promotion import mark_failed
from trainer.schedule import candidate_name
from trainer.state import ModelState

CANDIDATE_SECTIONS = ("slot/", "admission/", "dense/", "graph/")


class Candidate:
    """Learns every tick through `due`; then `save` it, once."""

    def __init__(self, night: ModelState, log: EventLog, due: int) -> None:
        self._state = night.copy()
        self._state.generation = 0
        self._items = ItemsFollower(log, self._state.catalogue, night.timeline, wire=night.config.wire)
        self._forecast = Forecast()
        self.due = due

    def learn(self, tick: TickExamples, *, stop: Callable[[], bool]) -> bool:
        """Learn a tick; False where `stop()` came before all its items: then it must not be saved."""
        if not len(tick.examples):
            return True
        if not self._items.reach(tick.tick, stop=stop):
            return False
        learn_tick(self._state, tick.tick, tick.examples)
        self._forecast = self._forecast.plus(self._state.forecast)
        return True

    def save(self, store: ParamStore) -> None:
        """Write the snapshot that the trainer waits for, or why there is none.

        Raises RetryableError when the disk refuses.
        """
        if bad := self._state.unfit(self._forecast):
            mark_failed(store, self.due, bad)
            return
        for slot in self._state.slots.values():
            slot.advance(self.due)  # what is gone by then is not in it
        tensors = {name: t for name, t in self._state.export().items() if name.startswith(CANDIDATE_SECTIONS)}
        store.write_snapshot(candidate_name(self.due), tensors, kind="candidate", generation=0, tick=self.due)
