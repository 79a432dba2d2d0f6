"""Small files that a later process reads back: each ends in a checksum of what it says, checked on every read.

    JSON      {…, "check": "<blake2b-128 of everything before the comma, hex>"}     any reader of JSON still reads it
    binary    content | "OUZCHECK" | blake2b-256 of the content

Only whole, written with `process.write_atomically` or another that renames. A file without the checksum was written by
an older release, or edited by hand, which is how to say that an edit is meant; it is read as it is.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from infra.errors import CorruptStateError

T = TypeVar("T")
_END = re.compile(rb',\s*"(.{5})":\s*"(.{32})"\s*\}\s*\Z', re.DOTALL)  # of "check", or of what damage made of it
_MAGIC, _DIGEST_BYTES = b"OUZCHECK", 32


def to_json(value: Any, *, indent: bool = False) -> bytes:
    """A JSON object with its checksum; `value` has at least one field."""
    text = msgspec.json.encode(value)
    body = (msgspec.json.format(text) if indent else text).removesuffix(b"}").rstrip()
    return body + (b",\n  " if indent else b",") + b'"check":"' + _short(body) + b'"}' + (b"\n" if indent else b"")


def from_json(path: Path, kind: type[T], advice: str) -> T:
    """What `to_json` wrote. Raises CorruptStateError, which says `advice`, and OSError."""
    raw = path.read_bytes()
    end = _END.search(raw)
    if end is not None and end.groups() != (b"check", _short(raw[: end.start()])):
        raise CorruptStateError(
            f"{path}: its content does not fit its check; {advice}. If you edited it, take the check out as well"
        )
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"{path}: {error}; {advice}") from error


def to_bytes(content: bytes) -> bytes:
    """Binary content with its checksum."""
    return content + _MAGIC + hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def from_bytes(path: Path, advice: str) -> bytes:
    """What `to_bytes` wrote. Raises CorruptStateError, which says `advice`, and OSError."""
    raw = path.read_bytes()
    content, magic, digest = raw[: -_DIGEST_BYTES - 8], raw[-_DIGEST_BYTES - 8 : -_DIGEST_BYTES], raw[-_DIGEST_BYTES:]
    if magic != _MAGIC:
        return raw
    if hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest() != digest:
        raise CorruptStateError(f"{path}: its content does not fit its checksum; {advice}")
    return content


def _short(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()
