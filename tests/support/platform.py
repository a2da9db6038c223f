"""The whole platform as its user has it, in a data directory of its own."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from streams.settings import REPOSITORY, KafkaSettings, PrivacySettings, Settings


class Platform:
    """A running platform and its command line."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self._environment = environment
        self.url = ""
        self.privacy = PrivacySettings(keys_dir=data_dir / "keys")
        self.settings = Settings(data_dir=data_dir, privacy=self.privacy)

    def run(self, *arguments: str, timeout_s: float = 120) -> str:
        """What the command prints; it must succeed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
        # What is tried here must not depend on what else the machine is doing.
        kept |= {"TRUNKLINE_LOAD__REFUSE": "false", **self._environment}
        done = subprocess.run(
            [sys.executable, "-m", "api.cli.main", *arguments, "--data-dir", str(self.data_dir)],
            capture_output=True,
            text=True,
            env=kept,
            cwd=REPOSITORY,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """The command's JSON lines."""
        return [json.loads(line) for line in self.run(*arguments, "--json").splitlines()]

    def up(self) -> None:
        """Starts it on a free port."""
        self.run("up", "--detach", "--port", "0", timeout_s=900)
        (status,) = self.rows("status")
        self.url = status["url"]
        self.settings = Settings(
            data_dir=self.data_dir,
            privacy=self.privacy,
            kafka=KafkaSettings(bootstrap_servers=status["bootstrap_servers"]),
        )

    def number(self, query: str) -> int:
        """The answer to an SQL query that is one number."""
        (row,) = self.rows("sql", query)
        (value,) = row.values()
        return int(value)

    async def counted(self, query: str, expected: int) -> None:
        """Waits until the query's answer is that number."""
        found = -1
        for _ in range(40):
            if (found := await asyncio.to_thread(self.number, query)) == expected:
                return
            await asyncio.sleep(0.25)
        assert found == expected, query


@contextmanager
def running_platform(**environment: str) -> Iterator[Platform]:
    """One that is up, with these settings; its directory goes with it."""
    # Short, since Unix sockets lie in it.
    data_dir = Path(tempfile.mkdtemp(prefix="tl-"))
    running = Platform(data_dir, **environment)
    try:
        running.up()
        yield running
    finally:
        running.run("down")
        shutil.rmtree(data_dir, ignore_errors=True)


@asynccontextmanager
async def in_thread(starting: AbstractContextManager[Platform]) -> AsyncIterator[Platform]:
    """The platform, started and stopped in a thread, while this one goes on."""
    running = await asyncio.to_thread(starting.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)
