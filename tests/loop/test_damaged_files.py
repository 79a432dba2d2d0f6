"""Every file that a run leaves: one flipped byte in it is found by whoever reads it back, or cannot matter."""

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import checked
from infra.errors import ConfigError, CorruptStateError
from infra.eventlog import open_log
from infra.paramstore.configuration import content_of, hold_to_configuration
from infra.paramstore.store import ParamStore
from infra.paramstore.tensors import decode_tensors
from infra.process import RunFolder
from infra.supervisor.runs import read_source
from serving.report.collect import collect
from stream.archive import complete_through, progress_of_all, read_marker, read_ticks
from stream.examples import encode_examples

from .conftest import Run

FLIPS = 3  # a file, at random places, beside its first and last byte
Reader = Callable[[RunFolder, Path], object]


def read_topic(folder: RunFolder, path: Path) -> object:
    """Everything in the partition, or topic, of a file of the log, and where its readers stand."""
    log = open_log(folder.log, folder.load_config().log)
    topic = path.relative_to(folder.log).parts[0]
    try:
        kept = [log.read(topic, p, 0, 1 << 30) for p in range(log.partitions(topic))]
        return [[(bytes(r.value), r.meta, r.key) for r in records] for records in kept], log.reader_lag(topic)
    finally:
        log.close()


def read_archive(folder: RunFolder, path: Path) -> object:
    through = complete_through(folder.archive)
    examples, ticks = read_ticks(folder.archive, through - 3 * 1440, through)
    return encode_examples(examples), ticks.tobytes()


def read_snapshot(folder: RunFolder, path: Path) -> object:
    log = open_log(folder.log, folder.load_config().log)
    try:
        meta, tensors = ParamStore(folder.path, log).read_snapshot(path.parent.name)
        return meta, [(name, array.tobytes()) for name, array in tensors.items()]
    finally:
        log.close()


def read_alias(folder: RunFolder, path: Path) -> object:
    log = open_log(folder.log, folder.load_config().log)
    try:
        return ParamStore(folder.path, log).aliases.get(path.name)
    finally:
        log.close()


def read_books(folder: RunFolder, path: Path) -> object:
    return [
        (name, array.tobytes()) for name, array in decode_tensors(checked.from_bytes(path, "delete the folder")).items()
    ]


def read_configuration(folder: RunFolder, path: Path) -> object:
    """What counts for the content; the rest is the outside of a process, and may be set anew at each start."""
    config = folder.load_config()
    log = open_log(folder.log, config.log)
    try:
        hold_to_configuration(log, config)
    finally:
        log.close()
    return content_of(config)


READ_BACK: dict[str, Reader] = {
    r"config\.toml": read_configuration,
    r"source\.json": lambda folder, path: read_source(folder),
    r"log/.*": read_topic,
    r"archive/.*": read_archive,
    r"store/[a-z0-9-]+/.*": read_snapshot,
    r"store/\.aliases/.*": read_alias,
    r"stats/[a-z]+\.json": lambda folder, path: collect(folder),
    r"evaluation/evaluation\.json": lambda folder, path: collect(folder),
    r"evaluation/progress\.arrow": read_books,
}
NEVER_READ = {
    r"stats/[a-z]+\.live\.json": "shown while it is written, no more",
    r"members\.json": "shown by `/readyz`; each fleet writes its own",
    r"logs/.*\.log": "for people; the end of one is shown",
    r"report\.(html|json)": "made anew by every `ouzel report`",
    r"evaluation/by_(hour|day)\.parquet": "for people",
    r".*lock|store/\.publisher": "empty: its lock counts",
}


def reader_of(name: str) -> Reader | None:
    """Who reads a file back; None where nothing does. Fails for a kind of file that is not in the tables."""
    for pattern, reader in READ_BACK.items():
        if re.fullmatch(pattern, name) and not re.fullmatch(r".*lock", name):
            return reader
    assert any(re.fullmatch(pattern, name) for pattern in NEVER_READ), f"{name}: who reads it back, and checks it?"
    return None


@pytest.mark.slow
def test_a_flipped_byte_in_any_file_of_a_run_is_found_or_changes_nothing(straight: Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(straight.folder.path, folder.path)
    rng, silent, said = random.Random(1), [], []
    names = sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())
    for name in sample(names, rng):
        reader, path = reader_of(name), folder.path / name
        if reader is None or not path.stat().st_size:
            continue
        content, want = path.read_bytes(), reader(folder, path)
        for at in {0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(FLIPS))}:
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
            try:
                if reader(folder, path) != want:
                    silent.append((name, at))
            except (CorruptStateError, ConfigError) as error:
                said.append(str(error))
            path.write_bytes(content)
    assert silent == []
    advice = r"restore|delete|--again|upgrade|start|config\.toml|configuration|log\.partitions"
    assert [text for text in said if not re.search(advice, text)] == []
    assert len(said) > 60


def sample(names: list[str], rng: random.Random) -> list[str]:
    """All files, but of those that differ in numbers alone two."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "0", name), []).append(name)
    return [name for kind in kinds.values() for name in rng.sample(kind, min(2, len(kind)))]


@pytest.mark.slow
def test_a_lost_hour_stops_the_retrain_with_the_command_that_mends_it(straight: Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(straight.folder.path, folder.path)
    day = sorted(path for path in folder.archive.glob("day=*") if read_marker(path) is not None)[-1]
    whole = {path: path.read_bytes() for path in folder.archive.rglob("*.parquet")}
    lost = sorted(day.glob("hour=*/part-1.parquet"))[-1]
    lost.unlink()
    refused = ouzel("retrain", "--run", str(folder.path), "--day", day.name.removeprefix("day="))
    assert refused.returncode == 1
    command = re.search(r"`ouzel (archive --run \S+ --again)`", refused.stderr)
    assert command is not None, refused.stderr
    mended = ouzel(*command[1].split())
    assert mended.returncode == 0, mended.stderr
    assert f"{lost.relative_to(folder.archive)} was missing" in mended.stdout
    assert {path: path.read_bytes() for path in folder.archive.rglob("*.parquet")} == whole
    assert progress_of_all(folder.archive) != {}


def ouzel(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "infra.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
