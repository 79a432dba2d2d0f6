"""The catalogue: news.tsv of some folders as one table; of an item that several describe the first mention wins.

    news id ⇥ category ⇥ subcategory ⇥ title ⇥ abstract ⇥ url ⇥ title entities ⇥ abstract entities

Titles may hold quotes (there is no quoting in the file), abstracts and entities may be empty and are not kept.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError
from infra.hashing import hash64
from infra.inputs import open_input
from stream.columns import Lists, offsets_of
from stream.mind import hints
from stream.mind.dead import RAW_LIMIT, DeadReason, DeadRow
from stream.mind.folders import BOM, NEWS, WHERE, find_file
from stream.mind.kernels import MAX_ID_BYTES, MAX_LINE_BYTES

COLUMNS = 8
DEAD_KEPT = 10_000  # dead rows kept with their bytes; beyond, they are only counted

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def title_words(title: str) -> list[str]:
    """Lower-cased words of a title in order: letters and digits, apostrophes inside."""
    return _WORD.findall(title.lower())


@dataclass(frozen=True, slots=True)
class NewsTable:
    """n items, each id once, in the order of the files."""

    item_id: list[str]
    item: NDArray[np.int64]  # hash64 of the id
    category_name: list[str]
    category: NDArray[np.int64]
    subcategory_name: list[str]
    subcategory: NDArray[np.int64]
    title: list[str]
    words: Lists  # hash64 of each title word
    dead: list[DeadRow] = field(default_factory=list)  # the first DEAD_KEPT
    dead_counts: dict[DeadReason, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.item_id)


def read_news(folders: Sequence[Path]) -> NewsTable:
    """Read the catalogue of MIND folders.

    A line that cannot be used is counted in `dead_counts`. Raises InputError where a file is missing, empty, or has
    no usable line.
    """
    rows: dict[str, tuple[str, str, str]] = {}
    dead: list[DeadRow] = []
    counts: dict[DeadReason, int] = {}
    for number, folder in enumerate(folders):
        path = find_file(folder, NEWS)
        here: set[str] = set()
        first = ""
        for line, raw in _lines(path):
            row = _parse(raw)
            if not isinstance(row, DeadReason) and row[0] in here:
                row = DeadReason.DUPLICATE_ITEM
            if isinstance(row, DeadReason):
                first = first or f"no line of it is an item; line {line}: {row}. {hints.of_items(raw)}".rstrip(". ")
                counts[row] = counts.get(row, 0) + 1
                if len(dead) < DEAD_KEPT:
                    dead.append(DeadRow(number, path, line, row, raw[:RAW_LIMIT]))
                continue
            here.add(row[0])
            rows.setdefault(row[0], row[1:])
        if not here:
            raise InputError(f"{path}: {first or 'empty file'}. {WHERE}")
    return _table(rows, dead, counts)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines without their ends; of a line over the limit only the beginning, still over the limit."""
    with open_input(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 3):
            number += 1
            raw = raw.removeprefix(BOM) if number == 1 else raw
            rest = raw
            while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE_BYTES)):
                pass
            yield number, raw.removesuffix(b"\n").removesuffix(b"\r")


def _parse(raw: bytes) -> tuple[str, str, str, str] | DeadReason:
    """(id, category, subcategory, title) of a line, or why not."""
    if len(raw) > MAX_LINE_BYTES:
        return DeadReason.TOO_LONG
    try:
        fields = raw.decode().split("\t")
    except UnicodeDecodeError:
        return DeadReason.NOT_UTF8
    if len(fields) != COLUMNS:
        return DeadReason.COLUMNS
    item, category, subcategory, title = fields[:4]
    if not item or " " in item:
        return DeadReason.EMPTY_ID
    if len(item.encode()) > MAX_ID_BYTES:
        return DeadReason.ID_TOO_LONG
    return item, category, subcategory, title


def _table(rows: dict[str, tuple[str, str, str]], dead: list[DeadRow], counts: dict[DeadReason, int]) -> NewsTable:
    item_id = list(rows)
    category_name, subcategory_name, title = (list(column) for column in zip(*rows.values(), strict=True))
    words = [title_words(text) for text in title]
    return NewsTable(
        item_id=item_id,
        item=_keys(item_id),
        category_name=category_name,
        category=_keys(category_name),
        subcategory_name=subcategory_name,
        subcategory=_keys(subcategory_name),
        title=title,
        words=Lists(
            offsets_of(np.array([len(w) for w in words], np.int64)), _keys([w for line in words for w in line])
        ),
        dead=dead,
        dead_counts=counts,
    )


def _keys(texts: list[str]) -> NDArray[np.int64]:
    """hash64 of each text; each distinct text is hashed once."""
    known = {text: hash64(text) for text in dict.fromkeys(texts)}
    return np.fromiter((known[text] for text in texts), np.int64, len(texts))
