"""What float16 and int8 cost: the bounds that `half` and `quantize` state, and what becomes of NaN and infinity."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.embedding.index.index import CuckooIndex
from infra.embedding.served.half import to_half
from infra.embedding.served.quantize import LARGEST, gather_int8, row_bytes, to_int8
from infra.embedding.served.stores import PRECISIONS, make_store

components = st.floats(width=32, allow_nan=False, allow_infinity=False)


def read_int8(values: np.ndarray) -> np.ndarray:
    out = np.empty(values.shape, np.float32)
    gather_int8(to_int8(values), np.arange(len(values), dtype=np.int32), out)
    return out


def rows(draw: Any) -> np.ndarray:
    n, dim = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    flat = draw(st.lists(components, min_size=n * dim, max_size=n * dim))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e-30]))
    return (np.array(flat, np.float64).reshape(n, dim) * scale).astype(np.float32)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_an_int8_row_is_within_its_bound(data: st.DataObject) -> None:
    values = rows(data.draw)
    got, exact = read_int8(values).astype(np.float64), values.astype(np.float64)
    peak = np.abs(exact).max(axis=1)
    kept = peak >= 2.0**-119
    assert not got[~kept].any()
    error = np.abs(got - exact)[kept]
    assert np.all(error <= (peak[kept] * (1 / 254 + 2.0**-23))[:, None])
    norm = np.sqrt(((exact[kept] / peak[kept, None]) ** 2).sum(axis=1)) * peak[kept]
    rms = np.sqrt(((error / peak[kept, None]) ** 2).sum(axis=1)) * peak[kept]
    assert np.all(rms <= norm * (np.sqrt(values.shape[1]) / 254 + 1e-6))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_float16_row_is_within_its_bound(data: st.DataObject) -> None:
    exact = rows(data.draw).astype(np.float64)
    got = to_half(exact.astype(np.float32)).view(np.float16).astype(np.float64)
    inside = np.abs(exact) < 65504
    assert np.all(np.abs(got - exact)[inside] <= np.abs(exact)[inside] * 2.0**-11 + 2.0**-25)


@pytest.mark.parametrize("dim", [16, 32])
@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_the_error_of_ordinary_rows_is_what_the_page_says(dim: int, law: str) -> None:
    rng = np.random.default_rng(3)
    values = (rng.normal(size=(20_000, dim)) if law == "normal" else rng.uniform(-1, 1, (20_000, dim))) * 0.05
    values = values.astype(np.float32)
    norm = np.linalg.norm(values, axis=1)
    int8 = np.linalg.norm(read_int8(values) - values, axis=1) / norm
    half = np.linalg.norm(to_half(values).view(np.float16).astype(np.float32) - values, axis=1) / norm
    assert 0.003 < int8.mean() < 0.006
    assert int8.max() < 0.0125
    assert 1e-4 < half.mean() < 2.5e-4
    assert half.max() < 2.0**-11


def test_what_is_no_number_is_kept_as_the_module_says() -> None:
    values = np.array([[np.inf, 1, 0], [-np.inf, 2, 0], [1, np.nan, 2], [0, 0, 0], [1e-37, 0, -1e-37]], np.float32)
    got = read_int8(values)
    assert got[:2, 0].tolist() == pytest.approx([LARGEST, -LARGEST], rel=1e-6)
    assert np.isfinite(got[:2]).all()
    assert not got[:2, 1:].any()
    assert np.isnan(got[2]).all()
    assert not got[3:].any()


@pytest.mark.parametrize("largest", [np.finfo(np.float32).max, 3e38, 1.0, 2.0**-118])
def test_the_largest_component_keeps_its_sign_and_128_is_never_used(largest: float) -> None:
    values = np.array([[largest, -largest], [-largest, largest / 300]], np.float32)
    stored = to_int8(values)[:, 4:6]
    assert stored.tolist() == [[127, -127], [-127, 0]]
    assert np.isfinite(read_int8(values)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [1, 4, 7, 16])
def test_every_store_writes_by_slot_and_reads_by_key(precision: Any, dim: int) -> None:
    rng = np.random.default_rng(dim)
    store, index = make_store(precision, dim, 1_000), CuckooIndex("test")
    keys, slots = np.arange(500) * 7919, rng.permutation(1_000)[:500].astype(np.int32)
    values = rng.uniform(-1, 1, (500, dim)).astype(np.float32)
    store.write(slots, values)
    index.set(keys, slots)
    got = store.look_up(index, 1_000, np.concatenate((keys[::-1], [3])), None)
    assert got.shape == (501, dim)
    assert not got[-1].any()
    assert np.allclose(got[:-1], values[::-1], atol={"float32": 0, "float16": 2.0**-12, "int8": 1 / 250}[precision])
    assert store.row_bytes == {"float32": 4 * dim, "float16": 2 * dim, "int8": row_bytes(dim)}[precision]
