"""Rollback: generation g + 1 opens from the state (g, t), optimizer and counters included.

1. The state at (g, t) is put together from the nearest snapshot and the deltas through t. The catalogue stays as it is
   now: what was learned is taken back, what is known of items is not.
2. It is written as a snapshot.
3. A control record names the generation, the snapshot and the input that is skipped: every partition's positions from
   (g, t) to now. A rerun obeys it instead of learning the poison again.
4. The generation is published at tick t with the positions of now: numbers never run backwards, input neither.

A crash between 3 and 4 is finished by calling again: the control record, if it is there, is obeyed.
"""

from collections.abc import Mapping

import msgspec

from infra.errors import ConfigError, CorruptStateError
from infra.paramstore.publisher import Publisher
from infra.paramstore.store import ParamStore, State
from infra.paramstore.version import VersionId, VersionMeta

CONTROL = "control"


class RollbackRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="rollback"):
    """The decision, as `control` keeps it (JSON). Unknown fields are ignored."""

    v: int = 1
    tick: int  # the end of this tick is when it takes effect: the newest tick that was published
    generation: int  # that it opens
    from_generation: int
    from_tick: int
    snapshot: str
    snapshot_digest: str
    skipped: dict[int, tuple[int, int]]  # partition of `examples` -> offsets [from, to)
    reason: str = ""


class _AnyRecord(msgspec.Struct):
    kind: str = ""


def roll_back(
    store: ParamStore, publisher: Publisher, to: VersionId, *, timestamp_ms: int, reason: str = ""
) -> VersionMeta:
    """Open the next generation from a version that the store can still put together; durable when it returns.

    Raises ConfigError where there is no such version, RetryableError where the disk refuses.
    """
    publisher.flush()
    head = publisher.head
    if head is None or publisher.chain.id is None or to > publisher.chain.id:
        raise ConfigError(f"version {to.generation}.{to.tick} was never published; the newest is {publisher.chain.id}")
    now = store.state()
    then = store.state(to)
    if then is None or now is None or then.id.generation != to.generation:
        raise ConfigError(f"version {to.generation}.{to.tick} is no longer kept; roll back to a newer one")
    record = _pending_decision(store, head.generation + 1) or _decide(store, publisher, head, then, now, reason)
    publisher.open_generation(
        record.generation,
        record.from_tick,
        record.snapshot,
        positions={p: hi for p, (_, hi) in record.skipped.items()},
        items_offset=head.items_offset,
        control_offset=store.log.end_offset(CONTROL, 0),
        timestamp_ms=timestamp_ms,
    )
    publisher.flush()
    assert publisher.head is not None  # just published
    return publisher.head


def _decide(
    store: ParamStore, publisher: Publisher, head: VersionMeta, then: State, now: State, reason: str
) -> RollbackRecord:
    generation = head.generation + 1
    tensors = {name: t for name, t in then.tensors.items() if not name.startswith("items/")}
    tensors |= {name: t for name, t in now.tensors.items() if name.startswith("items/")}
    snapshot = store.write_snapshot(
        f"rollback-g{generation:04d}-t{then.id.tick:010d}",
        dict(sorted(tensors.items())),
        kind="rollback",
        generation=generation,
        tick=then.id.tick,
    )
    record = RollbackRecord(
        tick=publisher.chain.through,
        generation=generation,
        from_generation=then.id.generation,
        from_tick=then.id.tick,
        snapshot=snapshot.name,
        snapshot_digest=snapshot.content_digest,
        skipped=_skipped(then.meta.positions, head.positions),
        reason=reason,
    )
    writer = store.log.writer(CONTROL)
    writer.append(0, msgspec.json.encode(record), timestamp_ms=0)
    writer.flush()
    writer.close()
    return record


def _skipped(then: Mapping[int, int], now: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    return {p: (then.get(p, 0), end) for p, end in sorted(now.items())}


def _pending_decision(store: ParamStore, generation: int) -> RollbackRecord | None:
    """The newest rollback in `control` that opens this generation: decided, and not yet published."""
    for record in reversed(decisions(store)):
        if record.generation == generation:
            return record
    return None


def decisions(store: ParamStore) -> list[RollbackRecord]:
    """Every rollback that `control` still holds, oldest first."""
    found: list[RollbackRecord] = []
    at, end = store.log.start_offset(CONTROL, 0), store.log.end_offset(CONTROL, 0)
    while at < end:
        for record in store.log.read(CONTROL, 0, at):
            at = record.offset + 1
            try:
                if msgspec.json.decode(record.value, type=_AnyRecord).kind == "rollback":
                    found.append(msgspec.json.decode(record.value, type=RollbackRecord))
            except msgspec.MsgspecError as error:
                raise CorruptStateError(f"control, offset {record.offset}: {error}; restore the log") from error
    return found
