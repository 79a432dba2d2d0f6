"""The compose file says what the rest of the project says. No engine runs it here."""

from pathlib import Path

import yaml

from infra.config import KafkaConfig
from infra.supervisor.kafka_jars import KAFKA_VERSION

COMPOSE = Path(__file__).resolve().parents[2] / "infra/deploy/compose.yaml"


def test_the_composed_broker_is_the_pinned_release_on_loopback_with_a_health_check() -> None:
    kafka = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["kafka"]
    assert kafka["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert all(port.startswith("127.0.0.1:") for port in kafka["ports"])
    assert kafka["healthcheck"]["test"][0] == "CMD"
    environment = kafka["environment"]
    assert environment["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert environment["KAFKA_MESSAGE_MAX_BYTES"] > KafkaConfig().max_record_bytes
    listeners = {part.partition(":")[0] for part in environment["KAFKA_LISTENERS"].split(",")}
    protocols = {part.partition(":")[0] for part in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}
    assert listeners == protocols
