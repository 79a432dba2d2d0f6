"""JSON and msgpack records become the rows that they say, and every malformed kind says what it is."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.config import WireConfig
from infra.hashing import hash64, partition_of
from stream.columns import MalformedRecordError
from stream.events import encode_events, heartbeats
from stream.wire.dead import Reason
from stream.wire.formats import Form, decode_wire_meta, form_of
from stream.wire.limits import Rules
from stream.wire.records import Incoming, Rows, read_events
from tests.join import scenes
from tests.stream.test_columns import same
from tests.wire import samples
from tests.wire.samples import FORMS, NOW, engagement, impression, pack

RULES = Rules(WireConfig(), 10_000)


def read(*values: bytes, rules: Rules = RULES, stamp: int = NOW) -> Rows:
    return read_events([Incoming(at, stamp, value, form_of(value)) for at, value in enumerate(values)], rules)


@pytest.mark.parametrize("form", FORMS)
def test_an_impression_and_its_click_become_keys_and_times(form: str) -> None:
    shown = impression(time_ms=..., time="2019-11-12T02:16:39.5009+00:00", device={"os": ["x"]})
    rows = read(pack([shown, engagement(kind="dwell", time_ms=...), {"type": "heartbeat"}], form))
    events = rows.events
    assert not rows.dead
    assert events.kind.tolist() == [0, 1, 2]
    assert events.time_ms.tolist() == [1_573_524_999_500, NOW, NOW]
    assert events.ingested_ms.tolist() == [NOW] * 3
    assert events.impression.tolist() == [hash64("i1"), hash64("i1"), 0]
    assert events.user.tolist() == [hash64("u1"), hash64("u1"), 0]
    assert events.item.tolist() == [0, hash64("a"), 0]
    assert events.action.tolist() == [0, 3, 0]
    assert [events.items[i].tolist() for i in range(3)] == [[hash64("a"), hash64("b")], [], []]
    assert [events.history[i].tolist() for i in range(3)] == [[hash64("c")], [], []]


@pytest.mark.parametrize("form", FORMS)
def test_an_integer_is_its_own_key_and_another_id_than_its_text(form: str) -> None:
    rows = read(pack(impression(id=-7, user=42, items=[42, "42", 2**63 - 1, "ü", -(2**63)], history=[]), form))
    assert not rows.dead
    assert (int(rows.events.impression[0]), int(rows.events.user[0])) == (-7, 42)
    assert rows.events.items[0].tolist() == [42, hash64("42"), 2**63 - 1, hash64("ü"), -(2**63)]


def test_what_an_event_does_not_say_is_the_records_timestamp_or_that_of_the_record_it_repeats() -> None:
    value = pack(engagement(time_ms=...), "json")
    again = Incoming(0, NOW, value, Form.JSON, origin_ms=NOW - 500)
    assert read(value).events.time_ms.tolist() == [NOW]
    rows = read_events([again], RULES).events
    assert (rows.time_ms.tolist(), rows.ingested_ms.tolist()) == ([NOW - 500], [NOW])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_the_same_events_are_the_same_rows_in_every_format(seed: int) -> None:
    rules = Rules(samples.WIRE, 10**9)
    for record in samples.readable(scenes.random_log(seed, seconds=3)):
        if record:
            expected = scenes.columns(record)
            for form in FORMS:
                rows = read(samples.render(record, form), rules=rules, stamp=2_000_000)
                assert not rows.dead
                assert same(rows.events, expected)


@pytest.mark.parametrize(
    ("bad", "form"),
    [pytest.param(b, f, id=f"{b.reason.value}-{f}") for b in samples.EVENTS for f in FORMS if b.raw(f)],
)
def test_a_bad_event_dies_with_its_reason_and_its_bytes_and_the_batch_around_it_lives(
    bad: samples.Bad, form: str
) -> None:
    raw = bad.raw(form)
    good = pack(engagement(), form)
    batch = b"[" + b", ".join([good, raw, good]) + b"]" if form == "json" else b"\x93" + good + raw + good
    rows = read(batch)
    assert rows.events.kind.tolist() == [1, 255, 1]
    assert [(dead.row, dead.fault.reason, dead.raw) for dead in rows.dead] == [(1, bad.reason, raw)]
    assert rows.dead[0].fault.detail
    if form_of(raw) and not isinstance(bad.event, list):
        alone = read(good, raw, good)
        assert [(dead.offset, dead.row, dead.fault.reason) for dead in alone.dead] == [(1, -1, bad.reason)]


@pytest.mark.parametrize(("reason", "value"), [r for r in samples.RECORDS if r[1][:1] != b"\xff"])
def test_a_bad_record_is_one_dead_event_with_all_of_its_bytes(reason: Reason, value: bytes) -> None:
    rows = read(value, pack(engagement(), "json"))
    assert rows.events.kind.tolist() == [255, 1]
    assert [(dead.row, dead.fault.reason, dead.raw) for dead in rows.dead] == [(-1, reason, value)]


def test_every_reason_has_a_sample() -> None:
    seen = {bad.reason for bad in samples.EVENTS} | {reason for reason, _ in samples.RECORDS}
    assert seen | {Reason.PARTITION, Reason.ROW, Reason.TEXT_LENGTH} == set(Reason)


@pytest.mark.parametrize("form", FORMS)
def test_a_user_of_another_partition_is_dead_there_and_says_where_he_belongs(form: str) -> None:
    users = [f"u{i}" for i in range(20)] + list(range(20))
    homes = [partition_of(str(user), 3) for user in users]
    rows = read(pack([engagement(user=user) for user in users], form), rules=Rules(WireConfig(), 10_000, 1, 3))
    assert set(homes) == {0, 1, 2}
    assert (rows.events.kind == 1).tolist() == [home == 1 for home in homes]
    assert {dead.fault.reason for dead in rows.dead} == {Reason.PARTITION}
    assert all(f"partition {homes[dead.row]} of 3" in dead.fault.detail for dead in rows.dead)


def test_a_limit_that_is_raised_lets_in_what_it_kept_out() -> None:
    value = pack(impression(id="x" * 200, items=[f"n{i}" for i in range(1_500)]), "json")
    assert read(value).dead
    wide = WireConfig(max_id_bytes=200, max_items=1_500)
    assert not read(value, rules=Rules(wide, 10_000)).dead
    assert not read(value, rules=RULES.relaxed()).dead


def test_a_time_beyond_what_the_join_knows_is_dead_whatever_the_limits_say() -> None:
    wide = Rules(WireConfig(min_time_ms=-(2**62), max_time_ms=2**62), 2**62)
    for event in (impression(time_ms=2**53), impression(ingested_ms=-1), {"type": "heartbeat", "time_ms": -1}):
        assert [dead.fault.reason for dead in read(pack(event, "json"), rules=wide).dead] == [Reason.TIME]
    assert [dead.fault.reason for dead in read(pack(engagement(), "json"), stamp=-1).dead] == [Reason.TIME]


# -- formats ---------------------------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(JSON_VALUES, max_size=3) | st.dictionaries(st.text(), JSON_VALUES, max_size=20), st.data())
def test_every_json_and_msgpack_container_is_told_by_its_first_byte(value: Any, data: st.DataObject) -> None:
    space = data.draw(st.text(" \t\r\n", max_size=3)).encode()
    assert form_of(space + json.dumps(value).encode()) is Form.JSON
    if len(value) < 2**32:
        packed = msgspec.msgpack.encode(_fits(value))
        assert form_of(packed) is Form.MSGPACK


def _fits(value: Any) -> Any:
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else 0
    if isinstance(value, dict):
        return {name: _fits(one) for name, one in value.items()}
    return [_fits(one) for one in value] if isinstance(value, list) else value


def test_no_first_byte_is_of_two_formats_and_large_containers_are_told_too() -> None:
    for n in (0, 15, 16, 70_000):
        assert form_of(msgspec.msgpack.encode([1] * n)) is Form.MSGPACK
        assert form_of(msgspec.msgpack.encode({str(i): i for i in range(n)})) is Form.MSGPACK
    assert form_of(encode_events(heartbeats(np.array([1])))) is Form.ARROW
    told = [form_of(bytes([byte])) for byte in range(256)]
    assert [told.count(form) for form in (Form.ARROW, Form.JSON, Form.MSGPACK)] == [1, 6, 36]


def test_a_header_wins_over_the_first_byte_and_an_unknown_one_is_no_format() -> None:
    assert form_of(b"\x80", "application/json; charset=utf-8") is Form.JSON
    assert form_of(b"{}", "Application/X-MsgPack") is Form.MSGPACK
    assert form_of(b"{}", "text/plain") is None
    assert decode_wire_meta(msgspec.msgpack.encode({"content_type": "application/json"})).source == -1
    with pytest.raises(MalformedRecordError, match="meta"):
        decode_wire_meta(msgspec.msgpack.encode({"content_type": 3}))
