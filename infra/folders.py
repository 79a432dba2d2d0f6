"""Folders that a person names: refused with the option and the reason before anything is written there."""

import os
from pathlib import Path

from infra.errors import ConfigError


def check_name(path: Path, option: str) -> None:
    """Raises ConfigError for a name that is no UTF-8: records, reports and archives hold names as text."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "replace")
        raise ConfigError(
            f"{option} {shown}: its name is not UTF-8; rename it, or link to it by another name"
        ) from None


def check_new(path: Path, option: str) -> None:
    """Raises ConfigError where no folder can be made at `path` and none is there."""
    check_name(path, option)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{option} {path} is a file; name a folder")


def make(path: Path, option: str) -> None:
    """The folder, made if absent. Raises ConfigError where that cannot be."""
    check_new(path, option)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}; name a folder that can be written") from error
