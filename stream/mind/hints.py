"""What is probably wrong with a file of which no line can be used, from its first line."""

import re

_TIME = re.compile(rb"\d{1,2}/\d{1,2}/\d{4} \d{1,2}:\d\d:\d\d [AP]M")
EVENT_COLUMNS = "impression id, user, time, history, shown items"
ITEM_COLUMNS = "id, category, subcategory, title, abstract, url, and two of entities, which may be empty"


def of_impressions(raw: bytes) -> str:
    """A sentence about a line of behaviors.tsv, or ""."""
    fields = raw.split(b"\t")
    if len(fields) == 4 and _TIME.fullmatch(fields[1]):
        return (
            f"It has four columns and no impression id, of five ({EVENT_COLUMNS}): number the rows, "
            "`awk '{print NR \"\\t\" $0}' behaviors.tsv > NEW`"
        )
    if len(fields) == 4 and _TIME.fullmatch(fields[2]):
        return f"It has four columns and no shown items with labels (N1-0 N2-1), of five ({EVENT_COLUMNS})"
    return _columns(raw, 5, EVENT_COLUMNS)


def of_items(raw: bytes) -> str:
    """A sentence about a line of news.tsv, or ""."""
    return _columns(raw, 8, ITEM_COLUMNS)


def _columns(raw: bytes, wanted: int, names: str) -> str:
    n = raw.count(b"\t") + 1
    if n == wanted:
        return ""
    if n == 1 and raw.count(b",") >= 2:
        return f"It is separated by commas; {wanted} columns separated by tabs are read ({names})"
    return f"It has {n} tab-separated {'column' if n == 1 else 'columns'}, not {wanted} ({names})"
