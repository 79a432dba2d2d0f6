"""The `control` log: decisions that the other logs do not hold, each written before it takes effect.

A rerun reads a decision instead of taking it again. The trainer alone writes; a record is JSON, so that an operator can
read and add one.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from infra.errors import CorruptStateError
from infra.eventlog import EventLog
from stream.retry import Retrier

TOPIC = "control"
Kind = Literal["bootstrap", "open-generation", "skip-generation", "hold"]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided, and the tick at whose end it takes effect. Unknown fields are ignored.

    A hold takes effect with its tick: from it on no row learns, until the next generation opens.
    """

    v: int = 1
    kind: Kind
    tick: int  # bootstrap: the first tick of the log
    generation: int = -1
    snapshot: str = ""
    digest: str = ""  # content digest of the snapshot
    reason: str = ""


class ControlLog:
    """Decisions of a run, by (kind, tick)."""

    def __init__(self, log: EventLog, *, until_done: Callable[[Callable[[], object]], object] | None = None) -> None:
        self._log, self._until_done = log, until_done or Retrier(stopping=lambda: True)
        self._writer = log.writer(TOPIC)
        self._decisions: dict[tuple[str, int], Decision] = {}
        self.offset = log.start_offset(TOPIC, 0)  # next to read
        self.refresh()

    def refresh(self) -> None:
        """Read what was added."""
        end = self._log.end_offset(TOPIC, 0)
        while self.offset < end:
            for record in self._log.read(TOPIC, 0, self.offset):
                try:
                    decision = msgspec.json.decode(record.value, type=Decision)
                except msgspec.MsgspecError:
                    decision = None  # another kind of decision, from another release: not ours to obey
                if decision is not None:
                    self._decisions.setdefault((decision.kind, decision.tick), decision)
                self.offset = record.offset + 1

    def bootstrap(self) -> Decision | None:
        """Where the run began."""
        return next((d for (kind, _), d in sorted(self._decisions.items()) if kind == "bootstrap"), None)

    def at(self, tick: int) -> Decision | None:
        """What was decided about a candidate that is due at `tick`."""
        opened = self._decisions.get(("open-generation", tick))
        return opened or self._decisions.get(("skip-generation", tick))

    def holds(self) -> list[Decision]:
        """Every hold, in the order of ticks."""
        return [d for (kind, _), d in sorted(self._decisions.items()) if kind == "hold"]

    def held(self, generation: int, tick: int) -> Decision | None:
        """What holds a generation in `tick`, if something does."""
        return next((d for d in self.holds() if d.generation == generation and d.tick <= tick), None)

    def decide(self, decision: Decision, *, timestamp_ms: int) -> Decision:
        """Write a decision durably, or return the one that was taken before.

        Raises CorruptStateError where the earlier one names another snapshot: the logs were derived by another build.
        """
        self.refresh()
        same = self._decisions.get((decision.kind, decision.tick))
        other = self.at(decision.tick)
        if same is None and other is not None and decision.kind == "skip-generation":
            raise CorruptStateError(
                f"control: generation {other.generation} was opened at tick {other.tick}, this run has no candidate "
                f"for it ({decision.reason}); use the build and machine of the original, or start a new run"
            )
        if same is not None:
            if same.digest and decision.digest and same.digest != decision.digest:
                raise CorruptStateError(
                    f"control: generation {same.generation} was opened at tick {same.tick} from a snapshot with digest "
                    f"{same.digest[:16]}, this run derives {decision.digest[:16]}; use the build and machine of the "
                    f"original (each version records its own), or start a new run"
                )
            return same
        self._writer.append(0, msgspec.json.encode(decision), timestamp_ms=timestamp_ms)
        self._until_done(self._writer.flush)
        self.refresh()
        return decision

    def close(self) -> None:
        """Let go of the log."""
        self._writer.close()
