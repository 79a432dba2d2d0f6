"""What a module takes as ids, and the 64-bit keys that they become.

`infra.hashing.keys_of` has the rule and the chance of a collision: integers are keys one to one, texts become keys by
`hash64`. One module takes one kind: a text's key may be any integer, so both in one table would mix up the two.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infra import hashing

Keys = NDArray[np.int64]
Ids = torch.Tensor | NDArray[Any] | Sequence[str] | Sequence[int]


def keys_of(ids: Ids) -> tuple[Keys, tuple[int, ...]]:
    """Keys (n,) of ids of any shape, and that shape.

    Raises ValueError for what is no id: floats, bools, tensors of another device, integers beyond int64, mixed kinds.
    """
    if isinstance(ids, torch.Tensor):
        return _of_tensor(ids), tuple(ids.shape)
    if isinstance(ids, np.ndarray):
        return hashing.keys_of(ids), ids.shape
    if isinstance(ids, str | bytes):
        raise ValueError(f"ids is one text ({ids!r}); pass a list of texts")
    return hashing.keys_of(ids), (len(ids),)


def _of_tensor(ids: torch.Tensor) -> Keys:
    if ids.device.type != "cpu":
        raise ValueError(f"ids lie on {ids.device}; the table lies in main memory: pass ids.cpu()")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids are {ids.dtype}; they must be integers, as in ids.long()")
    plain = ids.detach().contiguous().numpy().reshape(-1)
    return plain if plain.dtype == np.int64 else hashing.keys_of(plain)
