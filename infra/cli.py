"""The `ouzel` command: a table of names, each imported only when it is called.

`infra` imports none of the boxes; the table names their modules, as an operator names processes. `--help` and a
mistyped command import nothing heavy.
"""

import importlib
import os
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import NamedTuple

import typer

from infra.errors import ConfigError, CorruptStateError, InputError, OuzelError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_MEND = 78  # a member of a fleet: starting it again mends nothing, a person must (sysexits.h: EX_CONFIG)


class Command(NamedTuple):
    """Where a command lives and what it does, in one line."""

    module: str
    function: str
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command("infra.supervisor.commands", "demo", "generate a tiny log, run the whole loop over it, and watch"),
    "run": Command("infra.supervisor.commands", "run", "the whole loop over MIND-format folders, to a finished report"),
    "up": Command("infra.supervisor.commands", "up", "go on from a finished run: serve, take events, keep learning"),
    "verify": Command(
        "infra.supervisor.commands", "verify", "derive a run's parameters again from its logs, and compare"
    ),
    "broker": Command("infra.supervisor.broker_command", "broker", "a real Kafka broker on this machine, until Ctrl-C"),
    "inspect": Command("stream.commands", "inspect", "what a log in MIND format holds: rows, time span, what is dead"),
    "generate": Command("stream.commands", "generate", "write a generated log in MIND format"),
    "replay": Command("stream.commands", "replay", "turn MIND rows into events, in order, at a chosen speed"),
    "join": Command("stream.join.run", "join", "join impressions with engagements; on Kafka, as one of many workers"),
    "archive": Command("stream.commands", "archive", "keep the archive of a run over Kafka, beside its joiners"),
    "topics": Command("infra.supervisor.topics", "topics", "create, show or drop the topics of a log; lag by reader"),
    "dead-letters": Command(
        "stream.deadcommands", "dead_letters", "what could not be used: list, show, or replay what can be read now"
    ),
    "train": Command("trainer.commands", "train", "learn each tick and publish it as a version"),
    "retrain": Command("trainer.commands", "retrain", "the nightly retrain: each day as it completes, or one --day"),
    "experiment": Command(
        "trainer.experiments.commands", "experiment", "repeat a published experiment, beside what this replaces"
    ),
    "serve": Command("serving.commands", "serve", "a replica behind HTTP: rank, events, health, metrics"),
    "evaluate": Command("serving.commands", "evaluate", "score every impression with the version that served it"),
    "report": Command("serving.commands", "report", "report.json and report.html of a run"),
}


def main() -> None:
    """Entry point of `ouzel`."""
    try:
        code = _main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed has read enough: `ouzel --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        code = EXIT_ERROR
    sys.exit(code)


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"ouzel {version('ouzel')}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
        return 0
    name = arguments[0]
    command = COMMANDS.get(name)
    if command is None:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see ouzel --help"
        print(f"ouzel: no command {name!r}; {hint}", file=sys.stderr)
        return EXIT_USAGE
    return _call(name, command, arguments[1:])


def _call(name: str, command: Command, arguments: list[str]) -> int:
    function = getattr(importlib.import_module(command.module), command.function)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=command.help[0].upper() + command.help[1:] + ".")(function)
    try:
        app(args=arguments, prog_name=f"ouzel {name}", standalone_mode=True)
    except OuzelError as error:
        with suppress(OSError):  # our output lies on a disk that is full: the supervisor says so
            print(f"ouzel {name}: {error}", file=sys.stderr, flush=True)
        in_fleet = "OUZEL_FLEET" in os.environ  # infra.process.FLEET_VARIABLE, without what that imports
        mend = in_fleet and isinstance(error, (ConfigError, InputError, CorruptStateError))
        return EXIT_MEND if mend else EXIT_ERROR
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else EXIT_ERROR
    return 0


def _print_help() -> None:
    print("ouzel: a real-time recommender that keeps learning while it serves\n\nusage: ouzel COMMAND [OPTIONS]\n")
    width = max(map(len, COMMANDS))
    for name, command in COMMANDS.items():
        print(f"  {name:<{width}}  {command.help}")
    print("\n`ouzel COMMAND --help` shows the options of a command. Begin with `ouzel demo`.")


if __name__ == "__main__":
    main()
