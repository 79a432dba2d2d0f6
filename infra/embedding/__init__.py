"""The collisionless embedding table that both ends of the loop hold."""

from infra.embedding.base import Rows, Table
from infra.embedding.cuckoo import EmbeddingTable
from infra.embedding.gather import group_sum, unique_inverse
from infra.embedding.initial import initial_vectors
from infra.embedding.layout import Segment
from infra.embedding.life.policy import Counts, Memory, Policy
from infra.embedding.reference import DictTable
from infra.embedding.segments import SegmentedTable
from infra.embedding.served.serving import ServingTable, TableView

__all__ = [
    "Counts",
    "DictTable",
    "EmbeddingTable",
    "Memory",
    "Policy",
    "Rows",
    "Segment",
    "SegmentedTable",
    "ServingTable",
    "Table",
    "TableView",
    "group_sum",
    "initial_vectors",
    "unique_inverse",
]
