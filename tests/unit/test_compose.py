"""docker-compose.yml read as Compose interpolates it, and its environment read by the settings class."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_settings import SettingsConfigDict

from processors.agents import load_agents
from processors.hosted import hosted_roles
from processors.pipeline import STAGES
from processors.rungs import ladder
from streams import jars
from streams.clock import SystemClock
from streams.settings import REPOSITORY, Settings

SECRETS = {
    "TRUNKLINE_API__KEY": "an-api-key",
    "TRUNKLINE_CLICKHOUSE__PASSWORD": "a-password",
    "TRUNKLINE_WEBHOOKS__KEY": "a-key",
}
COMPOSE_FILE = REPOSITORY / "docker-compose.yml"
ENV_EXAMPLE = REPOSITORY / "infra" / "docker" / "example.env"

VLLM_CONFIG = "/etc/trunkline/vllm.yaml"
CHAT_TOKENS_MAX = 1900  # above persona, rules, two passages and six exchanges: some 3,000 characters

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<kind>:-|:\?)(?P<rest>[^}]*))?\}")


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """`${NAME:-default}` and `${NAME:?message}`, the forms of the file; KeyError where a required one lacks."""
    if isinstance(value, dict):
        return {key: interpolated(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, environment) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if found := environment.get(match["name"]):
            return found
        if match["kind"] == ":-":
            return match["rest"]
        raise KeyError(match["name"])

    return _VARIABLE.sub(replace, value)


def services(environment: Mapping[str, str] = SECRETS) -> dict[str, dict[str, Any]]:
    """The services by name, with what a container finds in its environment under "environment"."""
    loaded = interpolated(yaml.safe_load(COMPOSE_FILE.read_text())["services"], environment)
    for service in loaded.values():
        given = {
            name: environment.get(name) if item is None else item
            for name, item in service.get("environment", {}).items()
        }
        service["environment"] = {name: str(item) for name, item in given.items() if item is not None}
    return dict(loaded)


def known_variables(model: type[BaseModel] = Settings, prefix: str = "TRUNKLINE_") -> Iterator[str]:
    """Every variable that the settings read."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from known_variables(kind, f"{prefix}{name}__".upper())
        else:
            yield f"{prefix}{name}".upper()


