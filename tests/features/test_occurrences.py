"""What an admission filter counts, against a walk over the batch row by row."""

from collections import Counter

import pytest

from stream.features.batch import SLOTS, build_batch
from stream.features.counters import CounterState
from stream.features.occurrences import occurrences
from stream.sampling import Sampling


@pytest.fixture(scope="module", params=[1.0, 0.3])
def batch(world, request):
    examples = world.examples(2, ticks=1, impressions=50)
    state = CounterState.build(world.model, world.timeline)
    return build_batch(examples, state, world.catalogue, 10**8, world.model, sampling=Sampling(request.param, 3))


def walked(batch):
    """slot → key index → uses, one impression and one shown item at a time."""
    uses = {slot: Counter() for slot in SLOTS}
    for i in range(batch.n_impressions):
        uses["user"][batch.user[i]] += 1
        uses["hour"][batch.hour[i]] += 1
        for at in range(batch.history_offsets[i], batch.history_offsets[i + 1]):
            uses["history"][batch.history[at]] += 1
            if (row := batch.read[at]) >= 0:
                uses["read_subcategory"][batch.read_subcategory[row]] += 1
                words = batch.read_words[batch.read_word_offsets[row] : batch.read_word_offsets[row + 1]]
                uses["words"].update(words.tolist())
    for row in range(batch.n_rows):
        item = batch.item_of_row[row]
        for slot in ("item", "category", "subcategory"):
            uses[slot][getattr(batch, slot)[item]] += 1
        uses["words"].update(batch.words[batch.word_offsets[item] : batch.word_offsets[item + 1]].tolist())
        uses["position"][batch.position[row]] += 1
    return uses


def test_a_key_occurs_once_an_impression_or_once_a_shown_item(batch):
    expected = walked(batch)
    for slot in SLOTS:
        got = occurrences(batch, slot)
        assert got.shape == batch.keys[slot].shape
        assert got.tolist() == [expected[slot][i] for i in range(len(got))], slot
