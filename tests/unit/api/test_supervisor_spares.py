"""The supervisor with real processes that have spares, hang, are stopped, cannot work, or are restarted in turn."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from api import child as children
from api.child import Child
from api.errors import OperatorError
from api.supervisor import Process, Supervisor, ask_restart, failing, read_state
from streams.clock import SystemClock
from streams.settings import REPOSITORY, Settings
from tests.unit.api.test_supervisor import is_gone, process, rows, running, until

MODULE = "tests.support.supervised"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def kept(settings: Settings, name: str, *, component: str = "", spare: bool = False, **changes: Any) -> Process:
    command = (sys.executable, "-m", MODULE, str(settings.run_dir), name)
    one = process(settings, name, command, component=component)
    if spare:
        changes["spare"] = (sys.executable, "-m", "streams.standby", *command[2:])
    return replace(one, **changes)


def supervisor(settings: Settings, *parts: Process) -> Supervisor:
    return Supervisor(settings, parts, spare_after_s=0.02, backoff_s=0.05)


def has_spare(settings: Settings, name: str) -> bool:
    return bool(rows(settings)[name]["spare"]["prepared"])


async def back(settings: Settings, name: str, restarts: int) -> None:
    await until(lambda: rows(settings)[name]["restarts"] == restarts and rows(settings)[name]["state"] == "ready")


def diary(settings: Settings) -> list[tuple[str, int, str]]:
    lines = (settings.run_dir / "diary").read_text().splitlines()
    return [(name, int(pid), what) for name, pid, what in (line.split() for line in lines)]


async def test_a_spare_takes_the_place_of_one_that_was_killed_again_and_again(settings: Settings) -> None:
    async with running(supervisor(settings, kept(settings, "stt", spare=True))):
        for restarts in (1, 2, 3):
            await until(lambda: has_spare(settings, "stt"))
            before = rows(settings)["stt"]
            assert ("stt", before["spare"]["pid"], "ready") not in diary(settings)
            os.kill(before["pid"], signal.SIGKILL)
            await back(settings, "stt", restarts)
            after = rows(settings)["stt"]
            assert (after["pid"], after["restarts"]) == (before["spare"]["pid"], restarts)
        last = [after["pid"]]
    assert all(is_gone(pid) for pid in last)


async def test_a_spare_that_dies_is_replaced(settings: Settings) -> None:
    async with running(supervisor(settings, kept(settings, "stt", spare=True))):
        await until(lambda: has_spare(settings, "stt"))
        before = rows(settings)["stt"]
        os.kill(before["spare"]["pid"], signal.SIGKILL)
        await until(lambda: has_spare(settings, "stt") and rows(settings)["stt"]["spare"] != before["spare"])
        assert rows(settings)["stt"]["pid"] == before["pid"]


SUPERVISE = """
import asyncio
from api.supervisor import Supervisor
from streams.settings import Settings
from tests.unit.api.test_supervisor_spares import kept

settings = Settings()
asyncio.run(Supervisor(settings, [kept(settings, "stt", spare=True)], spare_after_s=0.02).run())
"""


def test_a_supervisor_killed_with_9_takes_its_spares_along(settings: Settings) -> None:
    environment = {**os.environ, "TRUNKLINE_DATA_DIR": str(settings.data_dir)}

    async def spare_is_there() -> None:
        await until(lambda: read_state(settings) is not None and has_spare(settings, "stt"))

    with subprocess.Popen([sys.executable, "-c", SUPERVISE], env=environment, cwd=REPOSITORY) as one:
        asyncio.run(spare_is_there())
        below = [child.pid for child in psutil.Process(one.pid).children(recursive=True)]
        assert len(below) == 2
        one.kill()
    asyncio.run(until(lambda: all(is_gone(pid) for pid in below)))


def test_a_spare_ends_when_the_other_end_of_its_socket_closes(settings: Settings) -> None:
    ours, theirs = socket.socketpair()
    settings.run_dir.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "streams.standby", MODULE, str(settings.run_dir), "stt"],
        env={**os.environ, "TRUNKLINE_LIFELINE_FD": str(theirs.fileno()), "TRUNKLINE_SPARE": "1"},
        pass_fds=[theirs.fileno()],
        cwd=REPOSITORY,
    ) as spare:
        theirs.close()
        while b"p" not in ours.recv(100):
            pass
        assert spare.poll() is None
        ours.close()
        assert spare.wait(timeout=20) == 0
    assert not (settings.run_dir / "diary").exists()


async def test_a_stopped_process_is_replaced_and_never_wakes(settings: Settings) -> None:
    async with running(supervisor(settings, kept(settings, "stt", spare=True), kept(settings, "tts"))):
        await until(lambda: has_spare(settings, "stt"))
        before = rows(settings)
        os.kill(before["stt"]["pid"], signal.SIGSTOP)
        await back(settings, "stt", 1)
        assert is_gone(before["stt"]["pid"])
        assert rows(settings)["stt"]["pid"] == before["stt"]["spare"]["pid"]
        assert rows(settings)["tts"]["pid"] == before["tts"]["pid"]


async def test_a_process_whose_loop_stands_is_replaced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "SILENT_S", 0.6)
    async with running(supervisor(settings, kept(settings, "stt"))):
        before = rows(settings)["stt"]
        (settings.run_dir / "stt.hang").touch()
        await back(settings, "stt", 1)
        assert is_gone(before["pid"])


class SteppedClock(SystemClock):
    """A clock that can be put forward."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


