"""Schema 1 of every format stays readable: the bytes in `golden/` were written by the release that made the schema.

A change that breaks one of these breaks every producer in the field, and every dead letter that waits for its replay.
"""

from pathlib import Path

import msgspec
import pytest

from infra.config import WireConfig
from infra.eventlog import Record
from infra.hashing import hash64, partition_of
from serving.requests import columns_by_partition, parse_events
from stream.deadletters import LetterMeta, decode_letter_meta
from stream.deadreplay import Note
from stream.events import EventColumns
from stream.wire.formats import WireMeta, decode_wire_meta, form_of
from stream.wire.items import read_items
from stream.wire.limits import Rules
from stream.wire.records import Incoming, read_events
from tests.stream.test_columns import same
from tests.wire import samples
from tests.wire.samples import FORMS, NOW

GOLDEN = Path(__file__).parent / "golden"
RULES = Rules(WireConfig(), 10_000)


def read(value: bytes) -> EventColumns:
    rows = read_events([Incoming(0, NOW + 1_000, value, form_of(value))], RULES)
    assert not rows.dead
    return rows.events


@pytest.mark.parametrize("form", FORMS)
def test_events_of_schema_1(form: str) -> None:
    events = read((GOLDEN / f"events-1.{form}").read_bytes())
    assert events.kind.tolist() == [0, 0, 1, 1, 2, 2]
    assert events.time_ms.tolist() == [NOW, NOW + 250, NOW + 1_000, NOW + 1_000, NOW + 900, NOW + 1_000]
    assert events.ingested_ms.tolist() == [NOW + 5, *[NOW + 1_000] * 3, NOW + 900, NOW + 1_000]
    assert events.impression.tolist() == [hash64("i1"), -7, hash64("i1"), -7, 0, 0]
    assert events.user.tolist() == [hash64("U81994"), 42, hash64("U81994"), 42, 0, 0]
    assert events.items[0].tolist() == [hash64("N1"), hash64("N2"), 3]
    assert events.items[1].tolist() == [hash64("ü")]
    assert events.history.lengths.tolist() == [1, 0, 0, 0, 0, 0]
    assert events.item.tolist()[2:4] == [hash64("N2"), hash64("ü")]
    assert events.action.tolist() == [0, 0, 2, 0, 0, 0]
    assert same(read((GOLDEN / f"event-1.{form}").read_bytes()), events.slice(0, 1))


@pytest.mark.parametrize("form", FORMS)
def test_items_of_schema_1(form: str) -> None:
    value = (GOLDEN / f"items-1.{form}").read_bytes()
    items, dead = read_items(Record(0, NOW, b"", b"", value), RULES)
    assert not dead
    assert items.kind.tolist() == [0, 0, 2]
    assert items.item.tolist() == [hash64("N1"), 42, 0]
    assert items.title == ["A “quoted” title", "", ""]
    assert items.published_ms.tolist() == [1_573_430_400_000, -1, -1]
    assert items.ingested_ms.tolist() == [NOW - 1, NOW, NOW]
    assert (items.category_name[0], items.subcategory_name[0]) == ("news", "newsus")
    assert items.words[0].tolist() == [hash64(word) for word in ("a", "quoted", "title")]


def test_letters_replayed_records_and_notes_of_schema_1() -> None:
    letter = decode_letter_meta(Record(0, 0, b"", (GOLDEN / "letter-1.meta").read_bytes(), b""))
    place = {"topic": "events", "partition": 1, "offset": 17, "rows": (3,), "form": "json", "timestamp_ms": NOW}
    assert letter == LetterMeta("id_too_long", "an id of 200 bytes", **place)  # type: ignore[arg-type]
    mind = msgspec.msgpack.encode({"reason": "bad_time", "file": "behaviors.tsv", "line": 3})
    assert decode_letter_meta(Record(0, 0, b"", mind, b"")) == LetterMeta("bad_time", file="behaviors.tsv", line=3)
    meta = decode_wire_meta((GOLDEN / "replayed-1.meta").read_bytes())
    assert meta == WireMeta(content_type="application/json", origin="events/1/17/3", origin_ms=NOW)
    note = msgspec.msgpack.decode((GOLDEN / "note-1.value").read_bytes(), type=Note)
    assert note == Note(("events/1/17/3",), {"events/0": 4, "items/0": 0}, True)


def test_what_clients_post_is_the_same_schema_and_becomes_the_same_rows() -> None:
    events = samples.some_impressions(40)
    posted = parse_events(samples.pack({"events": events}, "json"), WireConfig())
    by_partition = columns_by_partition([posted], 2, NOW + 10_000)
    assert len(by_partition) == 2
    for p, rows in by_partition.items():
        here = [event for event in events if partition_of(event["user"], 2) == p]
        record = Incoming(0, NOW + 10_000, samples.pack(here, "msgpack"), form_of(b"\xdc"))
        ours = read_events([record], Rules(WireConfig(), 10_000, p, 2))
        assert not ours.dead
        assert same(ours.events, rows)
