"""librdkafka's security settings as Faust takes them; what Faust cannot do is refused by name."""

import faust
import pytest

from infra.errors import ConfigError
from stream.join.faust.security import credentials


def test_no_security_is_no_credentials() -> None:
    assert credentials({"socket.timeout.ms": 5_000}) is None


@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "sasl_ssl"])
def test_a_password_goes_over_with_its_mechanism_and_protocol(name: str, protocol: str) -> None:
    settings = {"security.protocol": protocol, name: "SCRAM-SHA-256", "sasl.username": "u", "sasl.password": "p"}
    made = credentials(settings)
    assert isinstance(made, faust.SASLCredentials)
    assert (made.username, made.password) == ("u", "p")
    assert made.mechanism.value == "SCRAM-SHA-256"
    assert made.protocol.value == protocol.upper()
    assert (made.ssl_context is not None) == protocol.endswith("ssl")


def test_ssl_alone_checks_the_broker_against_the_systems_authorities() -> None:
    made = credentials({"security.protocol": "ssl"})
    assert isinstance(made, faust.SSLCredentials)
    assert made.context.verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize(
    "settings",
    [
        {"security.protocol": "sasl_ssl", "sasl.mechanism": "GSSAPI"},
        {"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"},
        {"security.protocol": "nonsense"},
        {"security.protocol": "ssl", "ssl.endpoint.identification.algorithm": "none"},
        {"security.protocol": "ssl", "ssl.ca.pem": "-----"},
    ],
)
def test_what_faust_cannot_do_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="own engine"):
        credentials(settings)
