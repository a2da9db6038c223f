"""What the commands say and ask of a running platform."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.cli import running
from api.errors import OperatorError
from api.supervisor import state_path, write_state
from streams.settings import Settings


def entry(pid: int, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {"pid": pid, "state": state, "restarts": 0, "since": "2026-01-01T00:00:00Z", **more}


@pytest.fixture
def platform(tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path)
    engines = [{"name": f"engine-stt.{number}", **entry(20 + number)} for number in (0, 1)]
    rows = [
        {"name": "stt", **entry(10, spare={"pid": 11, "prepared": True}), "engine": engines[0], "engines": engines},
        {"name": "llm", **entry(12, "failing", problem="llm died 3 times", spare={"pid": None, "prepared": False})},
    ]
    created = psutil.Process(os.getpid()).create_time()
    write_state(state_path(settings), {"pid": os.getpid(), "created": created, "url": "http://x", "components": rows})
    return settings


def test_status_shows_engines_spares_and_what_is_wrong(platform: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert running.status(platform.data_dir, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in reversed(lines) if line}
    assert {"stt", "stt.engine0", "stt.engine1", "llm"} <= shown.keys()
    assert "prepared" in shown["stt"]
    assert "none yet" in shown["llm"]
    assert "llm died 3 times" in lines


def test_status_as_json_has_the_first_engine_and_all(platform: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    running.status(platform.data_dir, as_json=True)
    row = json.loads(capsys.readouterr().out)["components"][0]
    assert row["engine"]["pid"] == 20
    assert [engine["name"] for engine in row["engines"]] == ["engine-stt.0", "engine-stt.1"]


@pytest.mark.parametrize(
    ("component", "names", "followed"),
    [("stt", ["stt"], ["stt"]), ("stt.engine", ["engine-stt.1", "engine-stt.0"], [])],
)
def test_restart_asks_for_the_last_replica_first_and_for_agents_models_where_a_stage_read_them(
    platform: Settings, monkeypatch: pytest.MonkeyPatch, component: str, names: list[str], followed: list[str]
) -> None:
    asked: list[list[str]] = []
    roles: list[str] = []
    monkeypatch.setattr(running, "follow_agents", lambda role, settings: roles.append(role))
    monkeypatch.setattr(running, "ask_restart", lambda settings, names: asked.append(names))
    monkeypatch.setattr(running, "_until_replaced", lambda settings, name, before: {"pid": before["pid"] + 100})
    running.restart(component, platform.data_dir)
    assert (asked, roles) == ([names], followed)


def test_restart_of_what_is_not_there_names_what_is(platform: Settings) -> None:
    with pytest.raises(OperatorError, match=r"no component is called soup; there are stt, stt.engine, llm"):
        running.restart("soup", platform.data_dir)


def test_a_worker_is_called_after_its_host_unless_it_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_WORKER", "")  # so that it is put back afterwards
    monkeypatch.delenv("TRUNKLINE_WORKER")
    running._name_worker()
    assert os.environ["TRUNKLINE_WORKER"] == socket.gethostname()
    monkeypatch.setenv("TRUNKLINE_WORKER", "stt-7")
    running._name_worker()
    assert Settings().worker == "stt-7"
