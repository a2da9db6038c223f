"""A real Kafka broker for tests: the embedded one, in a directory of its own, to be stopped, killed and restarted."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient, NewTopic

from streams import broker
from streams.provision import ensure_topics
from streams.settings import REPOSITORY, KafkaSettings, Settings

# The command dies with the test run, however that ends.
_LAUNCHER = REPOSITORY / "api" / "launch.py"


class TestBroker:
    """One broker on 127.0.0.1; its port stays the same when it is started again."""

    __test__ = False  # no test case, whatever its name says

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """The address; known once it has been started."""
        assert self.port, "the broker was not started"
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running broker."""
        assert self._process is not None, "the broker is not running"
        return self._process.pid

    def settings(self, **overrides: Any) -> Settings:
        """Settings for this broker; nested ones as dicts: `settings(kafka={"partitions": 4}, tenant="t")`."""
        kafka = {"bootstrap_servers": self.bootstrap_servers, **overrides.pop("kafka", {})}
        return Settings(**{"data_dir": self.data_dir, "kafka": KafkaSettings(**kafka), **overrides})

    def start(self) -> None:
        """Returns when the broker answers. Raises broker.BrokerError."""
        command = broker.prepare(Settings(data_dir=self.data_dir), self.port)
        bound = [sys.executable, "-S", "-E", str(_LAUNCHER), str(os.getpid()), *command.arguments]
        process = subprocess.Popen(bound, env=dict(command.environment))
        self._process = process
        self.port = int(command.bootstrap_servers.rpartition(":")[2])
        asyncio.run(broker.wait_ready(self.bootstrap_servers, 90, lambda: process.poll() is None))

    def stop(self) -> None:
        """Stops it in order; does nothing when it is not running."""
        self._end("terminate")

    def kill(self) -> None:
        """Ends it at once (SIGKILL), as a crash would."""
        self._end("kill")

    def create_topic(self, partitions: int = 1, name: str = "") -> str:
        """Creates a topic, by default with a name that no other test uses, and returns its name."""
        name = name or f"test.{uuid.uuid4()}"
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        for future in admin.create_topics([NewTopic(name, partitions, 1)]).values():
            future.result()
        return name

    def _end(self, how: str) -> None:
        if self._process is not None:
            getattr(self._process, how)()
            self._process.wait()
            self._process = None


@contextmanager
def running_broker(data_dir: Path, provisioned: bool = False) -> Iterator[TestBroker]:
    """A broker of one's own, for tests that kill it or change its topics; `provisioned` with the platform's topics."""
    test_broker = TestBroker(data_dir)
    try:
        test_broker.start()
        if provisioned:
            ensure_topics(test_broker.settings())
        yield test_broker
    finally:
        test_broker.kill()
