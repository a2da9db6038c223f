"""The whole platform while its processes are killed, restarted and stopped: all comes back, nothing stays behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.supervisor import read_state
from streams.settings import REPOSITORY, Settings

SPARED = ("stt", "intent", "llm", "tts", "clickhouse", "api")
PATIENCE_S = 120.0


class Platform:
    """A running platform of this test's own."""

    def __init__(self, data_dir: Path) -> None:
        self.settings = Settings(data_dir=data_dir)

    def run(self, *arguments: str) -> str:
        """What the command prints; it must succeed."""
        command = [sys.executable, "-m", "api.cli.main", *arguments, "--data-dir", str(self.settings.data_dir)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self) -> dict[str, Any]:
        """The supervisor's, or an empty one while there is none."""
        return dict(read_state(self.settings) or {"components": [], "pid": None})

    def rows(self) -> dict[str, dict[str, Any]]:
        """What `status` shows."""
        return {row["name"]: row for row in self.state()["components"]}

    def stands(self) -> bool:
        """Whether everything is at work and every spare prepared."""
        rows = self.rows().values()
        parts = [*rows, *(engine for row in rows for engine in row.get("engines", ()))]
        spares = [row["spare"]["prepared"] for row in rows if "spare" in row]
        return len(spares) == len(SPARED) and all(spares) and all(part["state"] == "ready" for part in parts)

    def processes(self) -> list[psutil.Process]:
        """Every process that has this data directory in its environment or its command."""
        mine = str(self.settings.data_dir)
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                if process.environ().get("TRUNKLINE_DATA_DIR") == mine or mine in process.cmdline():
                    found.append(process)
            except psutil.Error:
                continue
        return found


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for it."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """Started once; the tests below go through its life in order."""
    data_dir = Path(tempfile.mkdtemp(prefix="trk-"))
    one = Platform(data_dir)
    try:
        one.run("up", "--detach", "--port", "0")
        yield one
    finally:
        for process in one.processes():
            process.kill()
        shutil.rmtree(data_dir, ignore_errors=True)


def test_each_process_that_is_killed_is_replaced_by_its_spare(platform: Platform) -> None:
    for component in (*SPARED, *SPARED):
        until(platform.stands, "everything stands by")
        before = platform.rows()[component]
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: platform.rows()[component]["restarts"] == before["restarts"] + 1, component)  # noqa: B023
        until(lambda: platform.rows()[component]["state"] == "ready", component)  # noqa: B023
        assert platform.rows()[component]["pid"] == before["spare"]["pid"]
    assert httpx.get(f"{platform.state()['url']}/readyz").json()["status"] == "ready"


def test_a_stopped_worker_is_replaced(platform: Platform) -> None:
    until(platform.stands, "everything stands by")
    before = platform.rows()["tts"]
    os.kill(before["pid"], signal.SIGSTOP)
    until(lambda: platform.rows()["tts"]["pid"] == before["spare"]["pid"], "replaced")
    until(platform.stands, "ready again")
    assert not psutil.pid_exists(before["pid"])


@pytest.mark.parametrize(
    ("component", "names"), [("stt", ["stt"]), ("api", ["api"]), ("tts.engine", ["engine-tts.1", "engine-tts.0"])]
)
def test_restart_replaces_one_after_another_and_says_so(platform: Platform, component: str, names: list[str]) -> None:
    until(platform.stands, "everything stands by")
    said = platform.run("restart", component)
    assert [line.partition(":")[0] for line in said.splitlines()] == names
    assert said.count("ready after") == len(names)


def test_a_killed_supervisor_comes_back_with_its_platform_at_the_same_address(platform: Platform) -> None:
    before = platform.state()
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: platform.state()["pid"] not in (None, before["pid"]), "a new supervisor")
    until(lambda: bool(platform.state().get("ready")), "everything is up again")
    after = platform.state()
    assert after["url"] == before["url"]
    assert after["guardian_pid"] == before["guardian_pid"]
    assert httpx.get(f"{after['url']}/healthz").status_code == 200


def test_down_leaves_nothing_behind(platform: Platform) -> None:
    assert len(platform.processes()) > len(SPARED)
    platform.run("down")
    until(lambda: platform.processes() == [], "nothing is left")


def test_a_killed_up_leaves_nothing_behind(platform: Platform) -> None:
    platform.run("up", "--detach", "--port", "0")
    os.kill(platform.state()["guardian_pid"], signal.SIGKILL)
    until(lambda: platform.processes() == [], "nothing is left")
    assert json.loads((platform.settings.run_dir / "platform.json").read_bytes())["ready"]
