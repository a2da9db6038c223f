"""The supervisor with real child processes: they come up in order, come back when killed, and never stay behind."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.errors import OperatorError
from api.supervisor import Process, Step, Supervisor, end_leftovers, hold, read_state, rotate, state_path
from streams import ready
from streams.settings import REPOSITORY, Settings

SERVE = """
import json, os, pathlib, sys, time
run, name = sys.argv[1:3]
path = pathlib.Path(run, name + ".json")
path.with_suffix(".new").write_text(json.dumps({"pid": os.getpid()}))
path.with_suffix(".new").replace(path)
time.sleep(600)
"""


def child(settings: Settings, name: str, *, component: str = "", needs: set[str] | None = None) -> Process:
    command = (sys.executable, "-S", "-c", SERVE, str(settings.run_dir), name)
    return process(settings, name, command, component=component, needs=needs)


def process(
    settings: Settings, name: str, command: tuple[str, ...], *, component: str = "", needs: set[str] | None = None
) -> Process:
    async def is_ready(pid: int) -> bool:
        facts = ready.read(settings, name)
        return facts is not None and facts["pid"] == pid

    needed = frozenset(needs or ())
    return Process(
        name=name,
        component=component or name,
        command=lambda: command,
        is_ready=is_ready,
        needs=needed,
        stop_within_s=5,
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@contextlib.asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[asyncio.Task[None]]:
    is_up = asyncio.Event()
    task = asyncio.create_task(supervisor.run(when_ready=is_up.set))
    waiting = asyncio.create_task(is_up.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield task
    finally:
        waiting.cancel()
        supervisor.stop()
        await task


def rows(settings: Settings) -> dict[str, dict[str, Any]]:
    state = json.loads(state_path(settings).read_bytes())
    return {row["name"]: row for row in state["components"]}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what changes is another process
            await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_parts_come_up_after_what_they_need_and_are_reported(settings: Settings) -> None:
    order: list[str] = []

    async def provision() -> None:
        order.append("provisioning")

    parts: list[Process | Step] = [
        child(settings, "worker", needs={"topics", "engine-x"}),
        Step("topics", provision, frozenset({"broker"})),
        child(settings, "engine-x", component="worker"),
        child(settings, "broker"),
    ]
    async with running(Supervisor(settings, parts, report=lambda name, seconds: order.append(name))):
        assert order.index("broker") < order.index("provisioning") < order.index("topics") < order.index("worker")
        assert order.index("engine-x") < order.index("worker")
        state = read_state(settings)
        assert state is not None
        assert state["ready"] is True
        worker = rows(settings)["worker"]
        assert (worker["state"], worker["restarts"], worker["engine"]["state"]) == ("ready", 0, "ready")
        assert worker["pid"] != worker["engine"]["pid"]
        pids = [worker["pid"], worker["engine"]["pid"], rows(settings)["broker"]["pid"]]
    assert all(is_gone(pid) for pid in pids)
    assert {row["state"] for row in rows(settings).values()} == {"stopped"}
    assert ready.read(settings, "worker") is None


async def test_a_killed_process_comes_back_at_once(settings: Settings) -> None:
    async with running(Supervisor(settings, [child(settings, "stt"), child(settings, "tts")])):
        before = rows(settings)
        os.kill(before["stt"]["pid"], signal.SIGKILL)
        restarts = before["stt"]["restarts"] + 1
        await until(lambda: (row := rows(settings)["stt"])["restarts"] == restarts and row["state"] == "ready")
        after = rows(settings)
        assert after["stt"]["pid"] != before["stt"]["pid"]
        assert after["tts"] == before["tts"]


async def test_what_keeps_dying_is_failing_and_is_still_tried(settings: Settings) -> None:
    marker = settings.data_dir / "broken"
    script = f"import os, sys\nif os.path.exists({str(marker)!r}): sys.exit(3)\n" + SERVE
    command = (sys.executable, "-S", "-c", script, str(settings.run_dir), "llm")
    supervisor = Supervisor(settings, [process(settings, "llm", command)], backoff_s=0.05)
    async with running(supervisor):
        marker.touch()
        os.kill(rows(settings)["llm"]["pid"], signal.SIGKILL)
        await until(lambda: rows(settings)["llm"]["state"] == "failing")
        marker.unlink()
        await until(lambda: rows(settings)["llm"]["state"] == "ready")


async def test_what_cannot_start_stops_everything_and_is_named_with_its_log(settings: Settings) -> None:
    command = (sys.executable, "-c", "print('the model is missing'); raise SystemExit(7)")
    parts = [child(settings, "broker"), process(settings, "tts", command)]
    with pytest.raises(OperatorError) as caught:
        await Supervisor(settings, parts).run()
    message = str(caught.value)
    assert "tts died 3 times" in message
    assert "exit code 7" in message
    assert str(settings.log_dir / "tts.log") in message
    assert "the model is missing" in message
    assert {row["state"] for row in rows(settings).values()} == {"stopped"}
    assert json.loads(state_path(settings).read_bytes())["error"] == message


async def test_a_process_that_never_gets_ready_is_ended_and_tried_again(settings: Settings) -> None:
    async def never(pid: int) -> bool:
        return False

    command = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
    silent = Process(name="stt", component="stt", command=lambda: command, is_ready=never, ready_within_s=0.2)
    with pytest.raises(OperatorError, match="stt died 3 times while starting"):
        await Supervisor(settings, [silent]).run()


async def test_one_that_ignores_being_asked_is_killed(settings: Settings) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVE
    command = (sys.executable, "-S", "-c", script, str(settings.run_dir), "api")
    stubborn = process(settings, "api", command)
    impatient = Process(
        name="api", component="api", command=stubborn.command, is_ready=stubborn.is_ready, stop_within_s=0.2
    )
    async with running(Supervisor(settings, [impatient])):
        pid = rows(settings)["api"]["pid"]
    assert is_gone(pid)


def test_a_data_directory_has_one_supervisor(settings: Settings) -> None:
    script = "import sys; from api.supervisor import hold; from streams.settings import Settings\n" + (
        "with hold(Settings()): print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "TRUNKLINE_DATA_DIR": str(settings.data_dir)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=REPOSITORY
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(OperatorError, match=rf"already running .*pid {holder.pid}.*trunkline down"), hold(settings):
            pass
        holder.kill()
        holder.wait()
    with hold(settings):
        pass


SUPERVISE = """
import asyncio, sys
from api.supervisor import Supervisor
from streams.settings import Settings
from tests.unit.api.test_supervisor import child, process

