"""What became of the processes of a run, for whoever is asked about it: `RUN/members.json`.

A fleet writes it at its start and whenever a member ends, is started again or is given up; replicas read it for
`/readyz` and their metrics. Nothing that a model depends on is read from here.
"""

import os
from pathlib import Path
from typing import Literal

import msgspec

from infra.process import FLEET_VARIABLE

FILE = "members.json"
# What the others do without it, by the name before any number.
WITHOUT = {
    "joiner": "nothing new is learned",
    "trainer": "nothing new is learned",
    "retrain": "no new generation is trained",
    "archive": "no new generation is trained",
    "replica": "the other replicas answer",
    "evaluator": "nothing is scored",
}


class Standing(msgspec.Struct, frozen=True):
    """How one member stands."""

    state: Literal["running", "restarting", "stopped"] = "running"
    reason: str = ""  # how it last ended, and what is done about it
    restarts: int = 0


class Members(msgspec.Struct, frozen=True):
    """Content of the file."""

    fleet: int  # process id of the fleet that wrote it
    members: dict[str, Standing]


def write_members(folder: Path, members: dict[str, Standing]) -> None:
    """Replace the file. A disk that is full keeps what was there: the file is only looked at."""
    temporary = folder / f".{FILE}.tmp"
    try:
        temporary.write_bytes(msgspec.json.encode(Members(os.getpid(), members)))
        os.replace(temporary, folder / FILE)
    except OSError:
        return


def read_members(folder: Path) -> dict[str, Standing]:
    """The members of the fleet that started this process; none where no fleet did, or another one wrote the file."""
    fleet = os.environ.get(FLEET_VARIABLE, "")
    if not fleet:
        return {}
    try:
        found = msgspec.json.decode((folder / FILE).read_bytes(), type=Members)
    except (OSError, msgspec.MsgspecError):
        return {}
    return found.members if str(found.fleet) == fleet else {}


def degraded(members: dict[str, Standing]) -> list[str]:
    """A sentence a member that does not run: which, why, and what is missing without it."""
    return [
        f"{name} {standing.reason}; until it runs, {WITHOUT.get(name.partition('-')[0], 'its part is not done')}"
        for name, standing in members.items()
        if standing.state != "running"
    ]
