"""A replica: loads a snapshot, applies versions in the order of the log, serves one version at a time.

- `advance(max_tick)` applies exactly the versions through a tick and says when no more can come: the evaluator's rule.
- `advance_to_newest()` applies whatever is durable: serving.
- Every record is judged by the chain: a repeat is dropped, a gap is refused and answered by starting again from the
  nearest snapshot, a wrong digest or a fork stops the replica. It goes on serving what it has.

One thread advances; `view()` may be called from any, and what it returns never changes while it is held.
"""

import time
from collections import deque
from collections.abc import Callable

from infra.config import Config
from infra.errors import CorruptStateError
from infra.paramstore.chain import Chain, Verdict
from infra.paramstore.reader import VersionReader
from infra.paramstore.store import ParamStore, State
from infra.paramstore.tensors import decode_tensors
from infra.paramstore.version import Kind, Version, VersionId
from serving.model import ServedModel, View, is_served

COMMIT_EVERY = 256  # records between two notes to retention
POLL_S = 0.001
KEPT_SYNCS = 65_536


class Replica:
    """The served state of a run. `name` registers it, so that retention keeps what it has not read yet."""

    def __init__(
        self,
        store: ParamStore,
        config: Config,
        *,
        name: str | None = None,
        exclusive: bool = False,
    ) -> None:
        self._store = store
        self._timeline = config.time.build()
        self._model_config, self._precision, self._exclusive = config.model, config.serve.precision, exclusive
        self.on_applied: Callable[[float | None], None] | None = None  # after each change of what is served: its sync
        self._reader: VersionReader | None = None
        self._name = name
        self._ahead: Version | None = None
        self._chain = Chain()
        self._view: View | None = None
        self._read_since_commit = 0
        self.model = self._empty_model()
        self.ended = False  # the newest record says that the replay ended with it
        self.catch_ups = 0
        self.applied = 0
        # Tick closed -> served here, wall s, a version. What closed before this replica was there says how long it was
        # away, not how long a version takes.
        self.sync_s: deque[float] = deque(maxlen=KEPT_SYNCS)
        self._since_wall_ms = time.time_ns() // 1_000_000

    # -- what is served ----------------------------------------------------------------------------------------

    def view(self) -> View | None:
        """The version being served; None before the first generation."""
        return self._view

    @property
    def version(self) -> VersionId | None:
        return None if self._view is None else self._view.version

    @property
    def through(self) -> int:
        """The served state is known to be the state through this tick, published or not; -1 before any."""
        return self._chain.through

    # -- moving on ---------------------------------------------------------------------------------------------

    def advance(self, max_tick: int, *, timeout_s: float = 0.0) -> bool:
        """Apply, in log order, every version through `max_tick` and none beyond.

        True once that is certain: the log shows something beyond, or its end. False where the time ran out first:
        call again. A version's own tick may lie before that of its predecessor (a rollback); what counts is when it
        was decided.
        """
        reader = self._reader or self._start(max_tick)
        deadline = time.monotonic() + timeout_s
        while True:
            version = self._ahead or reader.poll()
            if version is None:
                if self.ended or time.monotonic() >= deadline:
                    return self.ended
                time.sleep(POLL_S)
            elif max(version.meta.tick, self.through) > max_tick:
                self._ahead = version
                return True
            else:
                self._ahead = None
                self._take(version, max_tick)
                reader = self._reader or self._start(max_tick)

    def advance_to_newest(self, *, max_versions: int = 1 << 30) -> int:
        """Apply what is durable now; returns how many versions changed something."""
        before = self.applied
        reader = self._reader or self._start(None)
        for _ in range(max_versions):
            version = self._ahead or reader.poll()
            self._ahead = None
            if version is None:
                break
            self._take(version, None)
            reader = self._reader or self._start(None)
        return self.applied - before

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # -- inside ------------------------------------------------------------------------------------------------

    def _start(self, max_tick: int | None) -> VersionReader:
        base = self._store.base(max_tick=max_tick, select=is_served)
        self._reader = self._store.reader(offset=0 if base is None else base.next_offset, name=self._name)
        if base is not None:
            self._open_base(base)
        return self._reader

    def _open_base(self, base: State) -> None:
        self.model = self._empty_model()
        self.model.open(base.tensors)
        self._chain.stand_at(base.id, base.digest, base.through)
        self._view = self.model.show(base.id, base.digest)
        self.ended = base.meta.end
        self.applied += 1
        self._tell(None)

    def _take(self, version: Version, max_tick: int | None) -> None:
        meta = version.meta
        verdict = self._chain.judge(meta, version.value)
        if verdict is Verdict.GAP:
            self._catch_up(version, max_tick)
            return
        if verdict is Verdict.APPLY:
            self._apply(version)
        self.ended = meta.end
        self._note_position(version.offset + 1)

    def _apply(self, version: Version) -> None:
        meta = version.meta
        if meta.kind is Kind.GENERATION:
            self.model.open(self._store.opened_state(version, is_served))
        elif meta.kind is Kind.DELTA:
            self.model.apply(decode_tensors(version.value, is_served))
        self._chain.advance(meta)
        if meta.kind is Kind.PROGRESS:
            return
        self._view = self.model.show(meta.id, meta.digest)
        self.applied += 1
        if meta.closed_wall_ms >= self._since_wall_ms:
            self.sync_s.append(max(0.0, time.time() - meta.closed_wall_ms / 1000))
            self._tell(self.sync_s[-1])
        else:
            self._tell(None)

    def _catch_up(self, version: Version, max_tick: int | None) -> None:
        """A version is missing: start again from a snapshot beyond the gap; until then serve what is here."""
        base = self._store.base(max_tick=max_tick, select=is_served)
        if base is None or (self._chain.id is not None and (base.id, base.through) <= (self._chain.id, self.through)):
            raise CorruptStateError(
                f"versions: {version.meta.generation}.{version.meta.tick} at offset {version.offset} does not follow "
                f"{self._chain.id}, and no snapshot lies beyond; derive the versions again from the examples"
            )
        self.catch_ups += 1
        self._ahead = None
        self._open_base(base)
        assert self._reader is not None  # a version came from it
        self._reader.seek(base.next_offset)

    def _tell(self, sync_s: float | None) -> None:
        if self.on_applied is not None:
            self.on_applied(sync_s)

    def _note_position(self, next_offset: int) -> None:
        self._read_since_commit += 1
        if self._read_since_commit >= COMMIT_EVERY and self._reader is not None:
            self._reader.commit(next_offset)
            self._read_since_commit = 0

    def _empty_model(self) -> ServedModel:
        return ServedModel(self._model_config, self._timeline, precision=self._precision, exclusive=self._exclusive)
