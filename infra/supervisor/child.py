"""How `ouzel` starts itself: one command line for every process that it makes."""

import sys


def ouzel(*arguments: str) -> list[str]:
    """The command of `ouzel ARGUMENTS` in a process of its own.

    -P: modules of the working folder are not imported. A project with its own `trainer.py` beside it would otherwise
    replace ours.
    """
    return [sys.executable, "-P", "-m", "infra.cli", *arguments]
