"""The numbers of the generator: how large a world is (`Scale`) and how it behaves (`Parameters`).

Sizes and marginals follow MINDsmall (Wu et al., ACL 2020) where it publishes them; how people choose is ours, and
`stream.generate.world` states it. Nothing here is a feature of the ranking model: changing a number changes how
hard the world is, never who can win it by construction.
"""

from dataclasses import dataclass

# Share of a day's rows by hour of day, UTC: a low at midnight, a peak in the morning, a long afternoon.
HOURS = (4, 7, 9, 14, 28, 45, 62, 72, 76, 72, 70, 69, 65, 58, 49, 41, 37, 32, 27, 22, 19, 15, 9, 6)

# Categories and their share of the catalogue.
CATEGORIES = {
    "news": 0.295, "sports": 0.275, "finance": 0.060, "foodanddrink": 0.052, "lifestyle": 0.050, "travel": 0.048,
    "video": 0.042, "weather": 0.040, "health": 0.036, "autos": 0.033, "music": 0.018, "tv": 0.017, "movies": 0.014,
    "entertainment": 0.012, "kids": 0.004, "middleeast": 0.002, "northamerica": 0.002,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a world is."""

    day_rows: tuple[int, ...]  # rows of each day
    users: int
    news: int  # catalogue
    candidates: int  # of these, news that may be shown in the window
    topics: int
    communities: int
    subcategories: int
    words: int  # vocabulary of titles

    @property
    def days(self) -> int:
        return len(self.day_rows)

    @property
    def rows(self) -> int:
        return sum(self.day_rows)


# MINDsmall: 156,965 rows on 9-14 November (a weekend first), 73,152 on the 15th.
_SMALL_DAYS = (13_700, 15_300, 34_800, 32_400, 30_500, 30_265, 73_152)

SCALES = {
    "tiny": Scale((2_800, 3_200), 1_300, 4_000, 3_000, 16, 10, 60, 6_000),
    "small": Scale(_SMALL_DAYS, 50_000, 65_238, 52_000, 48, 40, 270, 30_000),
    # MINDlarge's train and dev rows.
    "large": Scale(
        (195_000, 218_000, 495_000, 461_000, 434_000, 429_748, 376_471), 750_000, 161_013, 125_000, 64, 80, 285, 60_000
    ),
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """How the world behaves. Logits are natural; times in seconds unless the name says otherwise."""

    dims: int = 5  # dimension of the latent interest space
    styles: int = 4  # dimension of the latent style space (tone, length, pictures, …)
    click_rate: float = 0.0405  # the intercept is solved for this
    candidates_mean: float = 37.2  # exponential, 2 to 299
    history_mean: float = 32.5  # log-normal, weighted by rows
    history_sigma: float = 1.08
    history_empty: float = 0.02

    # What an item is.
    vector_noise: float = 0.5  # how far an item strays from its topic, relative to the topic's unit vector
    quality_sigma: float = 0.36  # latent quality, logits
    exposure_sigma: float = 2.2  # log of how often it is shown
    exposure_quality: float = 0.5  # editors see some of the quality
    exposure_limit: float = 6.0  # a page has only so much room: the largest log weight
    rise_s: float = 1_500.0  # time constant of the first rise
    life_median_s: float = 5 * 3_600.0  # half-life of attention
    life_sigma: float = 0.5
    life_exposure: float = 0.4  # what is shown more lives longer: log of life per standard deviation of exposure
    second_burst: float = 0.15  # share of items that come back once
    stale: float = 0.22  # logits lost per doubling of age beyond the half-life scale
    fresh: float = 0.35  # logits of a burst's peak
    category_noise: float = 0.1  # share of items filed under a category that is not their topic's
    topic_words: float = 0.42  # share of title words that tell the topic; the others are common or tell style
    style_words: float = 0.08

    # What a user is.
    affinity: float = 2.3  # logits per unit of interest · item
    style_affinity: float = 0.1
    temperature_sigma: float = 0.3  # log of a user's own factor on affinity
    user_bias_sigma: float = 0.5
    community_weight: float = 0.8
    own_weight: float = 0.5
    own_noise: float = 0.1
    shift: float = 0.12  # share of users whose own interest jumps once in the window
    activity_sigma: float = 1.0  # log of a user's share of rows
    personal: float = 0.25  # share of candidates drawn from the user's own topics

    # What moves.
    community_drift: float = 0.1  # standard deviation per dimension of a community's wandering interest
    community_drift_h: float = 20.0
    community_daypart: float = 0.25
    community_jumps_per_day: float = 0.8
    community_jump: float = 0.5
    community_jump_half_life_h: float = 20.0
    fashion_sigma: float = 0.2  # logits by which a topic's appeal to everybody wanders
    fashion_h: float = 12.0
    shocks_per_day: float = 7.0
    shock_low: float = 0.5
    shock_high: float = 1.2
    shock_half_life_h: float = 3.0
    shock_items: float = 0.06  # share of new items that belong to breaking news

    # The page.
    position: float = 0.22  # logits lost per unit of log(1 + position)
    length: float = 0.5  # long pages are scanned thinly: logits lost per unit of log(candidates / mean)
