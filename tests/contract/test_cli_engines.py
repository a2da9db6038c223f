"""`trunkline engines` as its user has it: a stage's page of metrics, a breaker that opened, and a real log."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
from prometheus_client import start_http_server

from api.supervisor import state_path, write_state
from processors.breaker import Breaker
from processors.health import Health
from processors.rungs import reporter
from streams import ready
from streams.clock import SystemClock
from streams.producer import LogProducer
from streams.settings import REPOSITORY, Settings
from tests.support.kafka import TestBroker


@pytest.fixture
def worker(tmp_path: Path) -> Settings:
    """A stage's worker on this machine, as its supervisor's state and its ready file show it."""
    settings = Settings(data_dir=tmp_path)
    server, _ = start_http_server(0, "127.0.0.1")
    ready.announce(settings, "llm", metrics_port=server.server_port)
    created = psutil.Process(os.getpid()).create_time()
    rows = [{"name": "llm", "state": "ready"}]
    write_state(state_path(settings, "worker-llm"), {"pid": os.getpid(), "created": created, "components": rows})
    return settings


def run(*arguments: str, data_dir: Path, servers: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    given = {**kept, "TRUNKLINE_DATA_DIR": str(data_dir), "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": servers}
    command = [sys.executable, "-m", "api.cli.main", "engines", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=given, cwd=REPOSITORY, timeout=300)


async def opened(settings: Settings, engine: str) -> None:
    """A breaker that opens, and says so on voice.health."""
    producer = LogProducer(settings, "test-cli-engines")
    health = Health(producer.publish, "llm", uuid.uuid4().hex, "demo", SystemClock())
    Breaker(engine, SystemClock(), reporter(health)).failed("crashed", gone=True)
    await producer.flush()
    await producer.close()


def test_an_engine_that_was_left_out_is_shown_with_the_reason(worker: Settings, kafka: TestBroker) -> None:
    engine = f"llm.{uuid.uuid4().hex}"
    asyncio.run(opened(kafka.settings(), engine))
    done = run("--json", data_dir=worker.data_dir, servers=kafka.bootstrap_servers)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = [row for row in map(json.loads, done.stdout.splitlines()) if row["engine"] == engine]
    assert (row["stage"], row["breaker"], row["trouble"]["reason"]) == ("llm", "open", "crashed")
    printed = run(data_dir=worker.data_dir, servers=kafka.bootstrap_servers).stdout
    assert f"llm: {engine} was left out at " in printed


def test_a_log_that_cannot_be_read_hides_nothing_else(worker: Settings) -> None:
    engine = f"llm.{uuid.uuid4().hex}"
    Breaker(engine, SystemClock())
    done = run(data_dir=worker.data_dir, servers="127.0.0.1:1")
    assert done.returncode == 0
    assert engine in done.stdout
    assert "the log cannot be read" in done.stderr
