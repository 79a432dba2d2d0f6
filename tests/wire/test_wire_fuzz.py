"""Whatever bytes come: rows and dead letters come out, the same number as events went in, and never an exception."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.config import WireConfig
from infra.eventlog import Record
from stream.wire.dead import Reason
from stream.wire.formats import form_of
from stream.wire.items import read_items
from stream.wire.limits import Rules
from stream.wire.records import Incoming, read_events
from tests.wire import samples
from tests.wire.samples import FORMS, NOW, engagement, impression, pack

RULES = Rules(WireConfig(max_depth=8), 1_000, 0, 2)
SEED = st.integers(0, 2**32)
GOOD: list[Any] = [
    impression(extra={"a": [1, {"b": "ü"}]}),
    engagement(v=1, ingested_ms=NOW - 3),
    {"type": "heartbeat"},
    {"type": "item", "id": "N1", "category": "c", "title": "t", "published": "2019-11-12T00:00:00Z"},
]
BAD = [bad.raw(form) for bad in samples.EVENTS for form in FORMS if bad.raw(form)]
BAD += [value for _, value in samples.RECORDS if len(value) < 10_000]


def check(value: bytes, stamp: int = NOW) -> None:
    """The claim, for one record in either topic."""
    for content_type in ("", "application/json", "application/msgpack"):
        form = form_of(value, content_type)
        if form is None or form.value != "arrow":
            rows = read_events([Incoming(5, stamp, value, form)], RULES)
            dead = {dead.row if dead.row >= 0 else 0 for dead in rows.dead}
            assert dead == set(np.flatnonzero(rows.events.kind == 255).tolist())
            assert all(one.fault.reason in Reason and one.fault.detail for one in rows.dead)
            assert all(one.raw in value for one in rows.dead)
            assert rows.bounds.tolist() == [0, len(rows.events)]
    items = read_items(Record(5, stamp, b"", b"", value), RULES)
    assert all(one.raw in value for one in items.dead)


@settings(max_examples=400, deadline=2_000, derandomize=True)
@given(st.binary(max_size=64))
def test_random_bytes(value: bytes) -> None:
    check(value)


@settings(max_examples=300, deadline=2_000, derandomize=True)
@given(SEED)
def test_valid_and_malformed_records_with_bytes_changed_moved_and_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    form = FORMS[int(rng.integers(2))]
    events = [GOOD[int(k)] for k in rng.integers(0, len(GOOD), size=int(rng.integers(1, 4)))]
    value = bytearray(pack(events if rng.random() < 0.5 else events[0], form))
    if rng.random() < 0.3:
        value = bytearray(BAD[int(rng.integers(len(BAD)))])
    for _ in range(int(rng.integers(0, 4))):
        at = int(rng.integers(len(value) + 1))
        match int(rng.integers(4)):
            case 0 if at < len(value):
                value[at] = int(rng.integers(256))
            case 1:
                value[at:at] = rng.bytes(int(rng.integers(1, 4)))
            case 2:
                del value[at : at + int(rng.integers(1, 9))]
            case _:
                value[at:at] = value[: int(rng.integers(1, 12))]
    check(bytes(value))


_SCALARS: Any = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([NOW, -1, 2**52, "impression", "heartbeat", "2019-11-12T02:14:46Z", "0001-01-01T00:00:00+23:59"])
)
_VALUES: Any = _SCALARS | st.lists(_SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), _SCALARS, max_size=2)
_FIELDS = st.sampled_from(
    ["type", "id", "user", "items", "history", "time", "time_ms", "ingested_ms", "v", "impression", "item", "kind", "x"]
)


@settings(max_examples=300, deadline=2_000, derandomize=True)
@given(st.sampled_from(GOOD), st.dictionaries(_FIELDS, _VALUES, max_size=3), st.sampled_from([NOW, 0, -1, 2**62]))
def test_events_with_any_value_in_any_field(event: Any, changes: dict[str, Any], stamp: int) -> None:
    changed = event | changes
    check(pack(changed, "msgpack"), stamp)
    check(pack([GOOD[1], changed], "json"), stamp)


def test_what_is_announced_and_not_there_costs_no_memory_and_what_is_long_no_time() -> None:
    for head in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ):
        check(head)
        check(b"\x81\xa4type" + head)
        check(b"\x91" + head)
        check(b"\x92" + b"\x91" * 20 + b"\x01" + head)
    check(b'{"type":"heartbeat","time_ms":' + b"1" * 500_000 + b"}")
    check(b'{"type":"heartbeat","x":"' + b"\\" * 500_001 + b'"}')
    check(b"[" + b"{}," * 100_000 + b"{}]")
    check(b"[" * 500_000 + b"]" * 500_000)
    check(b'[{"a":' * 300 + b"1" + b"}]" * 300)
