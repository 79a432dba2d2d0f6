"""Titles, abstracts and entities: what a reader sees of an item.

Words are made of syllables; each topic owns a share of the vocabulary with its own Zipf order, all topics share the
common words, and each style has a few words of its own. A breaking story lends its two names to all its items.
"""

import json

import numpy as np
from numpy.typing import NDArray

from stream.generate.parameters import CATEGORIES
from stream.generate.world import World

_ONSETS = (
    "b",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_ENDS = ("", "n", "r", "s", "t", "l", "ck", "nd")
_COMMON = (  # noqa: SIM905
    "the to of in a for and on is with at from after his her as how by this that you what are be it your will new "
    "who why not can he she they their has says over top best man woman day year home first two up out about more"
).split()
_STYLE_WORDS = 40  # words each style pole owns
ZIPF = 1.05


def vocabulary(n: int, rng: np.random.Generator) -> list[str]:
    """n distinct words; the first are English function words."""
    words = dict.fromkeys(_COMMON[:n])
    while len(words) < n:
        parts = rng.integers(0, [len(_ONSETS), len(_VOWELS), len(_ENDS)], (n - len(words), 3, 3)).tolist()
        for syllables, row in zip(rng.integers(1, 4, len(parts)).tolist(), parts, strict=True):
            body = "".join([_ONSETS[a] + _VOWELS[b] for a, b, _ in row[:syllables]])
            words[body + _ENDS[row[0][2]]] = None
    return list(words)


def _zipf(n: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ranks 0 … n−1 with weight 1 / (rank + 2)^ZIPF."""
    cumulative = np.cumsum((np.arange(n) + 2.0) ** -ZIPF)
    ranks: NDArray[np.int64] = np.searchsorted(cumulative, rng.random(size) * cumulative[-1])
    return np.minimum(ranks, n - 1)


def _word_ids(world: World, owner: NDArray[np.int64], told: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """One word for each entry of `owner` (an item): from its topic, its style, or common."""
    scale, p = world.scale, world.parameters
    common = scale.words // 4
    styles = 2 * p.styles * _STYLE_WORDS
    own = (scale.words - common - styles) // scale.topics
    n = len(owner)
    kind = rng.random(n)
    ids = _zipf(common, n, rng)
    rank = _zipf(own, n, rng)
    topical = kind < told
    ids[topical] = common + styles + world.items.topic[owner[topical]] * own + rank[topical]
    stylish = kind > 1 - p.style_words
    pole = rng.integers(0, p.styles, n)
    sign = world.items.style[owner, pole] > 0
    block = common + (2 * pole + sign) * _STYLE_WORDS + rng.integers(0, _STYLE_WORDS, n)
    ids[stylish] = block[stylish]
    return ids


def news_lines(world: World, rng: np.random.Generator) -> list[str]:
    """news.tsv, one line an item in a shuffled order."""
    scale, items = world.scale, world.items
    words = vocabulary(scale.words, rng)
    title_len = np.clip(np.rint(rng.normal(10.8, 3.0, scale.news)), 3, 27).astype(np.int64)
    text_len = np.where(rng.random(scale.news) < 0.05, 0, rng.integers(8, 34, scale.news))
    titles = _texts(world, words, title_len, world.parameters.topic_words, rng)
    texts = _texts(world, words, text_len, 0.3, rng)
    categories = list(CATEGORIES)
    names = [
        categories[c] + ("" if k < len(categories) else f"-{words[len(_COMMON) + k]}")
        for k, c in enumerate(world.subcategory_category.tolist())
    ]
    stories = rng.integers(scale.words // 2, scale.words, (int(items.story.max()) + 2, 2))
    quoted = rng.random(scale.news) < 0.01
    lines = []
    for i in rng.permutation(scale.news).tolist():
        title = titles[i]
        entities = []
        if items.story[i] >= 0:
            a, b = stories[items.story[i]]
            name = f"{words[a]} {words[b]}".title()
            title = f"{name} {title}"
            entities = [{"Label": name, "Type": "P", "WikidataId": f"Q{a * 7 + b}", "Confidence": 1.0}]
        if quoted[i]:
            head, _, tail = title.partition(" ")
            title = f'"{head}" {tail}'
        lines.append(
            f"N{items.number[i]}\t{categories[items.category[i]]}\t{names[items.subcategory[i]]}\t{title}\t{texts[i]}\t"
            f"https://example.com/news/N{items.number[i]}.html\t{json.dumps(entities)}\t[]\n"
        )
    return lines


def _texts(
    world: World, words: list[str], lengths: NDArray[np.int64], told: float, rng: np.random.Generator
) -> list[str]:
    owner = np.repeat(np.arange(len(lengths)), lengths)
    ids = _word_ids(world, owner, told, rng).tolist()
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    return [" ".join([words[k] for k in ids[a:b]]).capitalize() for a, b in zip(starts, ends, strict=True)]
