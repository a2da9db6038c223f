"""One place says how to reach the cluster."""

import pytest
from pydantic import SecretStr

from streams.client import LogError, client_config
from streams.settings import KafkaSettings, Settings


def test_without_bootstrap_servers_the_setting_is_named() -> None:
    with pytest.raises(LogError, match="TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS"):
        client_config(Settings(), "stt")


def test_the_embedded_profile_is_plain() -> None:
    config = client_config(Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:9092")), "stt")
    assert config["bootstrap.servers"] == "127.0.0.1:9092"
    assert config["client.id"] == "stt"
    assert not [name for name in config if name.startswith(("sasl.", "ssl."))]


def test_production_has_sasl_over_tls() -> None:
    kafka = KafkaSettings(
        bootstrap_servers="a:9093,b:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="trunkline",
        sasl_password=SecretStr("secret"),
        ssl_ca_location="/etc/ca.pem",
    )
    config = client_config(Settings(kafka=kafka), "stt")
    assert config["security.protocol"] == "SASL_SSL"
    assert (config["sasl.mechanism"], config["sasl.username"]) == ("PLAIN", "trunkline")
    assert (config["sasl.password"], config["ssl.ca.location"]) == ("secret", "/etc/ca.pem")
