"""The latent world behind a generated log: items, users, communities, and what moves.

The model, in full (parameters in `stream.generate.parameters`; x·y is a dot product, t event time):

    logit p = α + bias[u] + τ[u]·(A·interest(u, t)·v[i] + S·style[u]·style[i])
                + quality[i] + burst(i, t) + fashion(topic[i], t)
                − L·log(n / mean n) − B·log(1 + position)

- **Items.** v[i] is its topic's unit vector plus noise of nearly the same length: two items of one topic have other
  audiences, and only clicks tell. `quality`, `style` are latent too. What a reader sees of an item (category,
  subcategory, title words) is drawn from the topic, noisily; the words of the title tell a little of the style.
- **Life.** An item is published, rises within the hour, decays with a half-life of hours, and may burst once more.
  The same curve drives how often it is shown and, on another scale, how much it appeals (`burst`).
- **Users.** interest(u, t) = community interest + own interest. Own interest is a mixture of two topics and noise,
  and for some users jumps to other topics at one instant. A community's interest wanders (Ornstein-Uhlenbeck),
  swings with the hour of day, and jumps with breaking news. τ[u] is a user's own temperature.
- **Breaking news.** Shocks lift a topic for everybody and fade within hours, bring new items, and pull some
  communities' interest towards the topic.
- **Exposure.** Candidates are drawn without replacement by exposure weight × life curve; a part of them from the
  user's own topics. Rows are independent given the world, which is why a log of any length streams in chunks.
- **Histories** are fixed per user, as in MIND: older news, drawn by the interest at the start of the window.

p_ref is p at position 0. Clicks are independent Bernoulli(p): unlike in MIND, an impression may end without a click.
The world never reads what a ranking model uses (counters, histories, title words, embeddings), so it can be
learned only as far as the log tells about it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.generate.parameters import CATEGORIES, Parameters, Scale

DAY_S = 86_400.0
BIN_S = 600.0  # moving parts are piecewise constant over ten minutes
OLD_DAYS = 35  # how far the catalogue reaches back: histories come from there

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Items:
    """News of the catalogue, n of them; those before `shown` in `born_s` order may be candidates."""

    number: I32  # (n,) the digits of the public id N<number>
    topic: I32
    vector: F32  # (n, dims)
    style: F32  # (n, styles)
    quality: F32
    exposure: F32  # log weight
    born_s: NDArray[np.float64]  # publication, seconds since the start of the window
    life_s: F32  # half-life
    again_s: F32  # second burst, seconds after publication; inf: none
    story: I32  # breaking story it belongs to, −1: none
    category: I32
    subcategory: I32


@dataclass(frozen=True, slots=True)
class Users:
    number: I32  # (m,) the digits of the public id U<number>
    community: I32
    topics: I32  # (m, 4) own topics: two before the jump, two after
    before: F32  # (m, dims) own interest
    after: F32
    shift_s: NDArray[np.float64]  # when it jumps; inf: never
    style: F32
    temperature: F32
    bias: F32
    activity: NDArray[np.float64]  # (m,) cumulative share of rows


@dataclass(frozen=True, slots=True)
class Moving:
    """What changes, by bin of BIN_S seconds."""

    community: F32  # (bins, communities, dims): interest of each community
    fashion: F32  # (bins, topics): appeal of a topic to everybody


@dataclass(frozen=True, slots=True)
class World:
    scale: Scale
    parameters: Parameters
    topics: F32  # (topics, dims) unit vectors
    subcategory_category: I32  # category of each subcategory
    items: Items
    users: Users
    moving: Moving


@dataclass(frozen=True, slots=True)
class Shocks:
    time_s: NDArray[np.float64]
    topic: I32
    size: F32


def build_world(scale: Scale, parameters: Parameters, rng: np.random.Generator) -> World:
    """Draw a world. The order of the draws is part of the format: same seed, same bytes."""
    topics = _unit(rng.standard_normal((scale.topics, parameters.dims))).astype(np.float32)
    shocks = _shocks(scale, parameters, rng)
    sub_category = _subcategories(scale, rng)
    items = _items(scale, parameters, topics, shocks, sub_category, rng)
    centres = _mixtures(topics, 3, scale.communities, rng)[0]
    users = _users(scale, parameters, topics, centres, rng)
    moving = _moving(scale, parameters, topics, centres, shocks, rng)
    return World(scale, parameters, topics, sub_category, items, users, moving)


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit


def _mixtures(topics: F32, k: int, n: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """n unit vectors, each a random mixture of k topics, and which topics."""
    chosen = rng.integers(0, len(topics), (n, k))
    weights = rng.dirichlet(np.full(k, 1.5), n)
    return _unit(np.einsum("nk,nkd->nd", weights, topics[chosen].astype(np.float64))), chosen


def _shocks(scale: Scale, p: Parameters, rng: np.random.Generator) -> Shocks:
    n = max(2, round(p.shocks_per_day * scale.days))
    time_s = np.sort(rng.uniform(0.0, scale.days * DAY_S, n))
    topic = rng.integers(0, scale.topics, n).astype(np.int32)
    return Shocks(time_s, topic, rng.uniform(p.shock_low, p.shock_high, n).astype(np.float32))


def _subcategories(scale: Scale, rng: np.random.Generator) -> I32:
    """Category of each subcategory: one each, the rest by the category's size."""
    n = len(CATEGORIES)
    share = np.sqrt(np.array(list(CATEGORIES.values())))
    rest = rng.choice(n, scale.subcategories - n, p=share / share.sum())
    return np.concatenate([np.arange(n), np.sort(rest)]).astype(np.int32)


