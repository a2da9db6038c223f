"""The ClickHouse sink as a process, for tests that ask it over HTTP, stop it and kill it; and events for its rows."""

import asyncio
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from processors.clickhouse.readers import KEY_FILE
from processors.clickhouse.rows import TABLE_OF_TOPIC
from schemas import json_form
from schemas.event import Event
from schemas.events import EVENTS
from streams import ready
from streams.producer import LogProducer
from streams.settings import REPOSITORY, Settings
from tests.support.process import OwnProcess

PATIENCE_S = 120.0


class Asked:
    """Something that answers questions in SQL: see `ask`."""

    def ask(self, query: str, **parameters: str) -> httpx.Response:
        """The answer over HTTP, in ClickHouse's default format unless the query says another."""
        raise NotImplementedError

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


class SinkProcess(OwnProcess, Asked):
    """A sink with a data directory of its own, on a broker of the tests."""

    def __init__(self, data_dir: Path, bootstrap_servers: str, **environment: str) -> None:
        self.settings = Settings(data_dir=data_dir)
        self.environment = {
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
                env=self.environment,
                stdout=out,
                stderr=out,
            )
        while wait and not self._is_ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"the sink ended: {self.log.read_text()}")
            time.sleep(0.05)

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

    @property
    def port(self) -> int:
        """Where it answers questions."""
        facts: Mapping[str, Any] | None = ready.read(self.settings, "clickhouse")
        assert facts is not None, "the sink is not ready"
        return int(facts["http_port"])

    def ask(self, query: str, **parameters: str) -> httpx.Response:
        """See `Asked`; the operator asks."""
        key = self.settings.data_dir / KEY_FILE
        headers = {"X-ClickHouse-Key": key.read_text()} if key.exists() else {}
        return httpx.post(
            f"http://127.0.0.1:{self.port}/", content=query.encode(), params=parameters, headers=headers, timeout=60
        )

    def metric(self, name: str) -> float:
        """Its value now, over all labels."""
        facts: Mapping[str, Any] | None = ready.read(self.settings, "clickhouse")
        assert facts is not None, "the sink is not ready"
        text = httpx.get(f"http://127.0.0.1:{facts['metrics_port']}/metrics", timeout=60).text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def _is_ready(self) -> bool:
        facts = ready.read(self.settings, "clickhouse")
        return facts is not None and self._process is not None and facts["pid"] == self._process.pid


def of_session(example: Event, session_id: str, seq: int) -> Event:
    """An event like the example, of that session and of now."""
    return replace(
        example, event_id=str(uuid.uuid4()), session_id=session_id, seq=seq, occurred_at=time.time_ns() // 1000
    )


def burst_of(session_id: str, count: int) -> list[Event]:
    """So many events of each kind."""
    examples = [json_form.examples(event)[0] for event in EVENTS]
    return [of_session(example, session_id, number) for number in range(count) for example in examples]


async def publish(settings: Settings, events: Sequence[Event]) -> None:
    """Returns when the log has them."""
    async with LogProducer(settings, "test.clickhouse") as producer:
        await asyncio.gather(*(producer.publish(event) for event in events))


def rows_are_events(asked: Asked, session_id: str, count: int) -> None:
    """Waits until every event has a row; each has one, in the tables that rows are merged away from, too."""
    for event in EVENTS:
        where = f"FROM {TABLE_OF_TOPIC[event.TOPIC]} WHERE session_id = '{session_id}'"
        asked.wait_for(f"SELECT uniqExact(event_id) {where}", count)
        assert asked.number(f"SELECT count() {where}") == count
