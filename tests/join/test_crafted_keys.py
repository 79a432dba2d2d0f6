"""Integer ids that a client made from the source of a hash: no table has long chains of them, and no result moves."""

import numpy as np

from stream.features.keys import KeyIndex, distinct, put_row, row_of
from stream.join import core
from stream.join.state import JoinState
from tests.join import scenes
from tests.join.scenes import Row

WORD = 2**64
GOLDEN, MIXER = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
N = 20_000


def signed(numbers: list[int]) -> np.ndarray:
    return np.array([n - WORD if n >= WORD // 2 else n for n in numbers], np.int64)


def longest_chain(taken: np.ndarray) -> int:
    """The most places that a look-up may have to walk: a run of taken ones."""
    free = np.flatnonzero(np.concatenate([[True], ~taken, [True]]))
    return int(np.diff(free).max()) - 1


def one_slot_each_in_a_table_of_pairs() -> list[tuple[int, int]]:
    """(impression, user): the user undoes what a multiplication made of the impression."""
    return [(i, (i * GOLDEN ^ 0x1234567) % WORD) for i in range(1, N + 1)]


def one_slot_each_in_a_table_of_keys() -> np.ndarray:
    """Keys whose mixture, without a secret, ends in the same 20 bits."""
    keys = []
    for i in range(1, N + 1):
        h = i << 20 | i << 52 & (WORD - 1)
        h = h & 0xFFFFFFFF ^ (i >> 12) | h & ~0xFFFFFFFF  # undoes the last shift of the low bits
        y = h * pow(MIXER, -1, WORD) % WORD
        x = y
        for _ in range(3):
            x = y ^ (x >> 29)
        keys.append(x * pow(GOLDEN, -1, WORD) % WORD)
    return np.unique(signed(keys))


def test_pairs_made_to_collide_lie_apart_in_the_joiners_table() -> None:
    state = JoinState(scenes.settings(core).timing())
    pairs = one_slot_each_in_a_table_of_pairs()
    users = signed([user for _, user in pairs]).tolist()
    rows = [Row(0, 10**6, 10**6, i, user, items=(1,)) for (i, _), user in zip(pairs, users, strict=True)]
    rows += [Row(0, 10**6, 10**6, 5, j << 52, items=(1,)) for j in range(2_000)]  # one impression, users in high bits
    events = scenes.columns(rows)
    state.reserve(events)
    assert state.apply(0, events, 0, len(rows)) == 1  # the first row closes ticks: nothing was before it
    assert state.apply(0, events, 1, len(rows)) == len(rows)
    assert longest_chain(state._table >= 0) < 200


def test_keys_made_to_collide_lie_apart_in_an_index_and_each_index_has_another_secret() -> None:
    keys = one_slot_each_in_a_table_of_keys()
    places = []
    for _ in range(2):
        index = KeyIndex(len(keys))
        for row, key in enumerate(keys):
            put_row(key, row, index.slots, index.keys)
        assert longest_chain(index.slots[:-1] >= 0) < 200
        assert [int(row_of(key, index.slots, index.keys)) for key in keys[:50]] == list(range(50))
        places.append(index.slots)
    assert not np.array_equal(places[0], places[1])
    unique, at = distinct(np.concatenate([keys, keys[::-1]]), np.bool_(False))
    assert np.array_equal(unique, keys)  # in the order of first appearance, whatever the secret
    assert np.array_equal(at, np.concatenate([np.arange(len(keys)), np.arange(len(keys))[::-1]]))


def test_a_copy_of_an_index_and_a_grown_one_find_what_they_hold() -> None:
    index = KeyIndex(8)
    for row, key in enumerate(range(100, 130)):
        index.reserve(1)
        put_row(key, row, index.slots, index.keys)
        index.n += 1
    for one in (index, index.copy()):
        assert [int(row_of(key, one.slots, one.keys)) for key in range(100, 130)] == list(range(30))
        assert row_of(7, one.slots, one.keys) == -1
