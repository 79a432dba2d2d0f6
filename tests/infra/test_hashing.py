"""Hashes: Kafka's own test vectors, a plain reference, and stability for ever."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.hashing import hash64, key_of, keys_of, partition_of

N = 1_000_000
PAGE = Path(__file__).resolve().parents[2] / "infra/docs/keys.md"


def test_partitions_agree_with_kafkas_murmur2_vectors() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    vectors = {
        "21": -973932308,
        "foobar": -790332482,
        "a-little-bit-long-string": -985981536,
        "a-little-bit-longer-string": -1486304829,
        "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        "abc": 479470107,
    }
    for text, murmur in vectors.items():
        assert partition_of(text, 2**31) == murmur & 0x7FFFFFFF


def _plain(data: bytes) -> int:
    mask = (1 << 64) - 1
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & mask
    h ^= h >> 33
    h = (h * 0xFF51AFD7ED558CCD) & mask
    h ^= h >> 33
    h = (h * 0xC4CEB9FE1A85EC53) & mask
    h ^= h >> 33
    return h - (1 << 64) if h >> 63 else h


@given(data=st.binary(max_size=64))
def test_keys_are_fnv1a_with_murmurs_finalizer(data: bytes) -> None:
    assert hash64(data) == _plain(data)


def test_the_key_of_an_id_never_changes() -> None:
    assert hash64("N47765") == _plain(b"N47765")
    assert hash64("N1") == -2918437843229775623


@given(key=st.text(max_size=20), partitions=st.integers(1, 100))
def test_a_key_always_lands_in_a_partition_that_exists(key: str, partitions: int) -> None:
    assert 0 <= partition_of(key, partitions) < partitions


@given(ids=st.lists(st.one_of(st.text(max_size=12), st.binary(max_size=12)), max_size=20))
def test_many_strings_get_the_keys_that_each_gets_alone(ids: list[str | bytes]) -> None:
    assert keys_of(ids).tolist() == [hash64(id) for id in ids] == [key_of(id) for id in ids]  # type: ignore[arg-type]


@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_integers_are_their_own_keys(ids: list[int]) -> None:
    assert keys_of(ids).tolist() == ids == keys_of(np.array(ids, np.int64)).tolist()
    assert [key_of(id) for id in ids] == ids


def test_arrays_of_strings_and_of_other_integers_are_ids_too() -> None:
    assert keys_of(np.array(["N1", "N47765"])).tolist() == [hash64("N1"), hash64("N47765")]
    assert keys_of(np.array([[1, 2], [3, 255]], np.uint8)).tolist() == [1, 2, 3, 255]
    assert keys_of(np.array([2**63 - 1], np.uint64)).tolist() == [2**63 - 1]
    assert keys_of([]).dtype == keys_of(np.empty(0, np.int32)).dtype == np.int64


@pytest.mark.parametrize(
    "ids", [[1, "1"], [1.0], [True], [None], [2**63], [-(2**63) - 1], np.array([2**63], np.uint64), np.array([0.5])]
)
def test_what_is_no_id_is_refused(ids: object) -> None:
    with pytest.raises(ValueError, match="ids"):
        keys_of(ids)  # type: ignore[arg-type]


def _pairs(values: np.ndarray) -> int:
    """Pairs of equal values."""
    _, counts = np.unique(values, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


FAMILIES: dict[str, Callable[[int], str]] = {
    "counted": lambda i: f"U{i}",
    "padded": lambda i: f"{i:012d}",
    "dates": lambda i: f"2019-11-{i % 28 + 1:02d}/{i // 28}",
    "addresses": lambda i: f"https://example.org/news/{i % 1000}/{i // 1000}.html?ref=home",
    "hexadecimal": lambda i: f"{i * 2654435761 % 2**32:08x}",
    "one letter in twenty places": lambda i: "".join("ab"[i >> b & 1] for b in range(20)),
}


def collisions_beyond_chance(keys: np.ndarray, bits: int = 32) -> list[str]:
    """Windows of `bits` bits in which these keys meet more or less often than random ones would; none is right.

    The number of equal pairs among n random values is Poisson of mean n(n − 1)/2^(bits + 1), here 116: 6 sigma.
    """
    mean = len(keys) * (len(keys) - 1) / 2 ** (bits + 1)
    words = keys.view(np.uint64)
    wrong = []
    for shift in (0, 11, 21, 32):
        pairs = _pairs((words >> np.uint64(shift)).astype(np.uint32))
        if abs(pairs - mean) > 6 * math.sqrt(mean):
            wrong.append(f"bits {shift} to {shift + bits}: {pairs} pairs, {mean:.0f} expected")
    return wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_of_structured_ids_collide_as_often_as_random_numbers(family: str) -> None:
    keys = keys_of([FAMILIES[family](i) for i in range(N)])
    assert _pairs(keys) == 0
    assert collisions_beyond_chance(keys) == []


def test_a_poor_hash_is_caught() -> None:
    ids = [FAMILIES["addresses"](i).encode() for i in range(N)]
    plain = np.array([int.from_bytes(id[-16:-8], "little") for id in ids], np.int64)
    assert collisions_beyond_chance(plain)
    multiplied = np.arange(N, dtype=np.int64) * 0x100000001B3  # never meets itself, which is no chance either
    assert collisions_beyond_chance(multiplied)


def test_the_page_states_the_chances_that_the_formula_gives() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, n in (("1 million", 10**6), ("100 million", 10**8), ("1 billion", 10**9)):
        chance = -math.expm1(-n * (n - 1) / 2**65)
        assert f"| {name} | {chance:.1e} |" in page