BEAT_ONCE = """
import asyncio, time
from streams import standby

async def work():
    standby.show_life()
    time.sleep(600)

asyncio.run(work())
"""


async def test_silence_is_judged_by_the_machines_load_and_forgiven_to_all_after_a_pause_of_our_own() -> None:
    clock = SteppedClock()
    silent = await Child.start((sys.executable, "-c", BEAT_ONCE), clock, environment=os.environ, output=2)
    try:
        await until(lambda: silent.silent_s is not None)
        clock.ahead_s = 3 * children.SILENT_S
        assert "its event loop has not turned" in silent.trouble(1.0)
        assert silent.trouble(6.0) == ""
        silent.forgive()
        assert silent.trouble(1.0) == ""
    finally:
        silent.kill()
        await silent.wait()


async def test_one_that_never_showed_a_sign_of_life_is_not_judged_by_it() -> None:
    clock = SteppedClock()
    mute = await Child.start(
        (sys.executable, "-S", "-c", "import time; time.sleep(600)"), clock, environment={}, output=2
    )
    try:
        clock.ahead_s = 1000.0
        assert mute.trouble(1.0) == ""
    finally:
        mute.kill()
        await mute.wait()


async def test_replicas_are_restarted_in_turn_so_that_one_always_serves(settings: Settings) -> None:
    engines = [kept(settings, f"engine-x.{number}", component="x") for number in (0, 1)]
    async with running(supervisor(settings, *engines)):
        before = {entry["name"]: entry["pid"] for entry in rows(settings)["x"]["engines"]}
        ask_restart(settings, ["engine-x.1", "engine-x.0"])
        await until(lambda: all(entry["restarts"] == 1 for entry in rows(settings)["x"]["engines"]))
        await until(lambda: all(entry["state"] == "ready" for entry in rows(settings)["x"]["engines"]))
        told = [(name, pid == before[name], what) for name, pid, what in diary(settings)][2:]
    assert told == [
        ("engine-x.1", True, "SIGTERM"),
        ("engine-x.1", True, "ended"),
        ("engine-x.1", False, "ready"),
        ("engine-x.0", True, "SIGTERM"),
        ("engine-x.0", True, "ended"),
        ("engine-x.0", False, "ready"),
    ]


async def test_a_restart_takes_a_spare_of_today_and_counts_as_no_death(settings: Settings) -> None:
    async with running(supervisor(settings, kept(settings, "stt", spare=True))):
        for restarts in range(1, 5):
            await until(lambda: has_spare(settings, "stt"))
            before = rows(settings)["stt"]
            ask_restart(settings, ["stt"])
            await back(settings, "stt", restarts)
            assert rows(settings)["stt"]["pid"] not in (before["pid"], before["spare"]["pid"])
        ends = [what for name, pid, what in diary(settings) if what in ("ready", "SIGTERM", "ended")]
    assert ends[:6] == ["ready", "SIGTERM", "ended", "ready", "SIGTERM", "ended"]


