"""The parameter store of a run: one face over the versions log, the snapshots, the aliases and the pins.

Reading needs nothing but the run folder (in-process, or another process on the same disk). Writing takes the
publisher's lock. Readers start at `base()`, then follow the log from its `next_offset`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from infra.errors import CorruptStateError
from infra.eventlog.base import EventLog
from infra.paramstore.chain import Chain, Verdict
from infra.paramstore.marks import Mark, Marks
from infra.paramstore.merge import fold, merge
from infra.paramstore.publisher import Publisher, last_whole
from infra.paramstore.reader import VersionReader
from infra.paramstore.snapshots import Snapshot, SnapshotMeta, SnapshotStore
from infra.paramstore.tensors import Tensors
from infra.paramstore.version import TOPIC, Kind, Version, VersionId, VersionMeta

Select = Callable[[str], bool]


class State(NamedTuple):
    """Everything at one version: what a trainer restarts from, and what a snapshot holds."""

    id: VersionId
    digest: str
    through: int  # known unchanged through this tick
    meta: VersionMeta | SnapshotMeta  # positions, items_offset, control_offset, end
    tensors: Tensors
    next_offset: int  # in `versions`


class ParamStore:
    """`ParamStore(run_dir, log)` reads; `.publisher(...)` writes."""

    def __init__(self, run_dir: Path, log: EventLog) -> None:
        self.log = log
        self.snapshots = SnapshotStore(run_dir / "store")
        self.aliases = Marks(run_dir / "store" / ".aliases")
        self.pins = Marks(run_dir / "store" / ".pins")

    def publisher(self, *, fingerprint: str = "", configuration: str = "", part_bytes: int = 8 << 20) -> Publisher:
        """The one writer of this run. Raises RetryableError while another process is it."""
        return Publisher(
            self.log,
            self.snapshots,
            self.aliases,
            fingerprint=fingerprint,
            configuration=configuration,
            part_bytes=part_bytes,
        )

    def head(self) -> VersionMeta | None:
        """The newest durable version or progress note."""
        return last_whole(self.log)

    def reader(self, *, offset: int = 0, name: str | None = None) -> VersionReader:
        """Raw versions from an offset on, in log order."""
        return VersionReader(self.log, offset=offset, name=name)

    # -- snapshots ---------------------------------------------------------------------------------------------

    def write_snapshot(
        self, name: str, tensors: Mapping[str, NDArray[Any]], *, kind: str, generation: int, tick: int, **more: Any
    ) -> SnapshotMeta:
        """A snapshot beside the chain: the retrain's ("nightly", "candidate") or one that a generation will name."""
        meta = SnapshotMeta(name=name, kind=kind, generation=generation, tick=tick, **more)
        return self.snapshots.write(meta, tensors)

    def write_state(self, publisher: Publisher, tensors: Mapping[str, NDArray[Any]]) -> SnapshotMeta:
        """The chain's own snapshot at the publisher's head, which must be flushed."""
        head, chain = publisher.head, publisher.chain
        if head is None or chain.id is None or publisher.pending:
            raise ValueError("a state snapshot is taken at a committed version: publish and flush first")
        meta = SnapshotMeta(
            name=f"state-g{chain.id.generation:04d}-t{chain.through:010d}",
            kind="state",
            generation=chain.id.generation,
            tick=chain.id.tick,
            version_digest=chain.digest,
            through=chain.through,
            next_offset=self.log.end_offset(TOPIC, 0),
            positions=head.positions,
            items_offset=head.items_offset,
            control_offset=head.control_offset,
            end=head.end,
        )
        return self.snapshots.write(meta, tensors)

    def read_snapshot(self, name: str, select: Select | None = None) -> Snapshot:
        """Verified; raises CorruptStateError and says what to do."""
        return self.snapshots.read(name, select)

    def latest_snapshot(self, *, max_tick: int | None = None) -> SnapshotMeta | None:
        """The newest state snapshot whose chain position the log still knows, at most through `max_tick`."""
        end = self.log.end_offset(TOPIC, 0)
        start = self.log.start_offset(TOPIC, 0)
        usable = [m for m in self._states() if start <= m.next_offset <= end]
        reach = [m for m in usable if max_tick is None or m.through <= max_tick]
        return reach[-1] if reach else None

    def _states(self) -> list[SnapshotMeta]:
        """The chain's own snapshots, in log order; one that is pruned meanwhile is left out."""
        metas: list[SnapshotMeta] = []
        for name in self.snapshots.names():
            if name.startswith("state-"):
                try:
                    metas.append(self.snapshots.meta(name))
                except CorruptStateError:
                    if self.snapshots.exists(name):
                        raise
        return sorted((m for m in metas if m.kind == "state"), key=lambda m: m.next_offset)

    def generation_mark(self, *, max_tick: int | None = None) -> Mark | None:
        """The newest generation's record, if the log still holds it."""
        mark = self.aliases.get("generation")
        if mark is None or not self.log.start_offset(TOPIC, 0) <= mark.offset < self.log.end_offset(TOPIC, 0):
            return None
        return mark if max_tick is None or mark.through <= max_tick else None

    # -- state -------------------------------------------------------------------------------------------------

    def base(self, *, max_tick: int | None = None, select: Select | None = None) -> State | None:
        """The nearest stored state to start from (None: from the log's start); deltas follow from `next_offset`."""
        while True:
            meta = self.latest_snapshot(max_tick=max_tick)
            try:
                return self._nearest(meta, max_tick, select)
            except CorruptStateError:
                if meta is None or self.snapshots.exists(meta.name):
                    raise  # otherwise it was pruned between two looks: a newer one is there

    def _nearest(self, meta: SnapshotMeta | None, max_tick: int | None, select: Select | None) -> State | None:
        mark = self.generation_mark(max_tick=max_tick)
        if mark is not None and (meta is None or mark.offset >= meta.next_offset):
            opened = self._at_generation(mark, select)
            if opened is not None:
                return opened
        if meta is None:
            return None
        tensors = self.snapshots.read(meta.name, select).tensors
        return State(meta.id, meta.version_digest, meta.through, meta, tensors, meta.next_offset)

    def _at_generation(self, mark: Mark, select: Select | None) -> State | None:
        """The state at a generation's record, or None where its snapshot alone is not the whole state."""
        version = VersionReader(self.log, offset=mark.offset).poll()
        if version is None or version.meta.digest != mark.digest:
            raise CorruptStateError(
                f"alias 'generation' names version {mark.generation}.{mark.tick} at offset {mark.offset} and the log "
                f"holds another one there; delete the alias file: readers start from a snapshot"
            )
        tensors = self.opened_state(version, select)
        if not any(name.startswith("counters/") for name in tensors):
            return None
        meta = version.meta
        return State(meta.id, meta.digest, mark.through, meta, tensors, version.offset + 1)

    def opened_state(self, version: Version, select: Select | None = None) -> Tensors:
        """What a generation's record opens: its snapshot, checked against the record, and its rows over it."""
        snapshot = self.snapshots.read(version.meta.snapshot, select)
        if snapshot.meta.content_digest != version.meta.snapshot_digest:
            raise CorruptStateError(
                f"snapshot {version.meta.snapshot} is not the one that version {version.meta.generation}."
                f"{version.meta.tick} opened with; restore it, or derive the versions again from the examples"
            )
        rows = version.tensors()
        return fold(snapshot.tensors, [rows] if rows else [])

    def deltas(self, since: State | None, *, through: VersionId | None = None) -> Iterator[Version]:
        """Versions after `since`, in order, each judged by the chain; up to and including `through`.

        Raises CorruptStateError for a gap: the log does not continue the snapshot.
        """
        chain = Chain()
        if since is not None:
            chain.stand_at(since.id, since.digest, since.through)
        for version in self.reader(offset=since.next_offset if since is not None else 0):
            verdict = chain.judge(version.meta, version.value)
            if verdict is Verdict.GAP:
                raise CorruptStateError(
                    f"versions: {version.meta.generation}.{version.meta.tick} does not follow {chain.id}; part of the "
                    f"log is missing: start from a newer snapshot, or derive the versions again from the examples"
                )
            if verdict is Verdict.DUPLICATE:
                continue
            if through is not None and version.meta.id > through:
                return
            chain.advance(version.meta)
            yield version

    def state(self, at: VersionId | None = None) -> State | None:
        """The whole state at a version (default: the head), from the nearest snapshot and the deltas after it."""
        base = self.base() if at is None else self._base_before(at)
        state = base
        tensors: Tensors = dict(base.tensors) if base is not None else {}
        waiting: list[Tensors] = []
        for version in self.deltas(base, through=at):
            meta = version.meta
            if meta.kind is Kind.GENERATION:
                tensors = replace_sections(fold(tensors, waiting), self.opened_state(version))
                waiting = []
            elif meta.kind is Kind.DELTA:
                waiting.append(version.tensors())
            id_, digest = (meta.id, meta.digest) if meta.kind is not Kind.PROGRESS or state is None else state[:2]
            through = max(meta.tick, state.through if state is not None else -1)
            state = State(id_, digest, through, meta, tensors, version.offset + 1)
        return None if state is None else state._replace(tensors=fold(tensors, waiting))

    def _base_before(self, at: VersionId) -> State | None:
        start = self.log.start_offset(TOPIC, 0)
        usable = [m for m in self._states() if m.id <= at and m.next_offset >= start]
        if not usable:
            return None
        best = usable[-1]
        tensors = self.snapshots.read(best.name).tensors
        return State(best.id, best.version_digest, best.through, best, tensors, best.next_offset)

    def merged(self, since: State | None, *, through: VersionId | None = None) -> Tensors:
        """The deltas after a state as one (last writer wins, tombstones kept): for catching up in one step."""
        versions = list(self.deltas(since, through=through))
        if any(v.meta.kind is Kind.GENERATION for v in versions):
            raise ValueError("a generation opens in between: take its snapshot, then merge what follows")
        return merge(v.tensors() for v in versions)

    # -- keeping -----------------------------------------------------------------------------------------------

    def pin(self, holder: str, version: VersionId, digest: str, offset: int) -> None:
        """Keep this version reachable until `unpin(holder)`."""
        self.pins.set(holder, Mark(generation=version.generation, tick=version.tick, digest=digest, offset=offset))

    def unpin(self, holder: str) -> None:
        self.pins.remove(holder)

    def prune(self, *, keep: int = 2) -> list[str]:
        """Delete state snapshots but the newest `keep`, and those that a pin or an alias needs. Returns their names."""
        metas = self._states()
        held = {m.name for m in metas[len(metas) - keep :]} if keep else set()
        for mark in self._held_marks():
            reach = [m for m in metas if m.next_offset <= mark.offset + 1]
            held |= {reach[-1].name} if reach else set()
        dropped = [m.name for m in metas if m.name not in held]
        for name in dropped:
            self.snapshots.delete(name)
        return dropped

    def _held_marks(self) -> Iterable[Mark]:
        return [*self.pins.all().values(), *self.aliases.all().values()]


def replace_sections(state: Tensors, opened: Tensors) -> Tensors:
    """The state after a generation opened: sections that it brings are replaced, the others stay.

    Counters and items belong to no generation: a snapshot without them resets nothing.
    """
    brought = {name.partition("/")[0] for name in opened}
    kept = {name: t for name, t in state.items() if name.partition("/")[0] not in brought}
    return dict(sorted((kept | opened).items()))
