"""The two graphs compute what torch computes, whatever the batch, and carry nothing of the machine that made them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.export import export_graphs
from trainer.net import NetShape, initial_weights, score, step
from trainer.stepper import StepNet, session

SHAPE = NetShape(dim=4, user_fields=3, item_fields=4, ctx_width=5, rank=4, hidden=(8, 4))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    torch.set_num_threads(1)
    return export_graphs(SHAPE, tmp_path_factory.mktemp("graphs"))


def weights(seed: int = 3) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    start = initial_weights(SHAPE, seed)
    return {k: v + 0.05 * torch.randn(v.shape, generator=random) for k, v in start.items()}


def rows(n: int, seed: int = 1) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(seed)
    f = lambda *size: rng.normal(scale=0.3, size=size).astype(np.float32)  # noqa: E731
    return {
        "user": f(9, SHAPE.user_width), "item": f(20, SHAPE.item_width), "ctx": f(33, SHAPE.ctx_width),
        "imp_of_row": np.sort(rng.integers(0, 9, n)), "item_of_row": rng.integers(0, 20, n),
        "ctx_of_row": rng.integers(0, 33, n), "offset": f(n),
        "label": (rng.random(n) < 0.2).astype(np.float32), "weight": np.ones(n, np.float32),
    }  # fmt: skip


def numpy_weights() -> dict[str, NDArray[np.float32]]:
    return {k: v.numpy() for k, v in weights().items()}


def test_step_graph_agrees_with_autograd(graphs):
    data = rows(200)
    got = StepNet(graphs["step"], numpy_weights()).run(**data)
    want = step(SHAPE, weights(), **{k: torch.from_numpy(v.copy()) for k, v in data.items()})
    for mine, theirs in zip(got, want, strict=True):
        assert mine.shape == tuple(theirs.shape)
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_gradients_agree_with_finite_differences_of_the_log_loss(graphs):
    data = rows(50)
    net = StepNet(graphs["step"], numpy_weights())

    def loss(user: NDArray[np.float32]) -> float:
        z = net.run(**{**data, "user": user}).f.astype(np.float64) + data["offset"]
        return float((np.logaddexp(0, z) - data["label"] * z).sum())

    gradient = net.run(**data).d_user
    bump = np.zeros_like(data["user"])
    bump[4, 7] = 1e-2
    slope = (loss(data["user"] + bump) - loss(data["user"] - bump)) / 2e-2
    assert abs(slope - gradient[4, 7]) < 2e-3 * max(1.0, abs(slope))


def test_same_rows_score_the_same_in_batches_of_other_sizes(graphs):
    data = rows(4096)
    net = StepNet(graphs["step"], numpy_weights())
    whole = net.run(**data).f
    per_row = ("imp_of_row", "item_of_row", "ctx_of_row", "offset", "label", "weight")
    part = net.run(**{k: v[:64] if k in per_row else v for k, v in data.items()}).f
    assert np.array_equal(whole[:64], part)


def test_score_and_step_graphs_give_the_same_bits(graphs):
    data = rows(300)
    feed = {**data, **numpy_weights()}
    scorer = session(graphs["score"])
    (f,) = scorer.run(None, {i.name: feed[i.name] for i in scorer.get_inputs()})
    assert np.array_equal(f, StepNet(graphs["step"], numpy_weights()).run(**data).f)
    want = score(SHAPE, weights(), *(torch.from_numpy(data[k].copy()) for k in list(data)[:6]))
    np.testing.assert_allclose(f, want.numpy(), rtol=1e-6, atol=1e-6)


def test_graphs_name_no_path_and_come_from_the_cache_the_second_time(graphs, tmp_path):
    for graph in graphs.values():
        assert b".py" not in graph
    for name in ("score", "step"):
        assert len(graphs[name]) < 40_000
    again = export_graphs(SHAPE, tmp_path)
    assert again == graphs
    assert export_graphs(SHAPE, tmp_path) == again


def test_fresh_net_is_a_factorization_machine_plus_the_deep_part():
    start = initial_weights(SHAPE, seed=5)
    start["out_w"] = torch.zeros_like(start["out_w"])
    rng = torch.Generator().manual_seed(1)
    user, item = torch.randn(1, 3, 4, generator=rng), torch.randn(1, 4, 4, generator=rng)
    zero = torch.zeros(1, dtype=torch.long)
    f = score(SHAPE, start, user.flatten(1), item.flatten(1), torch.zeros(1, 5), zero, zero, zero)
    factors = (user[0, :, 1:].sum(0) * item[0, :, 1:].sum(0)).sum()
    want = factors + user[0, :, 0].sum() + item[0, :, 0].sum()
    np.testing.assert_allclose(f.numpy(), [want.item()], rtol=1e-5)
