"""`ouzel up`: a finished run goes on. Its processes start again, and the replica keeps the replay's clock running.

What is posted to the API enters the same log, is joined, learned and served: the loop closes. Stop it with Ctrl-C;
started again, it goes on where it was.
"""

import io
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from infra.config import Config
from infra.errors import InputError
from infra.inputs import find_input, is_plain, open_input
from infra.paramstore.configuration import hold_to_configuration
from infra.process import RunFolder
from infra.supervisor.crew import ALONE, Crew
from infra.supervisor.display import Display
from infra.supervisor.fleet import Fleet, Member, said_on
from infra.supervisor.runs import read_source

WATCH_EVERY_S = 0.2
TAIL_BYTES = 65_536  # of the source's log, to find a sound row in
COLUMNS = 5  # of a row in MIND's behaviors.tsv
SHOWN = 4  # items in the example that is printed


def live_members(config: Config, *, speed: float, port: int | None, crew: Crew = ALONE) -> list[Member]:
    """The loop without a replay: a replica writes the heartbeats."""
    served = port if port is not None else config.serve.port
    return [
        *crew.joiners(config, "--follow"),
        Member("trainer", "train", ("--follow",)),
        Member("retrain", "retrain", ("--follow",)),
        *crew.replicas_on(served, "--follow", "--clock", "auto", "--speed", str(speed)),
    ]


def go_on(
    folder: RunFolder,
    console: Console,
    *,
    speed: float,
    port: int | None,
    crew: Crew = ALONE,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Run until Ctrl-C. Raises ProcessFailed where no replica is left to answer, InputError where there is no run."""
    config = folder.load_config()
    if not folder.store.is_dir():
        raise InputError(f"{folder.path} has no versions yet; finish it first: `ouzel run … --out {folder.path}`")
    members = live_members(config, speed=speed, port=port, crew=crew)
    check_configuration(folder, config)
    forget_absent_readers(folder, config)
    fleet = Fleet(folder, members, supervise=config.supervise, needed="serve", endless=True, say=said_on(console))
    address = f"http://{config.serve.host}:{port if port is not None else config.serve.port}"
    console.print(what_to_ask(address, sample_of(folder), config, speed), highlight=False, soft_wrap=True)
    try:
        fleet.start_all()
        with Display(console, folder.stats, [m.name for m in members]) as display:
            while running := fleet.check():
                check()
                display.update(running, fleet.standings())
                time.sleep(WATCH_EVERY_S)
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        fleet.stop_all()


def forget_absent_readers(folder: RunFolder, config: Config) -> None:
    """The evaluator does not run here: the join would wait for it for ever, and retention with it."""
    log = folder.open_log(config)
    log.forget_reader("examples", "evaluator")
    log.close()


def check_configuration(folder: RunFolder, config: Config) -> None:
    """Raises ConfigError where the run's content was made with another configuration."""
    log = folder.open_log(config)
    try:
        hold_to_configuration(log, config)
    finally:
        log.close()


class Sample(NamedTuple):
    """A user and some items of the run's source, to ask about."""

    user: str
    items: list[str]


def sample_of(folder: RunFolder) -> Sample:
    """A user and a few items from the last sound row of the source's log; made-up ids where there is none."""
    try:
        path = find_input(Path(read_source(folder).mind[-1]), "behaviors.tsv")
        with open_input(path or Path()) as file:
            if is_plain(file):
                file.seek(-min(TAIL_BYTES, file.seek(0, io.SEEK_END)), io.SEEK_END)
            tail = file.read(TAIL_BYTES).decode("utf-8", "replace")
    except (OSError, InputError, IndexError):
        tail = ""
    for line in reversed(tail.split("\n")):
        row = line.split("\t")
        shown = [entry.rpartition("-") for entry in row[-1].split()]
        if len(row) == COLUMNS and len(shown) > 1 and all(item and label in ("0", "1") for item, _, label in shown):
            return Sample(row[1], [item for item, _, _ in shown[:SHOWN]])
    return Sample("U1", ["N1", "N2", "N3", "N4"])


def what_to_ask(address: str, sample: Sample, config: Config, speed: float) -> str:
    """Commands to paste: rank, click, see the change."""
    ticks = config.time.build()
    wait_s = (ticks.attribution_ticks + ticks.publish_ticks + 1) * ticks.tick_ms / 1000 / speed
    items, clicked = json.dumps(sample.items), sample.items[-1]
    shown = f"mine-{secrets.token_hex(4)}"  # an impression of an id that is there already would be dropped
    return f"""
Ask, from another terminal:
  curl -s {address}/readyz
  curl -s {address}/v1/rank --json '{{"user": "{sample.user}", "items": {items}}}'
Say what was shown and clicked; {wait_s:.0f} s later ask again, and the score of {clicked} has risen:
  curl -s {address}/v1/events --json '{{"events": [
    {{"type": "impression", "id": "{shown}", "user": "{sample.user}", "items": {items}}},
    {{"type": "engagement", "impression": "{shown}", "user": "{sample.user}", "item": "{clicked}", "kind": "click"}}]}}'
Ctrl-C stops everything; the same command goes on.
"""
