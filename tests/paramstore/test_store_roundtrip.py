"""The store's two ends over a real log: commit and publication, parts, generations, snapshots, rollback material."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.config import LogConfig
from infra.errors import CorruptStateError, RetryableError
from infra.eventlog import open_log
from infra.paramstore.store import ParamStore
from infra.paramstore.tensors import SCHEMA, _batch, decode_tensors, encode_tensors, write_tensors
from infra.paramstore.version import Kind, VersionId


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_nothing_is_visible_before_the_flush_and_everything_after(store, trainer):
    trainer.open(0, 10)
    trainer.delta(11)
    assert store.head() is None
    trainer.flush()
    assert store.head().id == VersionId(0, 11)
    assert [v.meta.kind for v in store.reader()] == [Kind.GENERATION, Kind.DELTA]


def test_state_equals_what_the_trainer_holds(store, trainer):
    trainer.open(0, 10)
    for tick in range(11, 40):
        trainer.delta(tick)
    trainer.progress(45)
    trainer.flush()
    state = store.state()
    assert same(state.tensors, trainer.state)
    assert (state.id, state.through) == (VersionId(0, 39), 45)
    assert state.meta.positions == {0: 45, 1: 90}


def test_snapshot_and_deltas_give_the_snapshot_of_later(store, trainer):
    trainer.open(0, 10)
    for tick in range(11, 20):
        trainer.delta(tick)
    trainer.flush()
    store.write_state(trainer.publisher, trainer.state)
    for tick in range(20, 30):
        trainer.delta(tick)
    trainer.flush()
    assert store.base().id == VersionId(0, 19)
    assert same(store.state().tensors, trainer.state)
    store.write_state(trainer.publisher, trainer.state)
    assert same(store.base().tensors, trainer.state)
    assert store.latest_snapshot(max_tick=25).tick == 19


def test_an_older_version_can_be_read_back(store, trainer):
    trainer.open(0, 10)
    for tick in range(11, 20):
        trainer.delta(tick)
    held = trainer.state
    for tick in range(20, 25):
        trainer.delta(tick)
    trainer.flush()
    assert same(store.state(VersionId(0, 19)).tensors, held)


def test_a_generation_replaces_what_its_snapshot_brings_and_keeps_counters(store, trainer):
    trainer.open(0, 10)
    trainer.delta(11)
    trainer.flush()
    counters = {n: t for n, t in trainer.state.items() if n.startswith("counters/")}
    tables = {"slot/item/keys": np.array([5]), "slot/item/values": np.ones((1, 3), np.float32)}
    store.write_snapshot("candidate-11", tables, kind="candidate", generation=1, tick=11)
    where = {"positions": {}, "items_offset": 0, "control_offset": 0, "timestamp_ms": 0}
    trainer.publisher.open_generation(1, 11, "candidate-11", **where)
    trainer.flush()
    state = store.state()
    assert state.id == VersionId(1, 11)
    assert np.array_equal(state.tensors["slot/item/keys"], [5])
    assert all(np.array_equal(state.tensors[n], t) for n, t in counters.items())


def test_a_large_version_travels_in_parts_and_appears_when_whole(store, log):
    publisher = store.publisher(part_bytes=1_000)
    tensors = {"slot/item/keys": np.arange(1_000), "slot/item/values": np.ones((1_000, 3), np.float32)}
    where = {"positions": {}, "items_offset": 0, "control_offset": 0, "timestamp_ms": 0}
    meta = publisher.publish(-1, 5, tensors, **where)
    publisher.flush()
    assert meta.parts > 10
    assert log.end_offset("versions", 0) == meta.parts
    (version,) = list(store.reader())
    assert same(version.tensors(), tensors)
    publisher.close()


def test_an_incomplete_version_of_a_dead_publisher_is_dropped(store, log):
    from infra.paramstore.tensors import encode_tensors
    from infra.paramstore.version import VersionMeta, digest_of, encode_meta

    value = encode_tensors({"dense/w": np.ones(100, np.float32)})
    meta = VersionMeta(
        generation=-1, tick=1, kind=Kind.DELTA, positions={}, items_offset=0, control_offset=0,
        predecessor="", digest="", parts=2,
    )  # fmt: skip
    import msgspec

    meta = msgspec.structs.replace(meta, digest=digest_of(meta, value))
    writer = log.writer("versions")
    writer.append(0, value[:50], timestamp_ms=0, meta=encode_meta(meta))
    writer.flush()
    assert store.head() is None
    assert list(store.reader()) == []
    publisher = store.publisher()
    where = {"positions": {}, "items_offset": 0, "control_offset": 0, "timestamp_ms": 0}
    publisher.publish(-1, 1, {"dense/w": np.ones(100, np.float32)}, **where)
    publisher.flush()
    assert [v.meta.id for v in store.reader()] == [VersionId(-1, 1)]
    publisher.close()
    writer.close()


def test_a_second_publisher_is_refused_while_the_first_lives(store, trainer):
    with pytest.raises(RetryableError, match="another process publishes"):
        store.publisher()


def test_a_writer_that_goes_past_the_lock_is_noticed_before_the_next_commit(tmp_path, store, trainer, log):
    trainer.open(0, 10)
    trainer.flush()
    other = ParamStore(tmp_path / "elsewhere", log)  # same log, another lock
    publisher = other.publisher()
    where = {"positions": {}, "items_offset": 0, "control_offset": 0, "timestamp_ms": 0}
    publisher.publish(0, 11, {"dense/w": np.zeros(1, np.float32)}, **where)
    publisher.flush()
    trainer.delta(11)
    with pytest.raises(CorruptStateError, match="another trainer writes"):
        trainer.flush()
    publisher.close()
    assert [v.meta.id for v in store.deltas(None)] == [VersionId(0, 10), VersionId(0, 11)]


def test_a_restarted_publisher_continues_the_chain(tmp_path, store, log):
    from infra.paramstore.chain import Chain, Verdict

    publisher = store.publisher()
    where = {"positions": {0: 1}, "items_offset": 0, "control_offset": 0, "timestamp_ms": 0}
    publisher.publish(-1, 1, {"dense/w": np.zeros(1, np.float32)}, **where)
    publisher.progress(3, **where)
    publisher.flush()
    publisher.close()
    again = open_log(tmp_path / "log", LogConfig())
    publisher = ParamStore(tmp_path, again).publisher()
    with pytest.raises(ValueError, match="does not follow"):
        publisher.publish(-1, 3, {}, **where)
    publisher.publish(-1, 4, {"dense/w": np.ones(1, np.float32)}, **where)
    publisher.flush()
    chain = Chain()
    for version in store.reader():
        assert chain.judge(version.meta, version.value) is Verdict.APPLY
        chain.advance(version.meta)
    assert chain.id == VersionId(-1, 4)
    publisher.close()
    again.close()


def test_nan_is_never_published(store, trainer):
    trainer.open(0, 10)
    where = {"positions": {}, "items_offset": 0, "control_offset": 0, "timestamp_ms": 0}
    with pytest.raises(CorruptStateError, match="slot/item/values holds NaN"):
        trainer.publisher.publish(0, 11, {"slot/item/values": np.array([[np.nan]], np.float32)}, **where)
    trainer.flush()
    assert store.head().id == VersionId(0, 10)


def test_equal_inputs_give_equal_digests_whatever_the_wall_time_and_the_flushes(tmp_path):
    from infra.eventlog import create_topics

    heads = []
    for name, every in (("a", 1), ("b", 7)):
        log = open_log(tmp_path / name / "log", LogConfig())
        create_topics(log, 2)
        publisher = ParamStore(tmp_path / name, log).publisher(fingerprint=name, part_bytes=500 * every)
        for tick in range(20):
            delta = {"slot/item/keys": np.arange(tick), "slot/item/values": np.full((tick, 3), tick, np.float32)}
            where = {"positions": {0: tick * every}, "items_offset": 0, "control_offset": 0, "timestamp_ms": 0}
            publisher.publish(-1, tick, delta, **where)
            if tick % every == 0:
                publisher.flush()
        publisher.flush()
        heads.append(publisher.chain.digest)
        publisher.close()
        log.close()
    assert heads[0] == heads[1]


def test_prune_keeps_the_newest_and_what_a_pin_needs(store, trainer):
    trainer.open(0, 10)
    names = []
    for tick in range(11, 16):
        trainer.delta(tick)
        trainer.flush()
        names.append(store.write_state(trainer.publisher, trainer.state).name)
        if tick == 12:
            store.pin("evaluator", VersionId(0, 12), trainer.publisher.chain.digest, 2)
    store.aliases.remove("generation")
    assert store.prune(keep=2) == [names[0], names[2]]
    store.unpin("evaluator")
    assert store.prune(keep=1) == [names[1], names[3]]


def test_the_end_is_known_after_a_restart_also_where_nothing_changed_with_it(store, trainer):
    trainer.open(0, 10)
    trainer.delta(11)
    trainer.publisher.progress(11, **trainer._where(11), end=True)
    trainer.flush()
    assert store.state().meta.end
    assert [v.meta.end for v in store.deltas(None)] == [False, False, True]


def test_a_snapshot_that_is_pruned_while_a_reader_looks_gives_way_to_a_newer_one(
    store, trainer, monkeypatch: pytest.MonkeyPatch
):
    trainer.open(0, 10)
    trainer.delta(11)
    trainer.flush()
    old = store.write_state(trainer.publisher, trainer.state)
    trainer.delta(12)
    trainer.flush()
    read = store.snapshots.read

    def prune_first(name, select=None):
        if name == old.name:
            store.write_state(trainer.publisher, trainer.state)
            store.prune(keep=1)
        return read(name, select)

    monkeypatch.setattr(store.snapshots, "read", prune_first)
    assert store.base().id == VersionId(0, 12)


def test_marks_refuse_names_that_are_none(store):
    for name in ("../x", "A", "", "x" * 65, "a/b"):
        with pytest.raises(ValueError, match="does not match"):
            store.aliases.get(name)
        with pytest.raises(ValueError, match="does not match"):
            store.snapshots.path(name)


def test_a_full_disk_leaves_the_store_as_it_was(store, trainer, monkeypatch: pytest.MonkeyPatch):
    import errno

    from infra.paramstore import snapshots

    def full(sink, tensors):
        sink.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "write_tensors", full)
        with pytest.raises(RetryableError, match="No space left"):
            store.write_snapshot("candidate-1", {"dense/w": np.ones(3)}, kind="candidate", generation=0, tick=0)
    assert store.snapshots.names() == []
    assert [p for p in Path(store.snapshots.folder).iterdir() if "candidate" in p.name] == []
    store.write_snapshot("candidate-1", {"dense/w": np.ones(3)}, kind="candidate", generation=0, tick=0)
    assert store.snapshots.names() == ["candidate-1"]


def test_tensors_are_the_stream_that_arrow_writes_and_both_forms_are_read():
    tensors = {
        "a/keys": np.arange(5),
        "a/values": np.ones((5, 3), np.float32),
        "number": np.array(7),
        "none": np.empty((0, 4)),
    }
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_batch(_batch(tensors))
    whole = encode_tensors(tensors)
    assert whole == sink.getvalue().to_pybytes()
    apart = pa.BufferOutputStream()
    write_tensors(apart, tensors)
    for data in (whole, memoryview(whole), apart.getvalue()):
        back = decode_tensors(data)
        assert list(back) == list(tensors)
        assert all(np.array_equal(back[n], t) and back[n].shape == t.shape for n, t in tensors.items())
    assert decode_tensors(encode_tensors({})) == {}
