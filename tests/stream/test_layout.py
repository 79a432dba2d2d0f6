"""The layout of a record: what it reads equals what Arrow reads, and what does not add up is left to Arrow."""

import random
from typing import Any

import numpy as np
import pyarrow as pa

from stream.columns import Codec, Lists, MalformedRecordError

FIELDS = {"a": pa.int64(), "b": pa.list_(pa.int64()), "c": pa.int32(), "d": pa.list_(pa.uint8())}


def record(rows: int, seed: int) -> dict[str, Any]:
    r = np.random.default_rng(seed)
    wide = [r.integers(-(2**62), 2**62, r.integers(0, 5)) for _ in range(rows)]
    narrow = [r.integers(0, 256, r.integers(0, 9)) for _ in range(rows)]
    return {
        "a": r.integers(-(2**62), 2**62, rows),
        "b": Lists.of(wide),
        "c": r.integers(0, 9, rows).astype(np.int32),
        "d": Lists.of(narrow, np.uint8),
    }


def by_arrow(codec: Codec, value: bytes) -> dict[str, Any] | None:
    slow = Codec(FIELDS)
    slow._layout = None
    try:
        return slow.decode(value)
    except MalformedRecordError:
        return None


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    flat = [
        (x, y)
        for x, y in zip(a.values(), b.values(), strict=True)
        for x, y in (((x.offsets, y.offsets), (x.values, y.values)) if isinstance(x, Lists) else ((x, y),))
    ]
    return all(x.dtype == y.dtype and y.flags.carray and np.array_equal(x, y) for x, y in flat)


def test_a_record_is_read_as_arrow_reads_it() -> None:
    codec = Codec(FIELDS)
    for rows in (1, 2, 7, 300):
        value = codec.encode(record(rows, seed=rows))
        message = np.frombuffer(bytearray(value), np.uint8)[len(codec._prefix) :]
        assert codec._layout is not None
        assert codec._layout.read(message) is not None, "the short way is not taken"
        expected = by_arrow(codec, value)
        assert expected is not None
        assert same(expected, codec.decode(value))


def test_a_damaged_record_is_read_as_arrow_reads_it_or_refused() -> None:
    codec, value, dice = Codec(FIELDS), Codec(FIELDS).encode(record(5, seed=1)), random.Random(1)
    head = len(codec._prefix)
    for _ in range(3_000):
        damaged = bytearray(value)
        for _ in range(dice.choice((1, 1, 2))):
            damaged[dice.randrange(head, len(value))] = dice.choice((0, 1, 0x7F, 0xFF, dice.randrange(256)))
        damaged = damaged[: dice.choice((len(damaged), len(damaged), dice.randrange(head, len(damaged))))]
        expected = by_arrow(codec, bytes(damaged))
        try:
            found = codec.decode(bytes(damaged))
        except MalformedRecordError:
            continue
        assert expected is not None
        assert same(expected, found)
