"""The oracle's join: by folder and impression id, by position; unknown reads as NaN; a wrong file is refused."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import InputError
from infra.hashing import hash64
from serving.evaluator.truth import load_truth


def write(folder, ids, positions, p, p_ref=None):
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "impression": pa.array(ids, pa.int64()), "position": pa.array(positions, pa.int16()),
        "p": pa.array(p, pa.float32()), "p_ref": pa.array(p if p_ref is None else p_ref, pa.float32()),
    }  # fmt: skip
    pq.write_table(pa.table(columns), folder / "truth.parquet")


def logits(truth, keys, lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    f, logit = (np.zeros(offsets[-1], np.float32) for _ in range(2))
    truth.logits(np.array(keys, np.int64), offsets, f, logit)
    return f, logit


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def test_rows_are_found_by_folder_id_and_position(tmp_path):
    write(tmp_path / "train", [1, 1, 2], [0, 1, 0], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    write(tmp_path / "dev", [1, 1], [0, 1], [0.7, 0.8], [0.7, 0.9])
    truth = load_truth([tmp_path / "train", tmp_path / "dev"])
    f, logit = logits(truth, [hash64("dev/1"), hash64("train/2"), hash64("train/1")], [2, 1, 2])
    assert sigmoid(f) == pytest.approx([0.7, 0.9, 0.6, 0.4, 0.5], rel=1e-5)
    assert sigmoid(logit) == pytest.approx([0.7, 0.8, 0.3, 0.1, 0.2], rel=1e-5)


def test_unknown_impression_and_other_length_read_as_nan(tmp_path):
    write(tmp_path / "train", [1, 1], [0, 1], [0.1, 0.2])
    f, logit = logits(load_truth([tmp_path / "train"]), [hash64("train/9"), hash64("train/1")], [1, 3])
    assert np.isnan(f).all()
    assert np.isnan(logit).all()


def test_certain_clicks_stay_finite(tmp_path):
    write(tmp_path / "train", [1, 1], [0, 1], [0.0, 1.0])
    f, _ = logits(load_truth([tmp_path / "train"]), [hash64("train/1")], [2])
    assert all(map(math.isfinite, f))
    assert f[0] < -15 < 15 < f[1]


def test_real_logs_have_no_oracle(tmp_path):
    assert load_truth([tmp_path]) is None


@pytest.mark.parametrize("positions", [[1, 2, 0], [0, 2, 1], [0, 0, 2]])
def test_rows_out_of_shown_order_are_refused(tmp_path, positions):
    write(tmp_path / "train", [1, 1, 1], positions, [0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="generate the folder again"):
        load_truth([tmp_path / "train"])


def test_another_parquet_file_is_refused(tmp_path):
    (tmp_path / "truth.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="not a truth file"):
        load_truth([tmp_path])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "truth.parquet")
    with pytest.raises(InputError, match="not a truth file"):
        load_truth([tmp_path])