settings = Settings()
parts = [child(settings, "stt"), child(settings, "tts")]
watch = sys.argv[1] == "watch"
asyncio.run(Supervisor(settings, parts, watch_children=watch).run(when_ready=lambda: print("up", flush=True)))
"""


@pytest.mark.parametrize("how", ["parent-death signal", "watch"])
def test_a_supervisor_killed_with_9_leaves_no_orphans(settings: Settings, how: str) -> None:
    environment = {**os.environ, "TRUNKLINE_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-c", SUPERVISE, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=REPOSITORY) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"up\n"
        below = [one.pid for one in psutil.Process(supervisor.pid).children(recursive=True)]
        assert len(below) == (4 if how == "watch" else 2)
        supervisor.kill()
    asyncio.run(until(lambda: all(is_gone(pid) for pid in below)))
    assert read_state(settings) is None


def test_sigterm_stops_in_order(settings: Settings) -> None:
    environment = {**os.environ, "TRUNKLINE_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-c", SUPERVISE, ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=REPOSITORY) as supervisor:
        assert supervisor.stdout is not None
        supervisor.stdout.readline()
        supervisor.terminate()
        assert supervisor.wait(timeout=20) == 0
    assert {row["state"] for row in rows(settings).values()} == {"stopped"}


def test_leftovers_are_ended_but_nobody_else(settings: Settings) -> None:
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)", "mine"]
    other = [*command[:-1], "other"]
    with subprocess.Popen(command) as left, subprocess.Popen(other) as stranger:
        created = psutil.Process(left.pid).create_time()
        ready.write_json(
            state_path(settings),
            {
                "processes": [
                    {"name": "stt", "pid": left.pid, "created": created, "command": command},
                    {"name": "llm", "pid": stranger.pid, "created": created, "command": command},
                    {"name": "tts", "pid": stranger.pid, "created": created - 1000, "command": other},
                ]
            },
        )
        try:
            assert asyncio.run(end_leftovers(settings)) == ["stt"]
            assert left.wait(timeout=10) == -signal.SIGTERM
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_logs_of_earlier_runs_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "stt.log"
    for number in range(5):
        rotate(log)
        log.write_text(str(number))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "stt.log": "4",
        "stt.log.1": "3",
        "stt.log.2": "2",
        "stt.log.3": "1",
    }


def test_a_state_file_of_a_platform_that_is_gone_is_not_taken_for_one(settings: Settings) -> None:
    ready.write_json(state_path(settings), {"pid": os.getpid(), "created": time.time() - 10_000})
    assert read_state(settings) is None