async def test_a_restart_is_given_up_where_what_should_come_cannot_work(settings: Settings) -> None:
    async with running(supervisor(settings, kept(settings, "stt", spare=True))):
        await until(lambda: has_spare(settings, "stt"))
        before = rows(settings)["stt"]
        (settings.run_dir / "stt.unprepared").touch()
        ask_restart(settings, ["stt"])
        await until(lambda: "problem" in rows(settings)["stt"])
        after = rows(settings)["stt"]
        assert (after["pid"], after["state"], after["restarts"]) == (before["pid"], "ready", 0)
        assert "was not restarted" in after["problem"]
        assert "stt cannot be prepared" in after["problem"]
        (settings.run_dir / "stt.unprepared").unlink()
        ask_restart(settings, ["stt"])
        await back(settings, "stt", 1)
        assert "problem" not in rows(settings)["stt"]


async def test_nobody_is_refused_while_what_listens_is_killed_or_restarted(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()[:2]
    api = kept(settings, "api", spare=True, overlaps=True, listens=address, stop_signal=signal.SIGINT)

    async def asked() -> int:
        reader, writer = await asyncio.open_connection(*address)
        pid = int(await reader.read())
        writer.close()
        return pid

    async with running(supervisor(settings, api)):
        await until(lambda: has_spare(settings, "api"))
        first = rows(settings)["api"]["pid"]
        assert await asked() == first
        os.kill(first, signal.SIGKILL)
        await until(lambda: is_gone(first))
        second = await asked()
        assert second != first
        await until(lambda: has_spare(settings, "api"))
        ask_restart(settings, ["api"])
        answers = set()
        while not is_gone(second):
            answers.add(await asked())
        answers.add(await asked())
        third = rows(settings)["api"]["pid"]
        assert {second, third} <= answers
        # The next one is at work before the last one is told to go.
        told = diary(settings)
        assert told.index(("api", third, "ready")) < told.index(("api", second, "SIGTERM"))
    assert diary(settings)[-2:] == [("api", third, "SIGINT"), ("api", third, "ended")]


async def test_a_configuration_that_cannot_work_fails_at_once_and_is_explained(settings: Settings) -> None:
    settings.run_dir.mkdir()
    (settings.run_dir / "engine-stt.0.exit").write_text(str(os.EX_CONFIG))
    with pytest.raises(OperatorError) as caught:
        await supervisor(settings, kept(settings, "engine-stt.0", component="stt")).run()
    message = str(caught.value)
    assert "engine-stt.0 cannot work with its configuration (exit code 78)" in message
    assert "will not work" in message
    log = settings.log_dir / "engine-stt.0.log"
    assert log.read_text().count("will not work") == 1


async def test_one_that_can_no_longer_work_is_failing_until_it_is_asked_to_restart(settings: Settings) -> None:
    async with running(supervisor(settings, kept(settings, "llm"))):
        (settings.run_dir / "llm.exit").write_text(str(os.EX_CONFIG))
        os.kill(rows(settings)["llm"]["pid"], signal.SIGKILL)
        await until(lambda: rows(settings)["llm"]["state"] == "failing")
        assert "cannot work with its configuration" in failing(settings)["llm"]
        (settings.run_dir / "llm.exit").unlink()
        ask_restart(settings, ["llm"])
        await until(lambda: rows(settings)["llm"]["state"] == "ready")
        assert failing(settings) == {}
        assert "problem" not in rows(settings)["llm"]


async def test_one_without_signs_of_life_is_asked_whether_it_still_works(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.supervisor._PROBE_S", 0.02)
    answers = True

    async def asked() -> bool:
        return answers

    async with running(supervisor(settings, kept(settings, "broker", answers=asked))):
        before = rows(settings)["broker"]
        answers = False
        await until(lambda: rows(settings)["broker"]["restarts"] >= 1)
        answers = True
        await until(lambda: rows(settings)["broker"]["state"] == "ready")
        assert is_gone(before["pid"])


async def test_what_comes_last_is_not_waited_for_and_keeps_nothing_down(settings: Settings) -> None:
    settings.run_dir.mkdir()
    (settings.run_dir / "engine-x.1.exit").write_text("3")
    parts = (kept(settings, "x"), kept(settings, "engine-x.1", component="x", last=True))
    async with running(supervisor(settings, *parts)):
        assert rows(settings)["x"]["state"] == "ready"
        await until(lambda: rows(settings)["x"]["engine"]["state"] == "failing")
        (settings.run_dir / "engine-x.1.exit").unlink()
        await until(lambda: rows(settings)["x"]["engine"]["state"] == "ready")
