"""A version: (generation, tick), one record of the `versions` log, linked to its predecessor by digest.

`kind` says what the record does to the state it follows:

    generation   opens generation g at tick t: the whole state is the named snapshot, then the record's rows over it
    delta        upserts rows, removes tombstones, replaces dense weights where it carries them
    progress     changes nothing: the state through `tick` is the state of the predecessor

The digest covers what a version *is* (its predecessor, generation, tick, kind, snapshot and rows), so that two runs
over the same logs compare equal. It leaves out when and where it was made: wall times, parts, the build, the
configuration, and log offsets (a restarted joiner may repeat records, which moves offsets and changes nothing): the log
checks those.

Schema rule: unknown fields are ignored; `v` is raised only when an old reader must not read on.
"""

import hashlib
from enum import StrEnum
from typing import NamedTuple

import msgspec

from infra.errors import CorruptStateError
from infra.paramstore.tensors import Tensors, decode_tensors

SCHEMA_VERSION = 1
TOPIC = "versions"
ROOT_DIGEST = ""  # predecessor of the first version


class Kind(StrEnum):
    DELTA = "delta"
    GENERATION = "generation"
    PROGRESS = "progress"


class VersionId(NamedTuple):
    """Ordered: a rollback opens a new generation, so numbers never run backwards."""

    generation: int
    tick: int


class VersionMeta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What a version record says beside its tensors."""

    v: int = SCHEMA_VERSION
    generation: int
    tick: int
    kind: Kind
    positions: dict[int, int]  # partition of `examples` -> next offset to read
    items_offset: int  # next offset to read of `items`
    control_offset: int  # next offset to read of `control`
    predecessor: str  # digest of the version before; "" for the first
    digest: str  # of this version; a progress record carries its predecessor's
    snapshot: str = ""  # kind generation: the snapshot that holds the state
    snapshot_digest: str = ""  # content digest of that snapshot
    part: int = 0  # a large version travels in parts and appears when whole
    parts: int = 1
    end: bool = False  # the replay's end has been learned: nothing follows until someone posts
    closed_wall_ms: int = 0  # wall time at which the tick's closing was read
    published_wall_ms: int = 0
    fingerprint: str = ""  # wheels, instruction-set class, threads
    configuration: str = ""  # digest of the settings that the content depends on: `paramstore.configuration`

    @property
    def id(self) -> VersionId:
        return VersionId(self.generation, self.tick)


class Version(NamedTuple):
    """A whole version as read from the log; `offset` is that of its last part."""

    meta: VersionMeta
    value: bytes | memoryview
    offset: int

    def tensors(self) -> Tensors:
        return decode_tensors(self.value)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(VersionMeta)


def encode_meta(meta: VersionMeta) -> bytes:
    return _encoder.encode(meta)


def decode_meta(data: bytes | memoryview) -> VersionMeta:
    """Raises CorruptStateError for bytes that are no version record, or one from a release with another rule."""
    try:
        meta = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"versions: a record's header cannot be read ({error}); restore the log") from error
    if meta.v > SCHEMA_VERSION:
        raise CorruptStateError(f"versions: record schema {meta.v}, this build reads {SCHEMA_VERSION}: upgrade")
    return meta


def digest_of(meta: VersionMeta, value: bytes | memoryview) -> str:
    """blake2b-256 over the version's content and its predecessor, hex. A progress record changes nothing."""
    if meta.kind is Kind.PROGRESS:
        return meta.predecessor
    head = f"{meta.predecessor}|{meta.generation}|{meta.tick}|{meta.kind.value}|{meta.snapshot_digest}|"
    digest = hashlib.blake2b(head.encode(), digest_size=32)
    digest.update(value)
    return digest.hexdigest()
