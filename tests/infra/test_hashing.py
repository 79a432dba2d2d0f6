"""Hashes: Kafka's own test vectors, a plain reference, and stability for ever."""

from hypothesis import given
from hypothesis import strategies as st

from infra.hashing import hash64, partition_of


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