OURS = [name for name, service in services().items() if service["image"].startswith("trunkline") and name != "erp"]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the given variables the only ones of ours."""

    def replace(environment: Mapping[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith("TRUNKLINE_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return replace


@pytest.mark.parametrize("name", OURS)
def test_the_settings_read_the_environment_of_each_service(name: str, only: Any) -> None:
    only(services()[name]["environment"])
    settings = Settings()
    assert settings.kafka.bootstrap_servers == "kafka-1:9092,kafka-2:9092,kafka-3:9092"
    assert (settings.kafka.replication_factor, settings.kafka.min_insync_replicas) == (3, 2)
    assert settings.kafka.partitions == 16


def test_the_same_settings_hold_the_embedded_defaults(only: Any) -> None:
    only({})
    settings = Settings()
    assert settings.kafka.bootstrap_servers == ""
    assert settings.clickhouse.host == ""
    assert settings.kafka.replication_factor == 1
    assert settings.api.host == "127.0.0.1"


def test_the_exposed_gateway_has_a_key_and_finds_clickhouse(only: Any) -> None:
    only(services()["api"]["environment"])
    settings = Settings()
    assert settings.api.host == "0.0.0.0"
    assert settings.api.key is not None
    assert settings.api.key.get_secret_value() == "an-api-key"
    assert (settings.clickhouse.host, settings.clickhouse.password.get_secret_value()) == ("clickhouse", "a-password")
    assert settings.api.twilio_auth_token is None


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_ours_is_a_setting(name: str) -> None:
    listed = yaml.safe_load(COMPOSE_FILE.read_text())["services"][name]["environment"]
    assert {variable for variable in listed if variable.startswith("TRUNKLINE_")} <= set(known_variables())


def test_every_stage_has_a_worker() -> None:
    commands = [service.get("command") for service in services().values()]
    assert [["worker", stage] in commands for stage in STAGES] == [True] * len(STAGES)
    assert ["api"] in commands
    assert ["sink"] in commands
    assert ["relay"] in commands


def test_each_stage_has_two_workers_which_name_themselves_apart() -> None:
    for stage in STAGES:
        service = services()[stage]
        assert (service["deploy"]["replicas"], service["restart"]) == (2, "unless-stopped")
        # One name for both would have each throw the other out of the group.
        assert "TRUNKLINE_WORKER" not in service["environment"]


@pytest.mark.parametrize("secret", SECRETS)
def test_nothing_starts_without_its_secrets(secret: str) -> None:
    with pytest.raises(KeyError, match=secret):
        services({name: value for name, value in SECRETS.items() if name != secret})


def test_no_secret_has_a_value_in_the_files() -> None:
    text = COMPOSE_FILE.read_text() + ENV_EXAMPLE.read_text()
    given = re.findall(r"^[ #]*(\w*(?:KEY|PASSWORD|TOKEN))[:=] *(\S.*)$", text, re.MULTILINE)
    assert [(name, value) for name, value in given if not value.startswith("${")] == []


def test_images_are_pinned_and_kafka_is_the_embedded_one() -> None:
    images = {service["image"] for service in services().values()}
    assert all(re.search(r":v?\d+\.\d+", image) for image in images), images
    assert f"apache/kafka:{jars.KAFKA_VERSION}" in images
    stages = re.findall(r"^FROM (\S+)", (REPOSITORY / "infra/docker/Dockerfile").read_text(), re.MULTILINE)
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", image) for image in stages), stages


def test_ports_are_on_loopback_and_containers_of_ours_are_confined() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8080:8080"], "clickhouse": ["127.0.0.1:8123:8123"]}
    for name in OURS:
        service = services()[name]
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name


def test_the_brokers_differ_only_in_their_names() -> None:
    brokers = [services()[f"kafka-{node}"]["environment"] for node in (1, 2, 3)]
    assert [broker.pop("KAFKA_NODE_ID") for broker in brokers] == ["1", "2", "3"]
    assert [broker.pop("KAFKA_ADVERTISED_LISTENERS") for broker in brokers] == [
        f"PLAINTEXT://kafka-{node}:9092" for node in (1, 2, 3)
    ]
    assert brokers[0] == brokers[1] == brokers[2]


def test_vllm_and_the_stage_that_asks_it_agree(only: Any) -> None:
    chosen = SECRETS | {"TRUNKLINE_ENGINES__LLM": "openai", "TRUNKLINE_ENGINES__LLM_KEY": "an-llm-key"}
    vllm, stage = services(chosen)["vllm"], services(chosen)["llm"]
    only(stage["environment"])
    engines = Settings().engines
    assert engines.llm_endpoints == (f"http://vllm:{vllm['command'][vllm['command'].index('--port') + 1]}/v1",)
    assert engines.llm_key.get_secret_value() == vllm["environment"]["VLLM_API_KEY"] == "an-llm-key"
    assert set(vllm["networks"]) <= set(stage["networks"])
    assert hosted_roles(Settings()) == ("stt", "embeddings", "tts")
    assert [lane.name for lane in ladder(Settings(), "llm", SystemClock()).lanes] == ["llm.0"]


def test_several_vllm_servers_and_a_fallback_reach_the_stage(only: Any) -> None:
    urls = ["http://gpu-1:8000/v1", "http://gpu-2:8000/v1"]
    chosen = SECRETS | {
        "TRUNKLINE_ENGINES__LLM": "openai",
        "TRUNKLINE_ENGINES__LLM_BASE_URLS": json.dumps(urls),
        "TRUNKLINE_ENGINES__LLM_FALLBACK_BASE_URL": "https://models.example.org/v1",
    }
    only(services(chosen)["llm"]["environment"])
    assert Settings().engines.llm_endpoints == tuple(urls)
    names = [lane.name for lane in ladder(Settings(), "llm", SystemClock()).lanes]
    assert names == ["llm.0", "llm.1", "llm.fallback"]


def test_vllms_flags_suit_the_deadlines_and_chats_of_the_stage() -> None:
    service = services()["vllm"]
    (mounted,) = [one for one in service["volumes"] if one.endswith(f":{VLLM_CONFIG}:ro")]
    assert service["command"][1:3] == ["--config", VLLM_CONFIG]
    flags = yaml.safe_load((REPOSITORY / mounted.partition(":")[0]).read_text())
    assert flags["enable-prefix-caching"] is True
    assert flags["enable-chunked-prefill"] is True
    assert flags["stream-interval"] == 1
    assert flags["enable-log-requests"] is False
    assert 0 < flags["gpu-memory-utilization"] < 1
    # As many answers as there may be calls of one gateway would be too many at once for the first word to be in time.
    assert flags["max-num-seqs"] < Settings().api.sessions_max
    agent = load_agents(REPOSITORY / "infra" / "agents")["shop"]
    assert agent.limits.tokens_max + CHAT_TOKENS_MAX < flags["max-num-batched-tokens"] <= flags["max-model-len"]


def test_the_voice_on_a_gpu_is_a_worker_of_tts_on_coquis_environment(only: Any) -> None:
    usual, gpu = services()["tts"], services()["tts-gpu"]
    differing = {"profiles", "image", "build", "environment", "volumes", "deploy"}
    assert {name for name in usual | gpu if usual.get(name) != gpu.get(name)} == differing
    assert gpu["image"].partition(":")[2] == usual["image"].partition(":")[2]
    assert gpu["deploy"]["replicas"] == usual["deploy"]["replicas"]
    lock = gpu["build"]["args"]["LOCK"]
    assert f"$(LOCKS)/{lock}" in (REPOSITORY / "Makefile").read_text()
    dockerfile = (REPOSITORY / gpu["build"]["dockerfile"]).read_text()
    assert re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE) == [("LOCK", "default.lock")]
    only(gpu["environment"])
    settings = Settings()
    assert (settings.engines.tts, settings.engines.device, settings.engines.replicas) == ("coqui", "cuda", 1)
    mounted = dict(one.removesuffix(":ro").split(":") for one in gpu["volumes"])
    assert str(settings.engines.tts_dir) == mounted["./models/xtts_v2"]
    data_dir = re.findall(r"TRUNKLINE_DATA_DIR=(\S+)", dockerfile)[0]
    assert f"{data_dir}/voices" == mounted["./voices"]
    assert ladder(settings, "tts", SystemClock()).lanes[0].name == "tts.0"


def test_secret_files_set_what_the_environment_does_not(tmp_path: Path, only: Any) -> None:
    only({"TRUNKLINE_API__PORT": "9000"})
    (tmp_path / "trunkline_api__key").write_text("from-a-file\n")

    class Mounted(Settings):
        model_config = SettingsConfigDict(secrets_dir=str(tmp_path))

    settings = Mounted()
    assert settings.api.port == 9000
    assert settings.api.key is not None
    assert settings.api.key.get_secret_value() == "from-a-file"
