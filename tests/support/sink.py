"""The ClickHouse sink as a process, for tests that ask it over HTTP, stop it and kill it."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from processors.clickhouse.readers import KEY_FILE
from streams import ready
from streams.settings import REPOSITORY, Settings

PATIENCE_S = 60.0


class SinkProcess:
    """A sink with a data directory of its own, on a broker of the tests."""

    def __init__(self, data_dir: Path, bootstrap_servers: str, **environment: str) -> None:
        self.settings = Settings(data_dir=data_dir)
        self._environment = {
            **os.environ,
            "TRUNKLINE_DATA_DIR": str(data_dir),
            "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.log = data_dir / "sink.log"

    def start(self, wait: bool = True, module: str = "processors.clickhouse.sink", *arguments: str) -> None:
        """Starts it; with `wait`, returns when it is ready. Raises RuntimeError with its log when it ends instead."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=REPOSITORY,
                env=self._environment,
                stdout=out,
                stderr=out,
            )
        while wait and not self._is_ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"the sink ended: {self.log.read_text()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends it at once (SIGKILL), as a crash would; does nothing when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ended(self) -> int:
        """Waits until it ends by itself, and returns its exit code."""
        assert self._process is not None, "the sink is not running"
        return self._process.wait(PATIENCE_S)

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "the sink is not running"
        return self._process.pid

    def stop(self) -> int:
        """Stops it in order and returns its exit code."""
        assert self._process is not None, "the sink is not running"
        self._process.terminate()
        code = self._process.wait(PATIENCE_S)
        self._process = None
        return code

    @property
    def port(self) -> int:
        """Where it answers questions."""
        facts: Mapping[str, Any] | None = ready.read(self.settings, "clickhouse")
        assert facts is not None, "the sink is not ready"
        return int(facts["http_port"])

    def ask(self, query: str, **parameters: str) -> httpx.Response:
        """The answer over HTTP, in ClickHouse's default format unless the query says another. The operator asks."""
        key = self.settings.data_dir / KEY_FILE
        headers = {"X-ClickHouse-Key": key.read_text()} if key.exists() else {}
        return httpx.post(
            f"http://127.0.0.1:{self.port}/", content=query.encode(), params=parameters, headers=headers, timeout=60
        )

    def number(self, query: str) -> int:
        """The answer, a single number."""
        answer = self.ask(query)
        assert answer.status_code == 200, answer.text
        return int(answer.text)

    def wait_for(self, query: str, expected: int) -> None:
        """Waits until the answer is that number; fails with the last answer when it does not come."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (found := self.number(query)) != expected:
            assert time.monotonic() < deadline_s, f"{query}: {found}, expected {expected}"
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        facts = ready.read(self.settings, "clickhouse")
        return facts is not None and self._process is not None and facts["pid"] == self._process.pid
