"""What may be shown when: for each bin of ten minutes the active items and their cumulative weights.

Items of a bin lie in topic order, so that one array serves both draws: u·total picks from everything, and u within
[edge[topic], edge[topic + 1]) from one topic.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.generate.world import BIN_S, World

FAINT = 0.35  # an item whose exposure (1: the median item at its peak) is below this is no longer shown


@dataclass(frozen=True, slots=True)
class Exposure:
    starts: NDArray[np.int64]  # (bins + 1,) where a bin's items begin
    items: NDArray[np.int32]
    cumulative: NDArray[np.float64]  # running weight within the bin, first item included
    edges: NDArray[np.int64]  # (bins, topics + 1) absolute positions where topics begin


def life_curve(age_s: NDArray[np.float64], world: World, items: NDArray[np.int64]) -> NDArray[np.float64]:
    """Attention (0 to about 1.6) of items at an age: rise, decay by half-life, one more burst for some."""
    life = world.items.life_s[items].astype(np.float64)
    later = age_s - world.items.again_s[items]
    first = (1 - np.exp(-np.maximum(age_s, 0) / world.parameters.rise_s)) * np.exp2(-np.maximum(age_s, 0) / life)
    again = np.where(later > 0, 0.6 * np.exp2(-np.maximum(later, 0) / (0.5 * life)), 0.0)
    return np.where(age_s > 0, first + again, 0.0)


def build_exposure(world: World) -> Exposure:
    """Active items of every bin, at the middle of the bin."""
    scale = world.scale
    bins = len(world.moving.fashion)
    pool = np.arange(scale.candidates)
    pool = pool[np.argsort(world.items.topic[pool], kind="stable")]
    weight = np.exp(world.items.exposure[pool].astype(np.float64))
    born = world.items.born_s[pool]
    topic = world.items.topic[pool]
    starts = np.zeros(bins + 1, dtype=np.int64)
    edges = np.zeros((bins, scale.topics + 1), dtype=np.int64)
    items: list[NDArray[np.int32]] = []
    cumulative: list[NDArray[np.float64]] = []
    for b in range(bins):
        curve = life_curve((b + 0.5) * BIN_S - born, world, pool)
        active = np.flatnonzero(weight * curve > FAINT)
        starts[b + 1] = starts[b] + len(active)
        edges[b] = starts[b] + np.searchsorted(topic[active], np.arange(scale.topics + 1))
        lift = np.exp(0.4 * world.moving.fashion[b].astype(np.float64))[topic[active]]
        items.append(pool[active].astype(np.int32))
        cumulative.append(np.cumsum(weight[active] * curve[active] * lift))
    return Exposure(starts, np.concatenate(items), np.concatenate(cumulative), edges)
