"""What a topic is called and how many partitions it has: `topic.json`, written once, checked on every opening."""

import re
import zlib

import msgspec

from infra.errors import ConfigError, CorruptStateError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_PARTITIONS = 1_024


class Topic(msgspec.Struct, frozen=True):
    version: int
    partitions: int
    check: int  # CRC-32 of the name and the two numbers: a flipped digit would move every key

    @staticmethod
    def make(topic: str, version: int, partitions: int) -> "Topic":
        return Topic(version, partitions, zlib.crc32(f"{topic} {version} {partitions}".encode()))


def check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{kind} {name!r}: lower-case letters, digits, dot, dash and underscore, at most 64")


def decode_topic(name: str, path: str, raw: bytes) -> Topic:
    try:
        topic = msgspec.json.decode(raw, type=Topic)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    if topic != Topic.make(name, topic.version, topic.partitions):
        raise _damaged(path, "its check does not fit")
    if topic.version != 1:
        raise ConfigError(
            f"{path}: written by a newer release (version {topic.version}); upgrade, or use another folder"
        )
    return topic


def _damaged(path: str, what: str) -> CorruptStateError:
    return CorruptStateError(
        f"{path}: damaged: {what}; delete it: the next `create_topic` writes it anew, with log.partitions as before"
    )
