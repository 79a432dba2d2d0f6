"""Exports the net as two ONNX graphs, `score` and `step`, once per architecture.

Weights are inputs of the graphs, by name, so one pair of graphs serves every generation of an architecture. An export
takes 5 to 10 s, so the pair is kept in a cache folder under the digest of everything that decides it: the shape, the
source of the net and of this module, and the versions of torch and onnxscript. The recipe for `step` (a function that
calls `torch.autograd.grad` on its inputs): trace it with make_fx under symbolic shapes, decompose to core ATen, export
with dynamic sizes.
"""

import contextlib
import hashlib
import inspect
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxscript
import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from infra import checked
from infra.errors import CorruptStateError
from trainer import net
from trainer.net import SCORE_INPUTS, STEP_INPUTS, STEP_OUTPUTS, NetShape

# Sizes to trace with: all different and none 0 or 1, so that no dynamic size is taken for a constant or for another.
_TRACE = {"n_imp": 7, "n_item": 31, "n_ctx": 43, "n_row": 53}
_AXIS = {
    "user": "n_imp", "item": "n_item", "ctx": "n_ctx", "imp_of_row": "n_row", "item_of_row": "n_row",
    "ctx_of_row": "n_row", "offset": "n_row", "label": "n_row", "weight": "n_row",
}  # fmt: skip


def export_graphs(shape: NetShape, cache: Path | None = None) -> dict[str, bytes]:
    """{"score": …, "step": …}: the serialized ONNX models, from the cache folder where it has them."""
    key = _digest(shape)
    graphs = {}
    for name in ("score", "step"):
        path = None if cache is None else cache / f"{name}-{key}.onnx"
        if path is not None and path.is_file():
            with contextlib.suppress(CorruptStateError):  # damaged: exported again
                graphs[name] = checked.from_bytes(path, "delete it")
                continue
        graphs[name] = _export(shape, name)
        if path is not None:
            _keep(path, graphs[name])
    return graphs


def _digest(shape: NetShape) -> str:
    text = [repr(shape), torch.__version__, onnxscript.__version__, inspect.getsource(net)]
    source = Path(__file__).read_text(encoding="utf-8")
    return hashlib.blake2b("\0".join([*text, source]).encode(), digest_size=16).hexdigest()


def _keep(path: Path, graph: bytes) -> None:
    """For the next start; without room it exports again then."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(checked.to_bytes(graph))
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            print(f"{path}: {error.strerror}; the graph is not kept for the next start", file=sys.stderr, flush=True)


def _export(shape: NetShape, name: str) -> bytes:
    inputs, function = (SCORE_INPUTS, net.score) if name == "score" else (STEP_INPUTS, net.step)
    names = tuple(shape.weights())
    tensors = [_example(shape, i) for i in inputs] + list(net.initial_weights(shape, seed=0).values())
    sizes = {axis: torch.export.Dim(axis) for axis in _TRACE}
    dynamic = tuple({0: sizes[_AXIS[i]]} for i in inputs) + (None,) * len(names)

    def flat(*args: Tensor) -> Any:
        return function(shape, dict(zip(names, args[len(inputs) :], strict=True)), *args[: len(inputs)])

    with _quiet():
        traced = _trace(flat, tensors)
        program = torch.export.export(traced, tuple(tensors), dynamic_shapes=dynamic)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[*inputs, *names],
            output_names=["f"] if name == "score" else list(STEP_OUTPUTS),
        )
    if exported is None:
        raise RuntimeError(f"torch.onnx.export returned nothing for the {name} graph")
    return _bare(exported.model_proto)


def _bare(model: Any) -> bytes:
    """The model without stack traces and paths of the machine that exported it."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    data: bytes = model.SerializeToString()
    return data


def _trace(function: Callable[..., Any], tensors: list[Tensor]) -> torch.fx.GraphModule:
    table: Any = core_aten_decompositions()
    traced: torch.fx.GraphModule = make_fx(
        function,
        tracing_mode="symbolic",
        decomposition_table=table,
        _allow_non_fake_inputs=True,
    )(*tensors)
    return traced


def _example(shape: NetShape, name: str) -> Tensor:
    rows = _TRACE[_AXIS[name]]
    if name.endswith("_of_row"):
        return torch.arange(rows) % _TRACE[{"imp": "n_imp", "item": "n_item", "ctx": "n_ctx"}[name.split("_")[0]]]
    width = {"user": shape.user_width, "item": shape.item_width, "ctx": shape.ctx_width}.get(name)
    return torch.zeros(rows) if width is None else torch.zeros(rows, width)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns of what does not concern us (torchvision, moved internals)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
