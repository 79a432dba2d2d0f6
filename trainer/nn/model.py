"""A whole model as one Arrow file: dense weights and buffers by name, embeddings with all that belongs to them.

    model.arrow    the tensors of `model.state_dict()`; an embedding is one of uint8, its own snapshot (`snapshot`)

A dense optimizer's moments are not in it: they belong to that optimizer.
"""

import io
from pathlib import Path

import numpy as np
import torch
from torch import nn

from infra.errors import CorruptStateError, InputError
from infra.paramstore.files import replace_durably
from infra.paramstore.tensors import NAME_OF, Tensors, decode_tensors, write_tensors

FILE = "model.arrow"


def save_model(model: nn.Module, folder: str | Path) -> Path:
    """Write the model into `folder`, durably; the file, which is replaced whole.

    Raises ValueError for what does not travel: a tensor of another dtype (bfloat16), an extra state that is no tensor.
    """
    tensors: Tensors = {}
    for name, tensor in model.state_dict().items():
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        if not isinstance(tensor, torch.Tensor) or tensor.dtype == torch.bfloat16 or tensor.is_complex():
            raise ValueError(f"{name} is {kind}; it does not travel: one of {', '.join(NAME_OF.values())}")
        tensors[name] = tensor.detach().cpu().numpy()
    sink = io.BytesIO()
    write_tensors(sink, tensors)
    path = Path(folder) / FILE
    replace_durably(path, sink.getvalue())
    return path


def load_model(model: nn.Module, folder: str | Path) -> None:
    """Continue what `save_model` wrote, in a model made as that one was.

    Raises InputError where there is none or it is another model's, CorruptStateError where it is damaged.
    """
    path = Path(folder) / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; name the folder that save_model() was given") from error
    try:
        tensors = decode_tensors(data)
    except CorruptStateError as error:
        raise CorruptStateError(f"{path}: {error}") from error
    try:
        model.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in tensors.items()})
    except RuntimeError as error:  # how torch reports names and shapes that differ
        raise InputError(f"{path} is another model's: {error}") from error