def _items(
    scale: Scale, p: Parameters, topics: F32, shocks: Shocks, sub_category: I32, rng: np.random.Generator
) -> Items:
    n, m = scale.news, scale.candidates
    topic_share = rng.dirichlet(np.full(scale.topics, 3.0))
    topic = rng.choice(scale.topics, n, p=topic_share).astype(np.int32)
    # Candidates: published from four days before the window to its end; the others before that.
    window_s = scale.days * DAY_S
    born = np.concatenate([rng.uniform(-4 * DAY_S, window_s, m), rng.uniform(-OLD_DAYS * DAY_S, -4 * DAY_S, n - m)])
    born = np.floor(born / DAY_S) * DAY_S + _newsroom(n, rng)
    story = np.full(n, -1, dtype=np.int32)
    breaking = np.flatnonzero((born > 0) & (rng.random(n) < p.shock_items))
    story[breaking] = rng.integers(0, len(shocks.time_s), len(breaking))
    topic[breaking] = shocks.topic[story[breaking]]
    born[breaking] = shocks.time_s[story[breaking]] + rng.exponential(2 * 3_600.0, len(breaking))
    stray = rng.standard_normal((n, p.dims)) * (p.vector_noise / np.sqrt(p.dims))
    quality = rng.standard_normal(n) * p.quality_sigma
    exposure = rng.standard_normal(n) * p.exposure_sigma + p.exposure_quality * quality / p.quality_sigma
    exposure = np.minimum(exposure, p.exposure_limit)
    life = p.life_median_s * np.exp(
        p.life_sigma * rng.standard_normal(n) + p.life_exposure * exposure / p.exposure_sigma
    )
    again = np.where(rng.random(n) < p.second_burst, rng.uniform(4, 40, n) * 3_600.0, np.inf)
    category, subcategory = _shelves(scale, p, topic, sub_category, rng)
    return Items(
        number=(rng.permutation(n) + 1).astype(np.int32),
        topic=topic,
        vector=_unit(topics[topic] + stray).astype(np.float32),
        style=rng.standard_normal((n, p.styles)).astype(np.float32),
        quality=quality.astype(np.float32),
        exposure=exposure.astype(np.float32),
        born_s=born,
        life_s=life.astype(np.float32),
        again_s=again.astype(np.float32),
        story=story,
        category=category,
        subcategory=subcategory,
    )


