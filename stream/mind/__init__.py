"""Reads MIND folders: `open_mind` for impressions, `read_news` for the catalogue."""

from stream.mind.dead import DeadReason, DeadRow, DeadRows
from stream.mind.folders import folder_names
from stream.mind.news import NewsTable, read_news, title_words
from stream.mind.reader import ImpressionRows, MindIndex, open_mind

__all__ = [
    "DeadReason",
    "DeadRow",
    "DeadRows",
    "ImpressionRows",
    "MindIndex",
    "NewsTable",
    "folder_names",
    "open_mind",
    "read_news",
    "title_words",
]
