"""The one page of metrics of a supervisor, over a real engine's process, a stage's page and what is left of others."""

import socket
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from api import pages
from streams import ready
from tests.support.engines import running_host, settings_in


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_all_processes_are_on_one_page_each_sample_with_its_own(tmp_path: Path) -> None:
    settings = settings_in(tmp_path).model_copy(update={"metrics_port": free_port()})
    stage = CollectorRegistry()
    Counter("trunkline_stage_emitted", "Events published.", ["stage"], registry=stage).labels("llm").inc(3)
    Histogram("trunkline_engine_ask_seconds", "As an engine has it.", ["role"], registry=stage).labels("llm").observe(1)
    server, _ = start_http_server(0, "127.0.0.1", stage)
    ready.announce(settings, "llm", metrics_port=server.server_port)
    ready.announce(settings, "silent", metrics_port=free_port())
    ready.write_json(settings.run_dir / "gone.json", {"name": "gone", "pid": 1 << 30, "metrics_port": 1})
    ready.write_json(settings.run_dir / "platform.json", {"pid": 1, "components": []})
    pages.serve(settings)
    with running_host(settings, "llm", scripted=True):
        text = httpx.get(f"http://127.0.0.1:{settings.metrics_port}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (emitted,) = [one for one in families["trunkline_stage_emitted"].samples if one.name.endswith("_total")]
    assert (emitted.labels, emitted.value) == ({"stage": "llm", "process": "llm"}, 3)
    assert families["trunkline_stage_emitted"].type == "counter"
    loaded = families["trunkline_engine_load_seconds"].samples
    assert [one.labels for one in loaded] == [{"role": "llm", "process": "engine-llm.0"}]
    # What both have is one family, as the format has it.
    assert text.count("# TYPE trunkline_engine_ask_seconds histogram") == 1
    assert {one.labels["process"] for one in families["trunkline_engine_ask_seconds"].samples} == {"llm"}
    assert {one.labels["process"] for one in families["process_resident_memory_bytes"].samples} == {"engine-llm.0"}
    server.shutdown()


def test_without_a_port_nothing_is_served_and_one_in_use_stops_nothing(tmp_path: Path) -> None:
    pages.serve(settings_in(tmp_path))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        pages.serve(settings_in(tmp_path).model_copy(update={"metrics_port": one.getsockname()[1]}))
