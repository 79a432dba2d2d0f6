"""Deltas that are repeated, reordered, dropped and truncated at random: a reader ends at a true version, or says so.

The reader under test is the pure core of a replica: chain and fold. Each deliberately wrong reader below must be caught
by the same check, or the check proves nothing.
"""

import contextlib
import random
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import CorruptStateError
from infra.paramstore.chain import Chain, Verdict
from infra.paramstore.merge import fold, merge
from infra.paramstore.tensors import Tensors, decode_tensors, encode_tensors
from infra.paramstore.version import Kind, VersionId, VersionMeta, digest_of


class Sent(NamedTuple):
    meta: VersionMeta
    value: bytes


def delta(rng: np.random.Generator) -> Tensors:
    keys = np.sort(rng.choice(12, size=rng.integers(0, 6), replace=False)).astype(np.int64)
    dead = rng.choice(12, size=rng.integers(0, 3), replace=False).astype(np.int64)
    values = rng.standard_normal((len(keys), 2)).astype(np.float32)
    return {"slot/a/keys": keys, "slot/a/values": values, "slot/a/tombstones": dead}


def history(n: int, seed: int) -> tuple[list[Sent], dict[VersionId, Tensors]]:
    """n versions of a toy model, two generations, with the state after each."""
    rng = np.random.default_rng(seed)
    sent, states, state, digest, generation = [], {}, {}, "", 0
    for tick in range(n):
        kind = Kind.GENERATION if tick in (0, n // 2) else Kind.DELTA
        generation += kind is Kind.GENERATION and tick > 0
        tensors = delta(rng)
        value = encode_tensors(tensors)
        meta = VersionMeta(
            generation=generation, tick=tick, kind=kind, positions={}, items_offset=0, control_offset=0,
            predecessor=digest, digest="",
        )  # fmt: skip
        digest = digest_of(meta, value)
        meta = msgspec.structs.replace(meta, digest=digest)
        state = fold({} if kind is Kind.GENERATION else state, [tensors])
        sent.append(Sent(meta, value))
        states[meta.id] = state
    return sent, states


class Reader:
    """Chain and fold: what a replica does with each record."""

    verify = True

    def __init__(self) -> None:
        self.chain = Chain()
        self.state: Tensors = {}
        self.gaps = 0

    def receive(self, record: Sent) -> None:
        verdict = self.chain.judge(record.meta, record.value, verify=self.verify)
        if verdict is Verdict.GAP:
            self.gaps += 1
        if verdict is Verdict.APPLY:
            self.apply(record)

    def apply(self, record: Sent) -> None:
        before = {} if record.meta.kind is Kind.GENERATION else self.state
        self.state = fold(before, [decode_tensors(record.value)])
        self.chain.advance(record.meta)


class AppliesGaps(Reader):
    def receive(self, record: Sent) -> None:
        if self.chain.id is None or record.meta.id > self.chain.id:
            self.apply(record)


class AppliesRepeats(Reader):
    def receive(self, record: Sent) -> None:
        if self.chain.judge(record.meta, record.value) is not Verdict.GAP:
            self.apply(record)


class ForgetsTombstones(Reader):
    def apply(self, record: Sent) -> None:
        tensors = decode_tensors(record.value, lambda name: not name.endswith("tombstones"))
        self.state = fold({} if record.meta.kind is Kind.GENERATION else self.state, [tensors])
        self.chain.advance(record.meta)


class FirstWriterWins(Reader):
    def apply(self, record: Sent) -> None:
        before = {} if record.meta.kind is Kind.GENERATION else self.state
        self.state = fold(decode_tensors(record.value), [before]) if before else fold(decode_tensors(record.value), [])
        self.chain.advance(record.meta)


class SkipsTheDigest(Reader):
    verify = False


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def disturbed(sent: list[Sent], rng: random.Random) -> list[Sent]:
    """Repeats, swaps, losses, and values cut short or with a flipped bit."""
    out: list[Sent] = []
    for record in sent:
        roll = rng.random()
        if roll < 0.1:
            continue
        if roll < 0.2 and record.value:
            at = rng.randrange(len(record.value))
            bad = record.value[:at] if rng.random() < 0.5 else _flipped(record.value, at, rng.randrange(8))
            out.append(Sent(record.meta, bad))
        out += [record] * (1 + (rng.random() < 0.2))
    for _ in range(rng.randrange(4)):
        if len(out) > 1:
            i, j = rng.randrange(len(out)), rng.randrange(len(out))
            out[i], out[j] = out[j], out[i]
    return out


def _flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def run(reader: Reader, n: int, seed: int) -> str | None:
    """None, or what the reader did wrong: it must stand at a true version after every record, and end at the newest
    once the log is read again."""
    sent, states = history(n, seed)
    for record in [*disturbed(sent, random.Random(seed)), *sent]:
        before = reader.chain.id
        with contextlib.suppress(CorruptStateError):  # said so, and stays where it is
            reader.receive(record)
        if before is not None and reader.chain.id < before:
            return f"went back from {before} to {reader.chain.id}"
        if reader.chain.id is not None and not same(reader.state, states[reader.chain.id]):
            return f"holds another state than {reader.chain.id}"
    return None if reader.chain.id == sent[-1].meta.id else f"ended at {reader.chain.id}"


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 12), seed=st.integers(0, 1 << 30))
def test_any_schedule_leaves_the_reader_at_a_true_version(n: int, seed: int) -> None:
    assert run(Reader(), n, seed) is None, f"n={n} seed={seed}"


def test_the_schedules_that_catch_a_wrong_reader_leave_the_right_one_at_a_true_version() -> None:
    assert {seed: said for seed in range(60) if (said := run(Reader(), 8, seed)) is not None} == {}


@pytest.mark.parametrize("wrong", [AppliesGaps, AppliesRepeats, ForgetsTombstones, FirstWriterWins, SkipsTheDigest])
def test_a_wrong_reader_is_caught(wrong: type[Reader]) -> None:
    assert any(run(wrong(), 8, seed) is not None for seed in range(60)), wrong.__name__


def test_a_fork_is_no_gap() -> None:
    sent, _ = history(4, 0)
    other, _ = history(4, 1)
    reader = Reader()
    for record in sent:
        reader.receive(record)
    with pytest.raises(CorruptStateError, match="two trainers"):
        reader.receive(other[3])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), cut=st.integers(0, 6))
def test_merged_deltas_do_what_the_deltas_do(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    state = fold(delta(rng), [])
    deltas = [delta(rng) for _ in range(6)]
    one_by_one = state
    for d in deltas:
        one_by_one = fold(one_by_one, [d])
    merged = [merge(deltas[:cut]), merge(deltas[cut:])] if 0 < cut < 6 else [merge(deltas)]
    assert same(fold(state, merged), one_by_one)
    expected = _by_hand(state, deltas)
    got = dict(zip(one_by_one["slot/a/keys"].tolist(), one_by_one["slot/a/values"].tolist(), strict=True))
    assert got == expected


def _by_hand(state: Tensors, deltas: list[Tensors]) -> dict[int, list[float]]:
    """The law in four lines of Python: what `fold` must agree with."""
    rows: dict[int, list[float]] = {}
    for d in [state, *deltas]:
        for key in d.get("slot/a/tombstones", np.empty(0)).tolist():
            rows.pop(key, None)
        rows |= dict(zip(d["slot/a/keys"].tolist(), d["slot/a/values"].tolist(), strict=True))
    return rows
