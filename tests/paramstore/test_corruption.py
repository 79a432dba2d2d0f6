"""Every byte of a small snapshot, flipped and cut: it is read whole and true, or refused with what to do."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.config import LogConfig
from infra.errors import CorruptStateError
from infra.eventlog import EventLog, Record, create_topics, open_log
from infra.paramstore.snapshots import SnapshotMeta, SnapshotStore
from infra.paramstore.store import ParamStore
from infra.paramstore.tensors import decode_tensors, encode_tensors
from infra.paramstore.version import VersionMeta, decode_meta, encode_meta

from .conftest import ToyTrainer, delta_of, whole_state

TENSORS = {
    "slot/item/keys": np.array([3, 1, 2], dtype=np.int64),
    "slot/item/values": np.arange(6, dtype=np.float32).reshape(3, 2),
    "dense/b": np.array([0.5], dtype=np.float16),
}


@pytest.fixture
def snapshots(tmp_path: Path) -> SnapshotStore:
    store = SnapshotStore(tmp_path / "store")
    store.write(SnapshotMeta(name="state-1", kind="state", generation=0, tick=1, positions={0: 5, 1: 9}), TENSORS)
    return store


@pytest.mark.parametrize("file", ["manifest.json", "tensors.arrow"])
def test_every_flipped_byte_is_detected(snapshots: SnapshotStore, file: str) -> None:
    path = snapshots.folder / "state-1" / file
    whole = path.read_bytes()
    rng = random.Random(7)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptStateError, match=r"delete the folder|not served"):
            snapshots.read("state-1")
    path.write_bytes(whole)
    assert np.array_equal(snapshots.read("state-1").tensors["slot/item/values"], TENSORS["slot/item/values"])


@pytest.mark.parametrize("file", ["manifest.json", "tensors.arrow"])
def test_every_truncation_is_detected(snapshots: SnapshotStore, file: str) -> None:
    path = snapshots.folder / "state-1" / file
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptStateError):
            snapshots.read("state-1")
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptStateError):
        snapshots.read("state-1")


def test_a_missing_file_or_folder_says_what_to_do(snapshots: SnapshotStore) -> None:
    (snapshots.folder / "state-1" / "tensors.arrow").unlink()
    with pytest.raises(CorruptStateError, match="delete the folder"):
        snapshots.read("state-1")
    shutil.rmtree(snapshots.folder / "state-1")
    with pytest.raises(CorruptStateError, match="gone"):
        snapshots.read("state-1")


def test_a_snapshot_under_another_name_is_refused(snapshots: SnapshotStore) -> None:
    shutil.copytree(snapshots.folder / "state-1", snapshots.folder / "state-2")
    with pytest.raises(CorruptStateError, match="holds snapshot state-1"):
        snapshots.read("state-2")


def test_a_name_is_written_once(snapshots: SnapshotStore) -> None:
    meta = SnapshotMeta(name="state-1", kind="state", generation=0, tick=1)
    assert snapshots.write(meta, TENSORS).positions == {0: 5, 1: 9}
    with pytest.raises(CorruptStateError, match="already holds other content"):
        snapshots.write(meta, {"dense/b": np.zeros(2, np.float32)})


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_tensors_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptStateError):
        decode_tensors(data)
    with pytest.raises(CorruptStateError):
        decode_meta(data)


def test_damaged_tensor_streams_never_give_other_names_or_crash() -> None:
    whole = encode_tensors(TENSORS)
    rng = random.Random(3)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            decode_tensors(bytes(damaged[: rng.randrange(1, len(damaged) + 1)]))
        except CorruptStateError:
            continue


def test_tensors_come_back_equal_aligned_and_writable() -> None:
    tensors = TENSORS | {
        "empty": np.empty((0, 4), np.float32),
        "scalar": np.array(3, dtype=np.int32),
        "flags": np.array([True, False]),
        "graph/score": np.frombuffer(b"abc", dtype=np.uint8),
        "strided": np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
    }
    back = decode_tensors(memoryview(encode_tensors(tensors)))
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        got = back[name]
        assert np.array_equal(got, array)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert got.flags.writeable
        assert got.flags.aligned
        assert got.flags.c_contiguous


def test_what_does_not_travel_is_the_callers_bug() -> None:
    for bad in ({"../x y": np.zeros(1)}, {"x": np.array(["text"])}, {"x": np.zeros(1, dtype=np.complex128)}):
        with pytest.raises(ValueError, match="does not travel"):
            encode_tensors(bad)


def test_a_newer_header_field_is_ignored_and_a_newer_rule_is_refused() -> None:
    import msgspec

    meta = VersionMeta(
        generation=1, tick=2, kind="delta", positions={0: 3}, items_offset=4, control_offset=5,
        predecessor="a", digest="b",
    )  # fmt: skip
    fields = msgspec.to_builtins(meta, str_keys=False) | {"colour": "blue"}
    assert decode_meta(msgspec.msgpack.encode(fields)) == decode_meta(encode_meta(meta))
    with pytest.raises(CorruptStateError, match="upgrade"):
        decode_meta(msgspec.msgpack.encode(fields | {"v": 2}))
    del fields["fingerprint"]  # an older writer's
    assert decode_meta(msgspec.msgpack.encode(fields)).fingerprint == ""


def copied(log: EventLog, folder: Path, change: Callable[[int, Record], bytes]) -> ParamStore:
    """The same versions in another log, each value as `change` (index, record) makes it; every frame is sound."""
    other = open_log(folder / "log", LogConfig())
    create_topics(other, 2)
    writer = other.writer("versions")
    for record in log.read("versions", 0, 0, 100):
        writer.append(0, change(record.offset, record), timestamp_ms=record.timestamp_ms, meta=record.meta)
    writer.close()
    return ParamStore(folder, other)


def test_a_version_whose_content_is_not_that_of_its_digest_is_refused(
    tmp_path: Path, log: EventLog, trainer: ToyTrainer
) -> None:
    trainer.open(0, 10)
    for tick in range(11, 16):
        trainer.delta(tick)
    trainer.flush()
    forged = encode_tensors(delta_of(99))
    for at in range(6):
        store = copied(log, tmp_path / f"copy-{at}", lambda i, r, at=at: forged if i == at else bytes(r.value))  # type: ignore[misc]
        with pytest.raises(CorruptStateError, match=rf"version 0\.{10 + at}: content has digest .* not served"):
            list(store.deltas(None))
        store.log.close()
    whole = copied(log, tmp_path / "whole", lambda i, r: bytes(r.value))
    assert len(list(whole.deltas(None))) == 6
    whole.log.close()


def test_a_generation_does_not_open_from_another_snapshot_of_its_name(store: ParamStore, trainer: ToyTrainer) -> None:
    trainer.open(0, 10)
    trainer.flush()
    shutil.rmtree(store.snapshots.path("generation-0000"))
    store.write_snapshot("generation-0000", whole_state(7), kind="generation", generation=0, tick=10)
    with pytest.raises(CorruptStateError, match=r"not the one that version 0\.10 opened with"):
        store.state()


def test_an_alias_that_names_another_version_is_refused(store: ParamStore, trainer: ToyTrainer) -> None:
    trainer.open(0, 10)
    trainer.delta(11)
    trainer.flush()
    mark = store.aliases.get("generation")
    assert mark is not None
    store.aliases.set("generation", msgspec.structs.replace(mark, offset=mark.offset + 1))
    with pytest.raises(CorruptStateError, match="delete the alias file"):
        store.base()
