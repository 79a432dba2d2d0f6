"""Collisionless embeddings for PyTorch on a CPU: ids in, vectors out, one row per id. See infra/docs/torch.md.

The online trainer imports none of this: it runs without torch.
"""

from infra.embedding.life.policy import Policy
from trainer.nn.arms import ModuloEmbedding, MultiHashEmbedding, QuotientRemainderEmbedding
from trainer.nn.model import load_model, save_model
from trainer.nn.modules import Embedding, EmbeddingBag, SparseEmbedding, embeddings
from trainer.nn.optimizer import SparseOptimizer
from trainer.rules import Adagrad, Adam, Ftrl, Momentum, RowwiseAdagrad, Sgd

__all__ = [
    "Adagrad",
    "Adam",
    "Embedding",
    "EmbeddingBag",
    "Ftrl",
    "ModuloEmbedding",
    "Momentum",
    "MultiHashEmbedding",
    "Policy",
    "QuotientRemainderEmbedding",
    "RowwiseAdagrad",
    "Sgd",
    "SparseEmbedding",
    "SparseOptimizer",
    "embeddings",
    "load_model",
    "save_model",
]
