"""Columns and codecs: what is written is read, by this build and by others; what cannot be read is said to be so."""

import contextlib
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.columns import Codec, Lists, MalformedRecordError
from stream.events import (
    EVENT_CODEC,
    EventColumns,
    RecordMeta,
    decode_events,
    decode_items,
    decode_meta,
    encode_events,
    encode_items,
    encode_meta,
    heartbeats,
    item_heartbeats,
)
from stream.examples import EMPTY, decode_examples, encode_examples
from tests.join import scenes

ROWS = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), max_size=8)
QUICK = settings(max_examples=50, deadline=None, derandomize=True)


def same(a: Any, b: Any) -> bool:
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, Lists):
            if not (np.array_equal(x.offsets, y.offsets) and np.array_equal(x.values, y.values)):
                return False
        elif not (np.array_equal(x, y) and getattr(x, "dtype", None) == getattr(y, "dtype", None)):
            return False
    return True


def some_events() -> EventColumns:
    return scenes.columns(scenes.random_log(3, seconds=3)[0] + scenes.random_log(4, seconds=3)[0])


@QUICK
@given(ROWS, st.randoms(use_true_random=False))
def test_list_columns_take_slice_and_join_like_lists_of_lists(rows: list[list[int]], random: Any) -> None:
    lists = Lists.of(rows)
    order = [random.randrange(len(rows)) for _ in range(random.randrange(9))] if rows else []
    lo = random.randrange(len(rows) + 1)
    both = Lists.concat([lists.slice(0, lo), lists.slice(lo, len(rows))])
    assert [row.tolist() for row in lists.take(np.array(order, dtype=np.int64))] == [rows[i] for i in order]
    assert [row.tolist() for row in lists.slice(lo, len(rows))] == rows[lo:]
    assert [both[i].tolist() for i in range(len(both))] == rows


def test_events_survive_the_trip_and_come_back_writable_and_aligned() -> None:
    events = some_events()
    back = decode_events(memoryview(b"x" + encode_events(events))[1:])
    assert same(events, back)
    assert back.time_ms.flags.writeable
    assert back.items.values.flags.aligned
    assert back.items.values.flags.c_contiguous


def test_empty_records_survive_the_trip() -> None:
    none = heartbeats(np.empty(0, dtype=np.int64))
    assert same(none, decode_events(encode_events(none)))
    assert same(EMPTY, decode_examples(encode_examples(EMPTY)))
    assert same(EMPTY, decode_examples(b""))


def test_items_survive_the_trip() -> None:
    items = item_heartbeats(np.array([5, 6], dtype=np.int64))
    assert same(items, decode_items(encode_items(items)))


def test_any_arrow_reader_opens_a_record() -> None:
    events = some_events()
    table = pa.ipc.open_stream(encode_events(events)).read_all()
    assert table.column("time_ms").to_pylist() == events.time_ms.tolist()


def test_a_newer_writers_unknown_and_reordered_columns_are_read_by_name() -> None:
    events = some_events()
    batch = EVENT_CODEC.batch({f.name: getattr(events, f.name) for f in fields(events)})
    names = [*reversed(batch.schema.names), "device"]
    arrays = [batch.column(name) for name in names[:-1]] + [pa.array(["phone"] * len(events))]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([(n, a.type) for n, a in zip(names, arrays, strict=True)])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, names=names))
    assert same(events, decode_events(sink.getvalue().to_pybytes()))


def test_a_missing_column_another_type_and_nulls_are_malformed() -> None:
    codec = Codec({"a": pa.int64(), "b": pa.uint8()})
    for table in ({"a": pa.array([1])}, {"a": pa.array([1]), "b": pa.array([1])}):
        value = _stream(pa.RecordBatch.from_pydict(table))
        with pytest.raises(MalformedRecordError, match="column b"):
            codec.decode(value)
    nulls = pa.RecordBatch.from_pydict({"a": pa.array([None], pa.int64()), "b": pa.array([1], pa.uint8())})
    with pytest.raises(MalformedRecordError, match="nulls"):
        codec.decode(_stream(nulls))


def test_what_would_be_lost_or_ask_for_any_memory_is_malformed() -> None:
    """A second batch, a second stream, bytes behind the end: never read in part. A compressed body: never read."""
    value = encode_events(some_events())
    batch = pa.ipc.open_stream(value).read_next_batch()
    other = batch.select([*reversed(batch.schema.names)])
    for first in (batch, other):
        with pytest.raises(MalformedRecordError, match="2 record batches"):
            decode_events(_stream(first, first))
        with pytest.raises(MalformedRecordError, match="compressed"):
            decode_events(_stream(first, compression="zstd"))
        for more in (b"\0", _stream(first)):
            with pytest.raises(MalformedRecordError, match=f"{len(more)} bytes follow"):
                decode_events(_stream(first) + more)
    open_ended = value[:-8]  # a stream may end without saying so
    assert same(decode_events(open_ended), some_events())
    items = encode_items(item_heartbeats(np.array([5], dtype=np.int64)))
    with pytest.raises(MalformedRecordError, match="follow"):
        decode_items(items + items)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_damaged_bytes_are_malformed_or_read_and_never_anything_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = bytearray(encode_events(some_events()))
    if seed % 2:  # through Arrow's reader
        batch = pa.ipc.open_stream(value).read_next_batch()
        value = bytearray(_stream(batch.select([*reversed(batch.schema.names)])))
    for _ in range(int(rng.integers(1, 4))):
        value[int(rng.integers(len(value)))] = int(rng.integers(256))
    del value[len(value) - int(rng.integers(0, len(value))) * int(rng.integers(0, 2)) :]
    with contextlib.suppress(MalformedRecordError):
        decode_events(bytes(value))


def test_meta_ignores_unknown_fields_and_refuses_what_is_none() -> None:
    import msgspec

    assert decode_meta(encode_meta(RecordMeta(source=7, end=True))) == RecordMeta(source=7, end=True)
    assert decode_meta(b"") == RecordMeta()
    assert decode_meta(msgspec.msgpack.encode({"source": 3, "from_the_future": [1]})).source == 3
    with pytest.raises(MalformedRecordError):
        decode_meta(b"\xc1")


def _stream(*batches: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    how = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batches[0].schema, options=how) as writer:
        for batch in batches:
            writer.write_batch(batch)
    value: bytes = sink.getvalue().to_pybytes()
    return value
