"""Records of every released schema stay readable: the bytes in `golden/` were written by the release that they name.

A change that breaks one of these breaks every log in the field: add a version and its golden bytes, keep the old.
"""

from pathlib import Path

import numpy as np

from stream.columns import Lists
from stream.events import RecordMeta, decode_events, decode_items, decode_meta
from stream.examples import decode_example_meta, decode_examples

GOLDEN = Path(__file__).parent / "golden"


def test_events_of_schema_1() -> None:
    events = decode_events((GOLDEN / "events-1.arrow").read_bytes())
    assert events.kind.tolist() == [0, 1, 2]
    assert events.time_ms.tolist() == [1_000, 2_000, 9_000]
    assert events.ingested_ms.tolist() == [1_010, 2_020, 9_000]
    assert [events.history[i].tolist() for i in range(3)] == [[7, 8], [], []]
    assert [events.items[i].tolist() for i in range(3)] == [[5, 6], [], []]
    assert (int(events.item[1]), int(events.action[1]), events.source.tolist()) == (6, 1, [16, 18, -1])
    assert decode_meta((GOLDEN / "events-1.meta").read_bytes()) == RecordMeta(v=1, source=18, end=True)


def test_items_of_schema_1() -> None:
    items = decode_items((GOLDEN / "items-1.arrow").read_bytes())
    assert items.item_id == ["N1"]
    assert items.title == ["A “quoted” title"]
    assert (items.category_name, items.subcategory_name) == (["news"], ["newsus"])
    assert items.words[0].tolist() == [1, 2, 3]
    assert items.published_ms.tolist() == [-1]


def test_examples_of_schema_1() -> None:
    examples = decode_examples((GOLDEN / "examples-1.arrow").read_bytes())
    assert examples.shown_ms.tolist() == [1_000]
    assert examples.first_engaged_ms.tolist() == [2_020]
    assert examples.labels[0].tolist() == [0, 2]
    assert isinstance(examples.history, Lists)
    assert examples.row.dtype == np.int32
    meta = decode_example_meta((GOLDEN / "examples-1.meta").read_bytes())
    assert (meta.v, meta.seq, meta.tick, meta.closed_through, meta.is_marker) == (1, 4, 2, 2, False)
    assert meta.counts == {"events_in": 2, "joined_impressions": 1, "joined_engagements": 1}
