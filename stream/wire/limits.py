"""The rules that an event must keep beyond its form: what is asked of its times, lists, ids and partition."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from infra.config import WireConfig
from stream.wire.dead import Fault, Reason
from stream.wire.schema import TIME_LIMIT, Heartbeat, Impression, Item

_EPOCH, _MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_NO_LIMIT = 2**62
DEEPEST = 512  # lists in lists of a record that is read whatever wire.max_depth says


@dataclass(frozen=True, slots=True)
class Rules:
    """The configuration's limits, and where the record lies. `partitions` 0: every user may be here."""

    wire: WireConfig
    skew_ms: int
    partition: int = 0
    partitions: int = 0
    list_bytes: int = _NO_LIMIT  # of one impression in `examples`: 8 an item of its history, 9 a shown one

    def relaxed(self) -> "Rules":
        """For what was read before under rules that nobody knows any more: it was alive, unless a dead letter says."""
        limits = {name: _NO_LIMIT for name in WireConfig.__struct_fields__ if name.startswith("max_")}
        limits |= {"max_depth": DEEPEST, "min_time_ms": -_NO_LIMIT}
        return Rules(msgspec.structs.replace(self.wire, **limits), _NO_LIMIT, self.partition, 0)


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since 1970, rounded down."""
    return (moment - _EPOCH) // _MS


def check_time(ms: int, rules: Rules) -> Fault | None:
    """Whether a number can be a time in ms."""
    if max(rules.wire.min_time_ms, -TIME_LIMIT) <= ms <= min(rules.wire.max_time_ms, TIME_LIMIT):
        return None
    hint = "seconds?" if 0 <= ms < rules.wire.min_time_ms else "microseconds?" if ms > 0 else "before 1970?"
    return Fault(Reason.TIME, f"{ms} is no time in ms ({hint}; wire.min_time_ms, wire.max_time_ms)")


def check_ingested(ingested_ms: int, stamp_ms: int, rules: Rules) -> Fault | None:
    """An event cannot have been appended after its record: one wrong clock would close everybody's ticks."""
    if stamp_ms < 0:
        return Fault(Reason.TIME, "the record has no timestamp")
    if ingested_ms > stamp_ms + rules.skew_ms:
        return Fault(Reason.TIME, f"ingested_ms {ingested_ms} lies after its record ({stamp_ms}) and time.skew_s")
    if ingested_ms < 0:
        return Fault(Reason.TIME, f"ingested_ms {ingested_ms} lies before 1970")
    return check_time(ingested_ms, rules)


def check_impression(event: Impression, rules: Rules) -> Fault | None:
    """How long its lists are."""
    n, most = len(event.items), rules.wire.max_items
    if not n:
        return Fault(Reason.VALUE, "items is empty: name at least one - at `$.items`")
    if n > most:
        return Fault(Reason.LIST_LENGTH, f"{n} items; at most {most} (wire.max_items) - at `$.items`")
    if len(event.history) > rules.wire.max_history:
        most = rules.wire.max_history
        return Fault(Reason.LIST_LENGTH, f"{len(event.history)} items; at most {most} - at `$.history`")
    if 8 * len(event.history) + 9 * n > rules.list_bytes:
        return Fault(Reason.LIST_LENGTH, f"{n} items and {len(event.history)} of history; see join.bytes_per_record")
    return None


def check_item(item: Item, rules: Rules) -> Fault | None:
    """Its id and texts."""
    if fault := check_id(len(str(item.id).encode()), rules):
        return fault
    for name in ("category", "subcategory", "title"):
        size = len(getattr(item, name).encode())
        if size > rules.wire.max_text_bytes:
            most = rules.wire.max_text_bytes
            return Fault(Reason.TEXT_LENGTH, f"{size} bytes; at most {most} (wire.max_text_bytes) - at `$.{name}`")
    return None


def check_id(size: int, rules: Rules) -> Fault | None:
    """Bytes of an id."""
    if not size:
        return Fault(Reason.EMPTY_ID, "an id is empty")
    if size > rules.wire.max_id_bytes:
        return Fault(Reason.ID_LENGTH, f"an id of {size} bytes; at most {rules.wire.max_id_bytes} (wire.max_id_bytes)")
    return None


def beat_ms(beat: Heartbeat, stamp_ms: int) -> int | Fault:
    """How far a heartbeat says that time has come."""
    time_ms = moment_ms(beat.time_ms, beat.time, stamp_ms)
    if isinstance(time_ms, Fault) or beat.ingested_ms is None:
        return time_ms
    return beat.ingested_ms


def moment_ms(number: int | None, moment: datetime | None, default: int) -> int | Fault:
    """A time that is given as ms, as RFC 3339, or not at all."""
    if moment is None:
        return default if number is None else number
    if number is not None:
        return Fault(Reason.TIME, "a time as ms and as RFC 3339: give one")
    return epoch_ms(moment)
