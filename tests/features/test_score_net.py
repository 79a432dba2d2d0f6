"""The runner of the `score` graph, on a small graph with the same inputs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stream.features.blocks import Blocks
from stream.features.score_net import INPUTS, ScoreNet

D, F = 4, 3


def graph():
    """f = (user @ user_w)[imp] + (item @ item_w)[item] + (ctx @ ctx_w)[ctx]"""
    widths = {"user": 3 * D, "item": 4 * D, "ctx": F}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [f"n_{n}", w]) for n, w in widths.items()]
    inputs += [helper.make_tensor_value_info(n, TensorProto.INT64, ["n_row"]) for n in INPUTS[3:]]
    inputs += [helper.make_tensor_value_info(f"{n}_w", TensorProto.FLOAT, [w, 1]) for n, w in widths.items()]
    nodes = []
    for name, index in zip(widths, INPUTS[3:], strict=True):
        nodes.append(helper.make_node("MatMul", [name, f"{name}_w"], [f"{name}_x"]))
        nodes.append(helper.make_node("Gather", [f"{name}_x", index], [f"{name}_g"]))
    nodes.append(helper.make_node("Sum", [f"{n}_g" for n in widths], ["sum"]))
    nodes.append(helper.make_node("Flatten", ["sum"], ["f2"], axis=1))
    nodes.append(helper.make_node("Squeeze", ["f2", "axis"], ["f"]))
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    out = [helper.make_tensor_value_info("f", TensorProto.FLOAT, ["n_row"])]
    body = helper.make_graph(nodes, "score", inputs, out, [axis])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        n: rng.normal(size=(w, 1)).astype(np.float32) for n, w in (("user_w", 3 * D), ("item_w", 4 * D), ("ctx_w", F))
    }


def blocks(n_row=50, seed=1):
    rng = np.random.default_rng(seed)

    def block(n, w):
        return rng.normal(size=(n, w)).astype(np.float32)

    index = [rng.integers(0, n, n_row) for n in (5, 9, 11)]
    return Blocks(block(5, 3 * D), block(9, 4 * D), block(11, F), *index, np.zeros(n_row, np.float32))


def test_scores_are_what_the_graph_says():
    w, b = weights(), blocks()
    want = (
        (b.user @ w["user_w"])[b.imp_of_row]
        + (b.item @ w["item_w"])[b.item_of_row]
        + (b.ctx @ w["ctx_w"])[b.ctx_of_row]
    )
    f = ScoreNet(graph(), w).score(b)
    assert f.shape == (50,)
    assert f.dtype == np.float32
    np.testing.assert_allclose(f, want[:, 0], rtol=1e-4, atol=1e-5)


def test_same_inputs_same_bits_in_another_session():
    one, two = (ScoreNet(graph(), weights()) for _ in range(2))
    assert one.score(blocks()).tobytes() == two.score(blocks()).tobytes() == one.score(blocks()).tobytes()


def test_a_generation_is_taken_whole_and_later_changes_do_not_reach_it():
    given = weights(1)
    net = ScoreNet(graph(), weights(0))
    net.load(given)
    before = net.score(blocks())
    given["user_w"][:] = 0
    assert np.array_equal(net.score(blocks()), before)
    assert not np.array_equal(ScoreNet(graph(), weights(0)).score(blocks()), before)


def test_nothing_to_score_is_nothing():
    assert ScoreNet(graph(), weights()).score(blocks(n_row=0)).shape == (0,)


def test_a_missing_weight_or_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match="ctx_w"):
        ScoreNet(graph(), {k: v for k, v in weights().items() if k != "ctx_w"})
    with pytest.raises(ValueError, match="weight ctx_w"):
        ScoreNet(graph(), {**weights(), "ctx_w": np.zeros((F + 1, 1), np.float32)})
