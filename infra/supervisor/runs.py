"""A run: its folder, its processes, and how it goes from first event to finished report.

The folder says what it holds (`config.toml`, `source.json`): the same command on it continues what was interrupted,
another source or configuration is refused.
"""

import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from infra import checked, folders
from infra.config import Config, dump_config
from infra.errors import ConfigError, InputError, OuzelError
from infra.inputs import is_source
from infra.paramstore.publisher import last_whole
from infra.process import STATS_ADVICE, RunFolder, write_atomically
from infra.supervisor.child import ouzel
from infra.supervisor.crew import ALONE, Crew
from infra.supervisor.display import Display
from infra.supervisor.fit import again, asked_for, fitted, inspect, many_partitions, said
from infra.supervisor.fleet import Fleet, Member, ProcessFailed, said_on, tail
from infra.supervisor.runlog import OWN, drop_log, placed
from infra.supervisor.source_files import FileMark, changed, marks_of

WATCH_EVERY_S = 0.2
MOST_DIFFERENCES = 5


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a run's events come from."""

    mind: tuple[str, ...]
    asked: dict[str, float] = {}  # what of `train` was asked for, where the log was too short for it
    files: dict[str, FileMark] | None = None  # what it was read from; None: an older release did not keep it


def fit(folder: RunFolder, config: Config, mind: Sequence[Path], console: Console) -> tuple[Config, dict[str, float]]:
    """The configuration that fits the source, and what of it was asked for otherwise; as before where a run is there.

    Raises InputError where the source cannot be used.
    """
    if folder.config_file.is_file() and (folder.path / "source.json").is_file():
        asked = read_source(folder).asked
        return again(config, folder.load_config().train, asked), asked
    span = inspect(mind, config)
    fits = fitted(config, span)
    asked = asked_for(config.train, fits.train)
    for text in (said(fits, asked, span), many_partitions(config, span)):
        if text:
            console.print(text, highlight=False, soft_wrap=True)
    return fits, asked


def prepare(folder: RunFolder, config: Config, mind: Sequence[Path], asked: Mapping[str, float] | None = None) -> None:
    """Make the run folder, or accept it where it holds the same run. Raises ConfigError where it holds another."""
    source = msgspec.structs.replace(source_of(mind), asked=dict(asked or {}))
    own = config.log.url == OWN
    text = dump_config(placed(folder, config))
    if folder.config_file.is_file():
        if there := _differences(folder, text, source):
            raise ConfigError(
                f"{folder.path} holds a run of another source or configuration ({there}); choose another --out or "
                "remove it"
            )
        _hold_to_files(folder, mind)
        return
    if folder.path.exists() and any(folder.path.iterdir()):
        raise ConfigError(f"{folder.path} is not empty and holds no run; choose another --out")
    folders.make(folder.path, "--out")
    if own:
        folder.broker.mkdir()
    _keep_source(folder, source, mind)
    write_atomically(folder.config_file, text.encode())


def _hold_to_files(folder: RunFolder, mind: Sequence[Path]) -> None:
    """Return where the source is as it was when the run began; an older run is held to it from now on."""
    source = read_source(folder)
    if source.files is None:
        _keep_source(folder, source, mind)
    elif text := changed(source.files, [place.resolve() for place in mind]):
        raise ConfigError(
            f"{folder.path} cannot go on: its source changed ({text}). Put back the file as it was, or replay the new "
            "one into another --out; new events enter a run by its API"
        )


def _keep_source(folder: RunFolder, source: Source, mind: Sequence[Path]) -> None:
    source = msgspec.structs.replace(source, files=marks_of(place.resolve() for place in mind))
    write_atomically(folder.path / "source.json", checked.to_json(source))


def source_of(mind: Sequence[Path]) -> Source:
    """These folders. Raises InputError where one is not there."""
    for place in mind:
        folders.check_name(place, "--mind")
        if not is_source(place):
            raise InputError(
                f"{place}: no such folder or .zip; it holds behaviors.tsv and news.tsv (https://msnews.github.io), "
                "or make one with `ouzel generate mind --out DIR --scale tiny`"
            )
    return Source(mind=tuple(str(place.resolve()) for place in mind))


