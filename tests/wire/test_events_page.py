"""The page's examples, run as they stand against a producer that only writes down what it is given."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from infra.config import WireConfig
from infra.eventlog import Record
from stream.wire.dead import Reason
from stream.wire.formats import CONTENT_TYPES, form_of
from stream.wire.items import read_items
from stream.wire.limits import Rules
from stream.wire.records import Incoming, read_events
from stream.wire.schema import Engagement, Heartbeat, Impression, Item
from tests.wire.samples import NOW

PAGE = (Path(__file__).parents[2] / "infra/docs/events.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SENT: list[tuple[str, bytes]] = []


class KafkaProducer:
    def __init__(self, *, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def partitions_for(self, topic: str) -> set[int]:
        return {0, 1}

    def send(self, topic: str, value: bytes, key: bytes = b"", partition: int = 0) -> None:
        assert isinstance(value, bytes)
        assert isinstance(key, bytes)
        SENT.append((topic, value))


@pytest.mark.parametrize("code", EXAMPLES)
def test_every_example_has_three_lines_and_sends_what_the_joiner_reads(code: str) -> None:
    kafka = SimpleNamespace(KafkaProducer=KafkaProducer)
    SENT.clear()
    assert len(code.splitlines()) == 3
    exec(compile(code, "events.md", "exec"), {"json": json, "msgspec": msgspec, "kafka": kafka})
    assert SENT
    for topic, value in SENT:
        if topic == "items":
            read: Any = read_items(Record(0, 2 * NOW, b"", b"", value), Rules(WireConfig(), 0))
            assert len(read.items) == 1
        else:
            read = read_events([Incoming(0, NOW, value, form_of(value))], Rules(WireConfig(), 0))
            assert len(read.events) >= 1
        assert not read.dead


def test_the_page_names_every_reason_every_field_every_type_and_every_limit() -> None:
    assert len(EXAMPLES) == 5
    names = [*Reason, *CONTENT_TYPES]
    for struct in (Impression, Engagement, Heartbeat, Item):
        names += [struct.__struct_config__.tag, *struct.__struct_fields__]
    names += [f"wire.{name}" for name in WireConfig.__struct_fields__]
    assert [name for name in names if f"`{name}" not in PAGE and f"{name}`" not in PAGE] == []
