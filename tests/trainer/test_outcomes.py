"""Which engagements are learned as positive, which shown items are negatives, and which are neither."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from stream.columns import Lists
from stream.events import ActionKind
from stream.examples import ExampleColumns
from tests.trainer.small_model import FIRST, config, day, examples, items
from trainer.export import export_graphs
from trainer.online import learn_tick
from trainer.retrain import retrain_day, shape_of
from trainer.state import ModelState

LIKE, SHARE, DWELL = (1 << kind for kind in (ActionKind.LIKE, ActionKind.SHARE, ActionKind.DWELL))
TICK = FIRST + 30
LONE = 59  # an item that only the impression at hand shows


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    return export_graphs(shape_of(config().model), tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def trained(graphs):
    """A state whose generation 0 was made from 30 ticks."""
    state = ModelState(config())
    state.catalogue.add(items())
    retrain_day(state, None, day(FIRST, 30), day=0, last_tick=FIRST + 29, epochs=1, graphs=graphs)
    state.generation = 0
    return state


def engaged(label, of=None):
    """A tick in which `LONE` is shown once, first in the first impression, with this label byte."""
    shown = examples(TICK) if of is None else of
    values = shown.items.values.copy()
    values[values == LONE] = 58
    values[0] = LONE
    labels = shown.labels.values.copy()
    labels[0] = label
    return replace(shown, items=Lists(shown.items.offsets, values), labels=Lists(shown.labels.offsets, labels))


def learned(trained, tick: ExampleColumns, **train):
    """The delta of a copy of the state that learned the tick under these `train` settings."""
    state = trained.copy()
    state.train = msgspec.structs.replace(state.train, **train)
    return learn_tick(state, tick.shown_ms[0] // 60_000 + 2, tick)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("label", [LIKE, SHARE, DWELL, LIKE | DWELL])
def test_an_item_that_was_only_liked_is_no_negative(trained, label):
    delta = learned(trained, engaged(label))
    assert LONE in learned(trained, engaged(0))["slot/item/keys"]  # passed over: learned
    assert LONE not in delta["slot/item/keys"]
    assert not same(delta, learned(trained, engaged(0)))


def test_an_item_that_was_only_liked_does_not_count_as_shown_in_vain(trained):
    def counted(label):
        delta = learned(trained, engaged(label))
        return delta["counters/item/values"][delta["counters/item/keys"] == LONE][0]

    passed_over, liked, clicked = counted(0), counted(LIKE), counted(1)
    assert passed_over[0] == pytest.approx(liked[0] + 1)
    assert clicked[1] == pytest.approx(liked[1] + 1)


@pytest.mark.parametrize("label", [LIKE, SHARE | DWELL])
def test_it_is_a_negative_where_the_configuration_says_so(trained, label):
    assert same(learned(trained, engaged(label), other_engagements="negative"), learned(trained, engaged(0)))


def test_a_kind_that_is_named_is_learned_as_a_click_is(trained):
    named = learned(trained, engaged(LIKE), positive=("click", "like"))
    assert same(named, learned(trained, engaged(1)))
    assert not same(named, learned(trained, engaged(0)))


def test_a_click_with_other_engagements_is_a_click(trained):
    assert same(learned(trained, engaged(1 | LIKE | DWELL)), learned(trained, engaged(1)))


def test_where_only_likes_are_learned_a_click_is_left_out(trained):
    assert LONE not in learned(trained, engaged(1), positive=("like",))["slot/item/keys"]


def test_the_retrain_follows_the_same_rule(trained, graphs):
    def night(label, **train):
        state = trained.copy()
        state.train = msgspec.structs.replace(state.train, retrain_negative_rate=1.0, **train)
        retrain_day(state, None, engaged(label), day=1, last_tick=TICK, epochs=1, graphs=graphs)
        return state.digest()

    assert night(LIKE) != night(0)
    assert night(LIKE, other_engagements="negative") == night(0)
    assert night(LIKE, positive=("click", "like")) == night(1)
