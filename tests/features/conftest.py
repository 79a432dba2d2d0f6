"""A small world of items, users and examples, made from a seed."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.config import ModelConfig, TimeConfig
from infra.ticks import Timeline
from stream.columns import Lists
from stream.examples import ExampleColumns
from stream.features.catalogue import Catalogue, ItemRows

Ints = NDArray[np.int64]
FIRST_TICK = 26_000_000


@dataclass(frozen=True)
class World:
    timeline: Timeline
    model: ModelConfig
    items: Ints
    catalogue: Catalogue
    category_of: dict[int, int]
    words_of: dict[int, list[int]]

    def examples(
        self, seed: int, *, ticks: int = 12, impressions: int = 30, shown: int = 6, unlisted: bool = True
    ) -> ExampleColumns:
        """Impressions over `ticks` ticks, sorted by time; some ticks are empty, some items are in no catalogue."""
        rng = np.random.default_rng(seed)
        pool = np.concatenate([self.items, np.arange(5) + 7]) if unlisted else self.items
        at = np.sort(rng.integers(0, ticks, impressions)) + FIRST_TICK
        shown_ms = np.sort(at * self.timeline.tick_ms + rng.integers(0, self.timeline.tick_ms, impressions))
        lists = [rng.choice(pool, rng.integers(1, shown + 1), replace=False) for _ in range(impressions)]
        labels = [(rng.random(len(row)) < 0.15).astype(np.uint8) for row in lists]
        return ExampleColumns(
            impression=rng.integers(-(2**62), 2**62, impressions),
            user=rng.integers(1, 9, impressions) * 1_000_003,
            shown_ms=shown_ms,
            offset=np.arange(impressions),
            row=np.zeros(impressions, np.int32),
            first_engaged_ms=np.full(impressions, -1),
            history=Lists.of([rng.choice(pool, rng.integers(0, 9)) for _ in range(impressions)]),
            items=Lists.of(lists),
            labels=Lists.of(labels, np.uint8),
        )

    def by_close_tick(self, examples: ExampleColumns) -> list[tuple[int, ExampleColumns]]:
        """(close tick, its examples), ascending."""
        close = examples.shown_ms // self.timeline.tick_ms + self.timeline.attribution_ticks
        return [(int(c), examples.take(np.flatnonzero(close == c))) for c in np.unique(close)]


def item_rows(timeline: Timeline, items: Ints, seed: int, known_tick: int = 0) -> ItemRows:
    rng = np.random.default_rng(seed)
    words = Lists.of([rng.integers(1, 99, rng.integers(0, 9)) for _ in items])
    return ItemRows.of(
        item=items,
        category=rng.integers(0, 4, len(items)),  # 0: the catalogue does not know it
        subcategory=rng.integers(0, 9, len(items)),
        words=(words.offsets, words.values),
        published_ms=np.where(rng.random(len(items)) < 0.5, -1, (FIRST_TICK - 90) * timeline.tick_ms),
        ingested_ms=np.full(len(items), known_tick * timeline.tick_ms),
        timeline=timeline,
    )


@pytest.fixture(scope="session")
def world() -> World:
    timeline = TimeConfig(tick_s=60, attribution_s=120, publish_allowance_s=40).build()
    model = replace_history(ModelConfig(), 5)
    items = np.random.default_rng(0).integers(-(2**62), 2**62, 20)
    rows = item_rows(timeline, items, seed=1)
    catalogue = Catalogue()
    catalogue.add(rows)
    return World(
        timeline,
        model,
        items,
        catalogue,
        dict(zip(rows.keys.tolist(), rows.category.tolist(), strict=True)),
        {int(k): Lists(rows.word_offsets, rows.words)[i].tolist() for i, k in enumerate(rows.keys)},
    )


def replace_history(model: ModelConfig, length: int) -> ModelConfig:
    return ModelConfig(history_length=length, title_words=4, positions=4, counter_half_life_s=model.counter_half_life_s)


@pytest.fixture(scope="session")
def make_item_rows():  # type: ignore[no-untyped-def]
    return item_rows


@pytest.fixture(scope="session")
def with_timeline():  # type: ignore[no-untyped-def]
    return lambda timeline, **changes: replace(timeline, **changes)
