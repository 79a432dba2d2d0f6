"""`ouzel join --workers N`: several joiners of the group on this machine, started, watched and stopped by one command.

Each is `ouzel join --number K`, a process of its own with its log in `RUN/logs`; what it prints is also shown, behind
its name. SIGTERM and Ctrl-C stop all of them in order, so that their partitions move at once. One that ends by itself
is started again; one that fails too often stays stopped and the others share its partitions, until none is left.
"""

import signal
import sys
import threading
from types import FrameType

from infra.errors import ConfigError
from infra.process import MAX_NUMBER, RunFolder
from infra.supervisor.crew import numbered
from infra.supervisor.fleet import Fleet

WATCH_EVERY_S = 0.2


def join_together(folder: RunFolder, workers: int, first: int, arguments: tuple[str, ...]) -> None:
    """Run workers `first`, `first` + 1, … until all have ended, or a signal comes.

    Raises ConfigError where the log is joined by one worker, ProcessFailed where one fails.
    """
    config = folder.load_config()
    if not config.log.url:
        raise ConfigError(
            f"--workers {workers}: the log in {folder.path} is joined by one worker; several share the partitions of a "
            "log on Kafka (log.url)"
        )
    if first + workers - 1 > MAX_NUMBER:
        raise ConfigError(f"--number {first} --workers {workers}: numbers go to {MAX_NUMBER}")
    stop = threading.Event()

    def told(signum: int, _frame: FrameType | None) -> None:
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, told)
    members = [numbered("joiner", "join", n, *arguments) for n in range(first, first + workers)]
    names = [member.name for member in members]
    width = max(map(len, names))
    fleet = Fleet(
        folder,
        members,
        echo=lambda name, line: _say(f"{name:<{width}} | {line}"),
        supervise=config.supervise,
        needed="join",
        say=_say,
        publishes=False,
    )
    _say(f"{', '.join(names)} over {config.log.url}, {config.log.partitions} partitions; Ctrl-C stops them")
    if workers > config.log.partitions:
        _say(f"{workers - config.log.partitions} of them stand by: a partition has one worker")
    try:
        fleet.start_all()
        while fleet.check() and not stop.wait(WATCH_EVERY_S):
            pass
    finally:
        if left := fleet.running():
            _say(f"stopping {', '.join(left)}")
        fleet.stop_all()
    fleet.raise_failed(stopped=stop.is_set())


def _say(text: str) -> None:
    try:
        print(f"{text}\n", end="", file=sys.stderr, flush=True)  # in one piece: several threads say something
    except OSError:
        return  # whoever read it has gone; the join goes on
