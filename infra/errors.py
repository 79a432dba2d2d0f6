"""Errors, sorted by what the reader should do.

`ValueError` stays the caller's bug. Expected outcomes are values, not exceptions: see `stream.join.DropReason`.
"""


class OuzelError(Exception):
    """Base of all errors that a person is meant to read; the command prints its text and no traceback."""


class ConfigError(OuzelError):
    """Fix the file, the variable or the flag that the message names."""


class InputError(OuzelError):
    """Fix the input: the message says what was looked for, where, and where to get it."""


class RetryableError(OuzelError):
    """Try again after `after_s` seconds; nothing was lost."""

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class CorruptStateError(OuzelError):
    """Stored state contradicts itself; an operator acts, and the message says how."""
