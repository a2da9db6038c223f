"""What the embedded platform consists of, and where its parts listen."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from api.errors import OperatorError
from api.platform import SPREAD, api_url, embedded, environment, lay_out, worker_parts
from api.supervisor import Process
from streams.settings import Settings


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(data_dir=tmp_path, **{"api": {"port": 0}, **changes})


def test_every_component_of_status_is_there_with_its_engine(tmp_path: Path) -> None:
    parts = embedded(lay_out(settings(tmp_path)), lambda line: None)
    components = {part.component for part in parts if isinstance(part, Process)}
    assert components == {"broker", "stt", "intent", "llm", "tts", "clickhouse", "webhooks", "api", "erp"}
    engines = {part.name: part.component for part in parts if isinstance(part, Process) and "engine" in part.name}
    assert engines == {
        f"engine-{role}.{replica}": stage
        for role, stage in {"stt": "stt", "embeddings": "intent", "llm": "llm", "tts": "tts"}.items()
        for replica in (0, 1)
    }


def test_stages_start_once_their_topics_and_engines_are_there(tmp_path: Path) -> None:
    needs = {part.name: part.needs for part in embedded(lay_out(settings(tmp_path)), lambda line: None)}
    assert needs["topics"] == {"broker"}
    assert needs["llm"] == {"topics", "engine-llm.0", "engine-embeddings.0"}
    assert needs["engine-stt.0"] == frozenset()
    known = set(needs)
    assert all(need in known for group in needs.values() for need in group)


def test_a_cluster_and_an_erp_of_ones_own_are_used_as_they_are(tmp_path: Path) -> None:
    given = settings(tmp_path, kafka={"bootstrap_servers": "kafka:9092"}, erp_url="http://erp:1")
    layout = lay_out(given)
    names = {part.name for part in embedded(layout, lambda line: None)}
    assert names.isdisjoint({"broker", "erp"})
    assert layout.settings.kafka.bootstrap_servers == "kafka:9092"
    assert {part.name: part.needs for part in embedded(layout, lambda line: None)}["topics"] == frozenset()


@pytest.mark.parametrize(
    ("changes", "spread"),
    [
        ({}, str(SPREAD)),
        ({"api": {"port": 0, "spread": 5}}, "5"),
        ({"kafka": {"bootstrap_servers": "kafka:9092"}}, None),
    ],
)
def test_calls_begin_in_few_partitions_where_each_stage_has_one_worker(
    tmp_path: Path, changes: dict[str, Any], spread: str | None
) -> None:
    parts = {part.name: part for part in embedded(lay_out(settings(tmp_path, **changes)), lambda line: None)}
    gateway = parts["api"]
    assert isinstance(gateway, Process)
    assert gateway.environment.get("TRUNKLINE_API__SPREAD") == spread


def test_a_remote_language_model_has_no_process_here(tmp_path: Path) -> None:
    layout = lay_out(settings(tmp_path, engines={"llm": "openai", "llm_base_url": "http://vllm:8000/v1"}))
    parts = {part.name: part for part in embedded(layout, lambda line: None)}
    assert "engine-llm.0" not in parts
    assert parts["llm"].needs == {"topics", "engine-embeddings.0"}


def test_readers_may_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_SECRET_REST_TOKEN", "token")
    given = {"adapter_urls": {"rest": "http://crm:1"}}
    here = {part.name for part in embedded(lay_out(settings(tmp_path, **given)), lambda line: None)}
    there = {part.name for part in embedded(lay_out(settings(tmp_path, **given, readers=False)), lambda line: None)}
    assert here - there == {"clickhouse", "webhooks", "crm"}


def test_a_worker_brings_its_own_engines(tmp_path: Path) -> None:
    one = {"kafka": {"bootstrap_servers": "kafka:9092"}, "engines": {"replicas": 1}}
    parts = worker_parts(settings(tmp_path, **one), "llm")
    assert [part.name for part in parts] == ["topics", "engine-embeddings.0", "engine-llm.0", "llm"]
    assert {part.component for part in parts if isinstance(part, Process)} == {"llm"}


def test_ports_are_kept_for_the_data_directory_while_they_are_free(tmp_path: Path) -> None:
    first = lay_out(settings(tmp_path)).settings
    assert lay_out(settings(tmp_path)).settings.kafka == first.kafka
    port = json.loads((tmp_path / "ports.json").read_text())["kafka"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert lay_out(settings(tmp_path)).settings.kafka != first.kafka
    assert lay_out(settings(tmp_path)).settings.erp_url == first.erp_url


def test_a_port_in_use_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OperatorError, match=rf"port {port} on 127.0.0.1 is in use by .*--port"):
            lay_out(settings(tmp_path, api={"port": port}))


def test_processes_get_every_address_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = settings(Path("data"), api={"port": 0, "key": "hush"}, kafka={"sasl_password": "hush"})
    layout = lay_out(given)
    handed = environment(layout.settings)
    assert handed["TRUNKLINE_DATA_DIR"] == str(tmp_path / "data")
    assert handed["TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS"].startswith("127.0.0.1:")
    assert handed["TRUNKLINE_ERP_URL"].startswith("http://127.0.0.1:")
    assert api_url(layout.settings) == f"http://127.0.0.1:{handed['TRUNKLINE_API__PORT']}"
    assert "hush" not in json.dumps(handed)
    assert layout.settings.run_dir == tmp_path / "data" / "run"


def test_an_api_open_to_others_is_reached_over_loopback_here(tmp_path: Path) -> None:
    assert api_url(settings(tmp_path, api={"host": "0.0.0.0", "port": 8080})) == "http://127.0.0.1:8080"