def _differences(folder: RunFolder, text: str, source: Source) -> str:
    """What a run folder has other than asked for; "" where it is the same run."""
    found = (
        []
        if read_source(folder).mind == source.mind
        else [f"its events come from {', '.join(read_source(folder).mind)}"]
    )
    before = folder.config_file.read_text(encoding="utf-8")
    if before != text:
        there, asked = _flat(tomllib.loads(before)), _flat(tomllib.loads(text))
        keys = [key for key in sorted(there.keys() | asked.keys()) if there.get(key) != asked.get(key)]
        found += [f"its {key} is {there.get(key)!r}, not {asked.get(key)!r}" for key in keys[:MOST_DIFFERENCES]]
        found += ["and more"] if len(keys) > MOST_DIFFERENCES else []
        found = found or ["its config.toml was edited"]
    return "; ".join(found)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def read_source(folder: RunFolder) -> Source:
    """The source of a run folder. Raises InputError where it has none."""
    path = folder.path / "source.json"
    if not path.is_file():
        raise InputError(f"{path}: missing; {folder.path} was not made by `ouzel run` or `ouzel demo`")
    advice = 'restore it from a copy, or write {"mind": ["DIR"]} with the folders that the run was made from'
    return checked.from_json(path, Source, advice)


def loop_members(source: Source, config: Config, crew: Crew = ALONE) -> list[Member]:
    """Every process of the loop; each ends once the end of the replay has passed through it."""
    end = "--until-end"
    mind = tuple(part for place in source.mind for part in ("--mind", place))
    return [
        Member("replay", "replay", mind),
        *crew.joiners(config, end),
        Member("trainer", "train", (end,)),
        Member("retrain", "retrain", (end,)),
        *crew.replicas_on(config.serve.port, end),
        Member("evaluator", "evaluate", (end,)),
    ]


def refuse_gone_on(folder: RunFolder) -> None:
    """A finished run that went on live has no end to run to. Raises ConfigError."""
    if not (folder.path / "report.json").is_file():
        return
    log = folder.open_log(folder.load_config())
    head = last_whole(log)
    log.close()
    if head is not None and not head.end:
        raise ConfigError(
            f"{folder.path} went on after its replay had ended: `ouzel up --run {folder.path}` goes on with it, "
            "`ouzel verify` checks it; to replay again choose another --out"
        )


def run_loop(
    folder: RunFolder, console: Console, crew: Crew = ALONE, *, check: Callable[[], None] = lambda: None
) -> None:
    """Start the loop's processes, watch them to their end, account for the run. Ctrl-C stops all of them.

    `check` is called while it runs, and raises where something else that the run needs has ended.
    Raises ConfigError where the run went on live after its end, ProcessFailed where a process fails for good.
    """
    refuse_gone_on(folder)
    config = folder.load_config()
    members = loop_members(read_source(folder), config, crew)
    fleet = Fleet(folder, members, supervise=config.supervise, say=said_on(console))
    started = time.monotonic()
    try:
        fleet.start_all()
        with Display(console, folder.stats, [m.name for m in fleet.members]) as display:
            while running := fleet.check():
                check()
                display.update(running, fleet.standings())
                time.sleep(WATCH_EVERY_S)
    except (OuzelError, KeyboardInterrupt):
        fleet.stop_all()
        raise
    fleet.close()
    _account(folder, seconds=time.monotonic() - started, peak_pss_bytes=fleet.peak_pss_bytes)


def _account(folder: RunFolder, *, seconds: float, peak_pss_bytes: int) -> None:
    path = folder.stats / "run.json"
    before = checked.from_json(path, dict[str, Any], STATS_ADVICE) if path.is_file() else {}
    stats = {
        "wall_s": before.get("wall_s", 0.0) + seconds,
        "peak_pss_bytes": max(before.get("peak_pss_bytes", 0), peak_pss_bytes),
    }
    write_atomically(path, checked.to_json(stats))


def write_report(folder: RunFolder) -> dict[str, Any]:
    """Have the report written, and return it."""
    log = folder.process_logs / "report.log"
    command = ouzel("report", "--run", str(folder.path))
    with open(log, "wb") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code != 0:
        raise ProcessFailed(f"report ended with exit code {code}; the end of {log}:\n{tail(log)}")
    report: dict[str, Any] = msgspec.json.decode((folder.path / "report.json").read_bytes())
    return report


def remove_run(folder: RunFolder, console: Console) -> None:
    """Remove a run folder, and nothing that is not one."""
    if not folder.path.exists():
        return
    if not folder.config_file.is_file():
        raise ConfigError(f"{folder.path} exists and is not a run folder; it is left alone")
    drop_log(folder, console)
    shutil.rmtree(folder.path)
