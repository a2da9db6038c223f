"""A real Kafka broker for tests: the embedded one, in a directory of its own, to be stopped, killed and restarted."""

import asyncio
import os
import subprocess
import sys
import time
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
        """Settings for this broker; nested ones as dicts: `settings(kafka={"partitions": 4}, tenant="t")`.

        Gateways refuse no call unless `load` says so: the calls that other tests left waiting here, and what else
        this machine does, are no test's concern.
        """
        kafka = {"bootstrap_servers": self.bootstrap_servers, **overrides.pop("kafka", {})}
        defaults = {"data_dir": self.data_dir, "load": {"refuse": False}}
        return Settings(**{**defaults, "kafka": KafkaSettings(**kafka), **overrides})

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


class TestCluster:
    """Brokers on 127.0.0.1 with every topic on each of them; they are numbered from 1, as Kafka does."""

    __test__ = False  # no test case, whatever its name says

    def __init__(self, data_dir: Path, brokers: int = 3) -> None:
        self.data_dir = data_dir
        self._brokers = brokers
        self._commands: tuple[broker.BrokerCommand, ...] = ()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def bootstrap_servers(self) -> str:
        """All brokers' addresses; known once the cluster has been started."""
        assert self._commands, "the cluster was not started"
        return self._commands[0].bootstrap_servers

    def settings(self, **overrides: Any) -> Settings:
        """Settings for this cluster, with its replication; nested ones as dicts, as `TestBroker.settings`."""
        kafka = {
            "bootstrap_servers": self.bootstrap_servers,
            "replication_factor": self._brokers,
            "min_insync_replicas": max(1, self._brokers - 1),
            **overrides.pop("kafka", {}),
        }
        return Settings(**{"data_dir": self.data_dir, "kafka": KafkaSettings(**kafka), **overrides})

    def start(self) -> None:
        """Returns when every broker answers and is known to the others. Raises broker.BrokerError."""
        settings = Settings(data_dir=self.data_dir, kafka=KafkaSettings(heap_mb=256))
        self._commands = broker.prepare_cluster(settings, self._brokers)
        for number in range(1, self._brokers + 1):
            self.start_broker(number, wait=False)
        for number in self._processes:
            self._wait_for(number)
        self.wait_whole()

    def start_broker(self, number: int, wait: bool = True) -> None:
        """Starts one that is not running, at its old address; with `wait`, returns when it answers."""
        command = self._commands[number - 1]
        bound = [sys.executable, "-S", "-E", str(_LAUNCHER), str(os.getpid()), *command.arguments]
        self._processes[number] = subprocess.Popen(bound, env=dict(command.environment))
        if wait:
            self._wait_for(number)

    def kill_broker(self, number: int) -> None:
        """Ends one at once (SIGKILL), as a crash would."""
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def pid(self, number: int) -> int:
        """The process id of a running broker."""
        return self._processes[number].pid

    def leader(self, topic: str, partition: int) -> int:
        """The number of the broker that leads the partition now; -1 where none does."""
        return self._admin().list_topics(topic, timeout=10).topics[topic].partitions[partition].leader

    def wait_whole(self) -> None:
        """Returns when every running broker is in the metadata and each partition has all of them in sync."""
        deadline_s = time.monotonic() + 90
        while not self._is_whole():
            if time.monotonic() > deadline_s:
                raise broker.BrokerError("the cluster's brokers did not find together within 90 s")
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends all brokers at once: what they hold is not needed any more."""
        for number in list(self._processes):
            self.kill_broker(number)

    def _is_whole(self) -> bool:
        metadata = self._admin().list_topics(timeout=10)
        partitions = [one for topic in metadata.topics.values() for one in topic.partitions.values()]
        in_sync = all(len(set(one.isrs) & set(self._processes)) == len(self._processes) for one in partitions)
        return len(metadata.brokers) == len(self._processes) and in_sync

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    def _wait_for(self, number: int) -> None:
        process = self._processes[number]
        address = self.bootstrap_servers.split(",")[number - 1]
        asyncio.run(broker.wait_ready(address, 90, lambda: process.poll() is None))


@contextmanager
def running_cluster(data_dir: Path, brokers: int = 3) -> Iterator[TestCluster]:
    """A cluster with the platform's topics, replicated to each broker, all but one of which must have a record."""
    cluster = TestCluster(data_dir, brokers)
    try:
        cluster.start()
        ensure_topics(cluster.settings())
        cluster.wait_whole()
        yield cluster
    finally:
        cluster.stop()


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
