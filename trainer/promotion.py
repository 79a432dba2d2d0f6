"""Whether and when a candidate opens a generation: decided once, written to `control`, obeyed ever after.

A replay waits for the candidate at any speed. Live, the trainer waits PATIENCE_S of wall time; then the decision is to
skip, and the served generation goes on. A candidate is promoted when it is whole and fit (`trainer.guard`); the
retrain says of one that is not why it failed, and it is skipped. The first generation cannot be: without one there is
nothing to serve.
"""

import time
from pathlib import Path

from infra.errors import CorruptStateError
from infra.paramstore.files import replace_durably
from infra.paramstore.store import ParamStore
from infra.process import Process
from trainer.control import ControlLog, Decision
from trainer.schedule import candidate_name

PATIENCE_S = 30.0
POLL_S = 0.005


class Promotion:
    """Decides about one candidate."""

    def __init__(self, store: ParamStore, control: ControlLog, process: Process, *, patient: bool) -> None:
        self._store, self._control, self._process, self._patient = store, control, process, patient

    def decide(self, due: int, generation: int, timestamp_ms: int) -> Decision | None:
        """The decision that takes effect at the end of tick `due`, taken now or read; None when told to stop."""
        self._control.refresh()
        earlier = self._control.at(due)
        if earlier is not None and earlier.kind == "skip-generation":
            return earlier
        started = time.monotonic()
        while not self._process.stopping:
            taken = self._ready(due, generation)
            late = not self._patient and time.monotonic() - started > PATIENCE_S
            if taken is None and earlier is None and late and generation > 0:
                taken = Decision(kind="skip-generation", tick=due, reason="candidate not ready")
            if taken is not None:
                self._process.spent("wait", time.monotonic() - started)
                return self._control.decide(taken, timestamp_ms=timestamp_ms)
            self._process.progress(state="waiting for the retrain", generation=generation - 1)
            time.sleep(POLL_S)
        return None

    def _ready(self, due: int, generation: int) -> Decision | None:
        name = candidate_name(due)
        failed = failure_mark(self._store, due)
        if failed is not None and generation == 0:
            raise CorruptStateError(
                f"the bootstrap's candidate for tick {due} is not fit to serve ({failed}), and there is no generation "
                "before it; lower train.dense_lr or the slot's retrain_lr in a new run, or remove the bad input"
            )
        if failed is not None:
            return Decision(kind="skip-generation", tick=due, reason=failed)
        if name not in self._store.snapshots.names():
            return None
        meta = self._store.snapshots.meta(name)
        return Decision(
            kind="open-generation", tick=due, generation=generation, snapshot=name, digest=meta.content_digest
        )


def mark_failed(store: ParamStore, due: int, reason: str) -> None:
    """Say that there will be no candidate for `due`, and why. Raises RetryableError when the disk refuses."""
    replace_durably(_mark(store, due), reason.encode())


def failure_mark(store: ParamStore, due: int) -> str | None:
    """Why there is no candidate for `due`, if the retrain said so."""
    try:
        # That the file is there decides; a damaged reason still reads as one.
        return _mark(store, due).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _mark(store: ParamStore, due: int) -> Path:
    return store.snapshots.folder / f".failed-{due:010d}"
