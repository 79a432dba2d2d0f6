"""TorchRec's managed collision module (zero collision hash) on a CPU, in evaluation mode: it inserts nothing.

`lookup` is the whole module, `ManagedCollisionEmbeddingCollection`: ids are remapped to rows by a binary search in the
sorted ids (MCHManagedCollisionModule) and their vectors gathered (EmbeddingCollection). `find` is the remap alone. Its
inputs, KeyedJaggedTensors of one id a sample, are made before the timer. It has one row more than keys: its last row
is for ids that it does not know. Filled by its own training step, all keys at once.
"""

from typing import Any

import numpy as np
import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import LFU_EvictionPolicy, ManagedCollisionCollection, MCHManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from tests.bench.table.contender import Answer, Contender, timed, touch_output
from tests.bench.table.inputs import keys_at


class ManagedCollision(Contender):
    """One table, one feature."""

    def fill(self) -> None:
        torch.set_num_threads(1)
        n, device = self.inputs.keys, torch.device("cpu")
        config = EmbeddingConfig(name="t", embedding_dim=self.dim, num_embeddings=n + 1, feature_names=["id"])
        self.remapping = MCHManagedCollisionModule(
            zch_size=n + 1, device=device, eviction_policy=LFU_EvictionPolicy(), eviction_interval=1
        )
        self.module = ManagedCollisionEmbeddingCollection(
            EmbeddingCollection(tables=[config], device=device),
            ManagedCollisionCollection({"t": self.remapping}, [config]),
            return_remapped_features=True,
        )
        self.remapping.train()
        self.remapping.profile({"t": jagged(torch.from_numpy(keys_at(np.arange(n))))})
        self.remapping.evict()
        self.module.eval()
        probe = torch.from_numpy(keys_at(np.array([0, n - 1, n])))
        rows = self.remapping.remap({"t": jagged(probe)})["t"].values()
        assert (rows == n).tolist() == [False, False, True]

    def lookup(self, **what: Any) -> Answer:
        """Ids to new tensors of vectors."""
        batches = [
            KeyedJaggedTensor(keys=["id"], values=ids, lengths=torch.ones(len(ids), dtype=torch.int64))
            for ids in self._ids(**what)
        ]
        touch_output(what["batch"], self.dim)
        with torch.inference_mode():
            return timed(self.module, batches)

    def find(self, **what: Any) -> Answer:
        """Ids to row numbers."""
        batches = [{"t": jagged(ids)} for ids in self._ids(**what)]
        with torch.inference_mode():
            return timed(self.remapping.remap, batches)

    def _ids(self, distribution: str, batch: int, part: int, ids: int) -> list[torch.Tensor]:
        return [torch.from_numpy(keys_at(rows)) for rows in self.inputs.batches(distribution, part, ids, batch)]


def jagged(ids: torch.Tensor) -> JaggedTensor:
    """One id a sample."""
    return JaggedTensor(values=ids, lengths=torch.ones(len(ids), dtype=torch.int64))


CONTENDER = ManagedCollision