def _newsroom(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Second of the day at which news are published: newsrooms work later in the (UTC) day than readers read."""
    return (rng.normal(20.0, 4.0, n) % 24.0) * 3_600.0


def _shelves(scale: Scale, p: Parameters, topic: I32, sub_category: I32, rng: np.random.Generator) -> tuple[I32, I32]:
    """Where an item is filed: each topic has one to three home subcategories; some items are filed elsewhere."""
    share = np.array(list(CATEGORIES.values()))
    size = share[sub_category] / np.bincount(sub_category, minlength=len(share))[sub_category]
    size *= rng.gamma(0.8, size=len(size))
    size /= size.sum()
    homes = rng.choice(len(size), (scale.topics, 6), p=size)
    pick = np.minimum(rng.geometric(0.45, len(topic)) - 1, 5)
    sub = homes[topic, pick]
    astray = rng.random(len(topic)) < p.category_noise
    sub[astray] = rng.choice(len(size), int(astray.sum()), p=size)
    return sub_category[sub].astype(np.int32), sub.astype(np.int32)


def _users(scale: Scale, p: Parameters, topics: F32, centres: NDArray[np.float64], rng: np.random.Generator) -> Users:
    n = scale.users
    community_share = rng.dirichlet(np.full(scale.communities, 2.0))
    community = rng.choice(scale.communities, n, p=community_share).astype(np.int32)
    before, first = _mixtures(topics, 2, n, rng)
    after, second = _mixtures(topics, 2, n, rng)
    noise = rng.standard_normal((n, p.dims)) * (p.own_noise / np.sqrt(p.dims))
    shift = np.where(rng.random(n) < p.shift, rng.uniform(0, scale.days * DAY_S, n), np.inf)
    activity = np.exp(p.activity_sigma * rng.standard_normal(n))
    return Users(
        number=(rng.permutation(scale.users + scale.users // 2)[:n] + 1).astype(np.int32),
        community=community,
        topics=np.concatenate([first, second], axis=1).astype(np.int32),
        before=(p.own_weight * before + noise).astype(np.float32),
        after=(p.own_weight * after + noise).astype(np.float32),
        shift_s=shift,
        style=rng.standard_normal((n, p.styles)).astype(np.float32),
        temperature=np.exp(p.temperature_sigma * rng.standard_normal(n)).astype(np.float32),
        bias=(p.user_bias_sigma * rng.standard_normal(n)).astype(np.float32),
        activity=np.cumsum(activity) / activity.sum(),
    )


def _wander(
    bins: int, shape: tuple[int, ...], sigma: float, hours: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Ornstein-Uhlenbeck paths in their stationary law: (bins, *shape)."""
    keep = np.exp(-BIN_S / (hours * 3_600.0))
    steps = rng.standard_normal((bins, *shape)) * (sigma * np.sqrt(1 - keep**2))
    path = np.empty((bins, *shape))
    path[0] = sigma * rng.standard_normal(shape)
    for b in range(1, bins):
        path[b] = keep * path[b - 1] + steps[b]
    return path


def _moving(
    scale: Scale,
    p: Parameters,
    topics: F32,
    centres: NDArray[np.float64],
    shocks: Shocks,
    rng: np.random.Generator,
) -> Moving:
    bins = round(scale.days * DAY_S / BIN_S)
    start: NDArray[np.float64] = np.arange(bins, dtype=np.float64) * BIN_S
    fashion = _wander(bins, (scale.topics,), p.fashion_sigma, p.fashion_h, rng)
    for time_s, topic, size in zip(shocks.time_s, shocks.topic, shocks.size, strict=True):
        fashion[:, topic] += size * _after(start, time_s, p.shock_half_life_h)
    drift = _wander(bins, (scale.communities, p.dims), p.community_drift, p.community_drift_h, rng)
    phase = rng.uniform(0, 2 * np.pi, scale.communities)
    swing = topics[rng.integers(0, scale.topics, scale.communities)]
    daypart = np.cos(2 * np.pi * start[:, None] / DAY_S + phase)
    drift += p.community_daypart * daypart[:, :, None] * swing
    for c in range(scale.communities):
        for _ in range(rng.poisson(p.community_jumps_per_day * scale.days)):
            s = rng.integers(0, len(shocks.time_s))
            toward = topics[shocks.topic[s]].astype(np.float64)
            curve = _after(start, shocks.time_s[s], p.community_jump_half_life_h)
            drift[:, c] += p.community_jump * (1 if rng.random() < 0.75 else -1) * curve[:, None] * toward
    community = p.community_weight * centres + drift
    return Moving(community.astype(np.float32), fashion.astype(np.float32))


def _after(start: NDArray[np.float64], time_s: float, half_life_h: float) -> NDArray[np.float64]:
    """1 at the instant, halved every half-life after it, 0 before."""
    age = start - time_s
    return np.where(age >= 0, np.exp2(-np.maximum(age, 0) / (half_life_h * 3_600.0)), 0.0)
