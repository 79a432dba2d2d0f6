"""librdkafka's security settings, as Faust's client takes them; what it does not have is refused, not left out."""

import ssl
from collections.abc import Mapping
from typing import Any

import faust

from infra.errors import ConfigError

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def credentials(client: Mapping[str, Any]) -> Any:
    """Faust's credentials for librdkafka's settings; None for none. Raises ConfigError for what Faust cannot do."""
    protocol = str(client.get("security.protocol", "plaintext")).lower()
    known = {"security.protocol", "sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password"}
    known |= {"ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.key.password"}
    for name in client:
        if name.startswith(("sasl.", "ssl.")) and name not in known:
            raise ConfigError(f'log.kafka.client."{name}": the Faust engine cannot do this; use the own engine')
    if protocol == "plaintext":
        return None
    context = _ssl_context(client) if protocol.endswith("ssl") else None
    if protocol == "ssl":
        return faust.SSLCredentials(context)
    mechanism = str(client.get("sasl.mechanism", client.get("sasl.mechanisms", "PLAIN")))
    if protocol not in ("sasl_plaintext", "sasl_ssl") or mechanism not in MECHANISMS:
        raise ConfigError(
            f"log.kafka.client: {protocol} with {mechanism}: the Faust engine does {', '.join(MECHANISMS)} over "
            "sasl_plaintext or sasl_ssl; use the own engine"
        )
    user, password = client.get("sasl.username"), client.get("sasl.password")
    return faust.SASLCredentials(username=user, password=password, ssl_context=context, mechanism=mechanism)


def _ssl_context(client: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=client.get("ssl.ca.location"))
    if certificate := client.get("ssl.certificate.location"):
        context.load_cert_chain(certificate, client.get("ssl.key.location"), client.get("ssl.key.password"))
    return context
