"""The platform under trial: started as a user starts it, on a data directory of its own, and looked at from outside."""

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from api.errors import OperatorError
from api.supervisor import read_state
from bench.environment import environment as own_environment
from bench.environment import own_keys
from bench.faults.patience import settle
from processors.clickhouse.rows import TABLE_OF_TOPIC
from streams.settings import REPOSITORY, Settings
from streams.topics import CONVERSATION

SUPERVISOR = "supervisor"
_QUESTION_S = 20.0


@dataclass(frozen=True, slots=True)
class Victim:
    """A process of the platform; `name` is the supervisor's for it."""

    name: str
    process: psutil.Process

    def signal(self, number: signal.Signals) -> bool:
        """Sends the signal to this very process; False where it is gone, even if its id is somebody else's by now."""
        try:
            self.process.send_signal(number)
        except psutil.NoSuchProcess:
            return False
        return True


class Platform:
    """One data directory and what runs on it. The API keeps its port when the platform is started again."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.port = _free_port()
        self._environment = own_environment(environment)
        self._place = Settings(data_dir=data_dir, privacy=own_keys(data_dir))

    @property
    def url(self) -> str:
        """The API's base."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> Settings:
        """What reaches the platform's log."""
        environment = self._state()["environment"]
        kafka = self._place.kafka.model_copy(
            update={"bootstrap_servers": environment["TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS"]}
        )
        return self._place.model_copy(update={"kafka": kafka})

    async def up(self) -> None:
        """Starts it and returns when all is ready; raises OperatorError."""
        await self._command("up", "--detach", "--port", str(self.port))

    async def down(self) -> None:
        """Stops it; raises OperatorError."""
        await self._command("down")

    def victim(self, name: str) -> Victim:
        """The process of that name; of several replicas the one that has worked most. Raises OperatorError.

        Names are the supervisor's (`stt`, `engine-stt`, `api`, `clickhouse`, `broker`) and `supervisor` itself.
        """
        state = self._state()
        if name == SUPERVISOR:
            return Victim(name, psutil.Process(state["pid"]))
        found = [
            Victim(entry["name"], psutil.Process(entry["pid"]))
            for entry in state["processes"]
            if entry["name"] == name or entry["name"].removeprefix(f"{name}.").isdecimal()
            if psutil.pid_exists(entry["pid"])
        ]
        if not found:
            raise OperatorError(f"{name}: no such process runs on {self.data_dir}")
        return max(found, key=_work_s)

    def unready(self) -> list[str]:
        """Components and engines that are not at work."""
        state = read_state(self._place)
        if state is None:
            return [SUPERVISOR]
        return [name for name, row in _rows(state["components"]) if row.get("state") != "ready"]

    async def settled(self, within_s: float = 90.0) -> list[str]:
        """Waits until everything is at work; returns what is not by then."""

        async def look() -> list[str]:
            return self.unready()

        return await settle(look, bool, within_s, every_s=0.1)

    async def tickets(self, caller: str) -> list[dict[str, Any]]:
        """That caller's tickets in the demo ERP, by its own interface."""
        async with httpx.AsyncClient(timeout=_QUESTION_S, trust_env=False) as client:
            answer = await client.get(f"{self._state()['environment']['TRUNKLINE_ERP_URL']}/tickets")
            answer.raise_for_status()
            return [ticket for ticket in answer.json() if ticket["caller"] == caller]

    async def rows(self, session_id: str) -> dict[str, int]:
        """How many rows each table of a conversation topic has of the session, as ClickHouse itself says.

        Counted as they lie there, without merging repeats away. Empty while it is away.
        """
        tables = (TABLE_OF_TOPIC[topic] for topic in CONVERSATION)
        counts = (f"SELECT '{table}', count() FROM {table} WHERE session_id = '{session_id}'" for table in tables)
        port = self._state()["environment"]["TRUNKLINE_CLICKHOUSE__HTTP_PORT"]
        async with httpx.AsyncClient(timeout=_QUESTION_S, trust_env=False) as client:
            try:
                answer = await client.post(f"http://127.0.0.1:{port}/", content=" UNION ALL ".join(counts))
            except httpx.TransportError:
                return {}
        if answer.is_error:
            return {}
        lines = (line.split("\t") for line in answer.text.splitlines())
        return {table: int(count) for table, count in lines if int(count)}

    def _state(self) -> Mapping[str, Any]:
        state = read_state(self._place)
        if state is None:
            raise OperatorError(f"no platform is running on {self.data_dir}")
        return state

    async def _command(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "api.cli.main", *arguments, "--data-dir", str(self.data_dir)),
            cwd=REPOSITORY,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise OperatorError(f"trunkline {arguments[0]} failed: {output.decode(errors='replace').strip()}")


@contextlib.asynccontextmanager
async def running_platform(environment: Mapping[str, str] | None = None, keep: bool = False) -> AsyncIterator[Platform]:
    """A whole platform on a temporary directory, stopped and removed afterwards; with `keep` its data stays."""
    # Short, since Unix sockets lie in it.
    data_dir = Path(tempfile.mkdtemp(prefix="tl-faults-"))
    platform = Platform(data_dir, environment)
    try:
        await platform.up()
        yield platform
    finally:
        with contextlib.suppress(OperatorError):
            await platform.down()
        if not keep:
            shutil.rmtree(data_dir, ignore_errors=True)


def _work_s(victim: Victim) -> float:
    """Seconds of CPU so far."""
    try:
        times = victim.process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _rows(components: list[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in components:
        yield row["name"], row
        for engine in row.get("engines") or ([row["engine"]] if row.get("engine") else []):
            yield str(engine.get("name", f"{row['name']}'s engine")), engine


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
