"""The embedded broker: Apache Kafka itself in KRaft mode, one process, kept below the data directory.

For trials of failing brokers there is a cluster of them on one machine (`prepare_cluster`).

`python -m streams.broker [--data-dir DIR] [--port PORT]` runs it in the foreground.
"""

import argparse
import asyncio
import base64
import contextlib
import fcntl
import hashlib
import os
import socket
import string
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams import jars, java
from streams.clock import Clock, SystemClock
from streams.jars import JarError, Progress
from streams.java import Java, JavaNotFoundError
from streams.settings import REPOSITORY, Settings

TEMPLATES = REPOSITORY / "infra" / "kafka"

_MESSAGE_BYTES_MAX = 2 * 1024 * 1024
_FORMAT_TIMEOUT_S = 120


class BrokerError(RuntimeError):
    """The embedded broker cannot be started or does not answer; the message says why and what to do."""


@dataclass(frozen=True)
class _Node:
    """One broker of a cluster: where it keeps its log, and where it listens."""

    id: int
    directory: Path
    log_file: Path
    port: int
    controller_port: int


@dataclass(frozen=True)
class BrokerCommand:
    """How to start the broker; `arguments` is for exec or subprocess, `environment` is complete."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    bootstrap_servers: str
    directory: Path
    log_file: Path


def prepare(settings: Settings, port: int = 0, on_progress: Progress = lambda line: None) -> BrokerCommand:
    """Makes everything ready for one start of the broker on 127.0.0.1:`port` (0: a free one) and returns its command.

    Finds Java, fetches Kafka if it is not there (`on_progress` gets a line now and then), formats the storage the
    first time, and writes this start's configuration. Call it again for each restart. Blocks; raises BrokerError when
    the port or the data directory is in use, JavaNotFoundError, JarError.
    """
    _make_directories(settings, "kafka")
    if (owner := owner_of(settings)) is not None:
        raise BrokerError(
            f"the data directory {settings.data_dir} is in use by another broker (process {owner}). "
            "Stop that one first, or use another data directory"
        )
    if port:
        _require_free(port)
    free, controller_port = _free_ports(2)
    return _commands(settings, [_node(settings, 1, "kafka", port or free, controller_port)], on_progress)[0]


def prepare_cluster(
    settings: Settings, brokers: int = 3, on_progress: Progress = lambda line: None
) -> tuple[BrokerCommand, ...]:
    """As `prepare`, for a cluster of brokers on this machine: for trying what happens when one of them fails.

    A topic has a replica on each broker unless it says otherwise, and all but one must have a record before it counts
    as written. Every command stays good for restarts of its broker, so this is called once; `bootstrap_servers` is
    the same for all. Blocks; raises what `prepare` does.
    """
    ports = _free_ports(2 * brokers)
    names = [f"kafka-{number}" for number in range(1, brokers + 1)]
    for name in names:
        _make_directories(settings, name)
    nodes = [
        _node(settings, number, name, ports[2 * number - 2], ports[2 * number - 1])
        for number, name in enumerate(names, start=1)
    ]
    return _commands(settings, nodes, on_progress)


def _make_directories(settings: Settings, name: str) -> None:
    (settings.data_dir / name / "storage").mkdir(parents=True, exist_ok=True)
    settings.log_dir.mkdir(parents=True, exist_ok=True)


def _node(settings: Settings, number: int, name: str, port: int, controller_port: int) -> _Node:
    log_name = name.replace("kafka", "broker")
    log_file = settings.log_dir.absolute() / f"{log_name}.log"
    return _Node(number, settings.data_dir.absolute() / name, log_file, port, controller_port)


def _commands(settings: Settings, nodes: Sequence[_Node], on_progress: Progress) -> tuple[BrokerCommand, ...]:
    """Writes each broker's configuration, formats what is new, and returns how to start them."""
    runtime = java.find_java(settings)
    classes = os.pathsep.join(str(jar) for jar in jars.class_path(settings, on_progress))
    flags = _jvm_flags(settings, runtime, classes, archive_new=len(nodes) == 1)
    bootstrap_servers = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    cluster_id = _cluster_id()
    commands = []
    for node in nodes:
        properties = node.directory / "server.properties"
        properties.write_text(_server_properties(settings, node, nodes))
        base = (
            str(runtime.path),
            f"-Dlog4j2.configurationFile={TEMPLATES / 'log4j2.properties'}",
            f"-Dtrunkline.log={node.log_file}",
        )
        if not (node.directory / "storage" / "meta.properties").exists():
            on_progress("formatting the log's storage")
            _format(base, classes, properties, cluster_id)
        arguments = (*base, *flags, "-cp", classes, "kafka.Kafka", str(properties))
        commands.append(BrokerCommand(arguments, dict(os.environ), bootstrap_servers, node.directory, node.log_file))
    return tuple(commands)


def owner_of(settings: Settings) -> int | None:
    """The process id of the broker that runs on this data directory, or None: read from the lock that Kafka holds.

    Elsewhere than on Linux always None: there Kafka itself finds the lock taken, and says so in its log.
    """
    if sys.platform != "linux":
        return None
    lock_file = settings.data_dir.absolute() / "kafka" / "storage" / ".lock"
    # struct flock of Linux: l_type, l_whence, l_start, l_len, l_pid. Kafka locks through POSIX record locks.
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with lock_file.open("r+b") as file:
            answer = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, question))
    except FileNotFoundError:
        return None
    kind, pid = answer[0], answer[4]
    return None if kind == fcntl.F_UNLCK else int(pid)


async def wait_ready(
    bootstrap_servers: str,
    timeout_s: float = 60.0,
    alive: Callable[[], bool] = lambda: True,
    clock: Clock | None = None,
) -> None:
    """Returns once the cluster answers for its metadata with a broker in it.

    `alive` says whether the process is still there: BrokerError at once when not, or after `timeout_s`.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic_s() + timeout_s
    host, _, port = bootstrap_servers.split(",")[0].rpartition(":")
    while clock.monotonic_s() < deadline:
        if not alive():
            raise BrokerError(f"the broker for {bootstrap_servers} stopped while it was starting")
        if await asyncio.to_thread(_answers, host, int(port), bootstrap_servers):
            return
        await clock.sleep(0.05)
    raise BrokerError(f"no Kafka broker answered at {bootstrap_servers} within {timeout_s:.0f} s")


def _answers(host: str, port: int, bootstrap_servers: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        # Only a listening broker is asked through librdkafka, which would wait out its backoff otherwise.
        try:
            metadata = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0}).list_topics(timeout=2.0)
        except KafkaException:
            return False
        return bool(metadata.brokers)
    return False


def _server_properties(settings: Settings, node: _Node, nodes: Sequence[_Node]) -> str:
    template = string.Template((TEMPLATES / "server.properties").read_text())
    return template.substitute(
        node_id=node.id,
        voters=",".join(f"{one.id}@127.0.0.1:{one.controller_port}" for one in nodes),
        port=node.port,
        controller_port=node.controller_port,
        log_dirs=node.directory / "storage",
        partitions=settings.kafka.partitions,
        replicas=len(nodes),
        replicas_min=max(1, len(nodes) - 1),
        message_bytes_max=_MESSAGE_BYTES_MAX,
    )


def _jvm_flags(settings: Settings, runtime: Java, classes: str, archive_new: bool) -> list[str]:
    """Measured on two cores: a broker that starts with less than half the work of the JVM's defaults.

    Only the quick compiler (the optimising one doubles the CPU time of a start and gains nothing at 500 records/s),
    no threads for garbage collection, and the classes mapped from an archive that the first orderly stop writes.
    """
    flags = [f"-Xmx{settings.kafka.heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
    archive = _class_archive(settings, runtime, classes)
    # An archive that does not fit is left unused by the JVM, which says so on its output.
    flags += ["-Xshare:auto", "-Xlog:disable", "-Xlog:all=error:stderr"]
    if runtime.version >= 24:
        # What Kafka 4.1 and its compression libraries do there would be warned of on the output.
        flags += ["--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"]
    if _is_complete(archive):
        return [*flags, f"-XX:SharedArchiveFile={archive}"]
    return [*flags, f"-XX:ArchiveClassesAtExit={archive}"] if archive_new else flags


def _class_archive(settings: Settings, runtime: Java, classes: str) -> Path:
    """Where the classes of this Java and these jars are archived: neither may differ from when it was written."""
    kind = hashlib.sha256(f"{runtime.path.resolve()} {runtime.version} {classes}".encode()).hexdigest()[:16]
    return settings.kafka.jars_dir / f"classes-{kind}.jsa"


def _is_complete(archive: Path) -> bool:
    """False for an archive whose writer was killed: the JVM writes the header last."""
    try:
        with archive.open("rb") as file:
            return any(file.read(4))
    except FileNotFoundError:
        return False


def _format(base: tuple[str, ...], classes: str, properties: Path, cluster_id: str) -> None:
    """Writes the storage's identity, once in the life of a data directory."""
    command = [*base, "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classes]
    command += ["kafka.tools.StorageTool", "format", "-c", str(properties)]
    # One word with its option: one cluster id in 64 begins with the hyphen of an option.
    command.append(f"--cluster-id={cluster_id}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_S)
    if done.returncode != 0:
        raise BrokerError(f"the log's storage could not be formatted: {(done.stderr or done.stdout).strip()[-4000:]}")


def _cluster_id() -> str:
    """A random UUID, as `kafka-storage random-uuid` spells it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        # All are held until all are known: one alone could be given out twice.
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _require_free(port: int) -> None:
    with socket.socket() as listener:
        # As Kafka binds: connections that are still closing do not count as use.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise BrokerError(
                f"the broker cannot listen on 127.0.0.1:{port}: {error.strerror}. "
                "Stop what uses that port, or choose another"
            ) from error


def main() -> None:
    """Runs the broker in the foreground: this process becomes Java."""
    parser = argparse.ArgumentParser(prog="python -m streams.broker", description="Runs the embedded broker.")
    parser.add_argument("--data-dir", type=Path, help="default: TRUNKLINE_DATA_DIR or ~/.trunkline")
    parser.add_argument("--port", type=int, default=9092)
    arguments = parser.parse_args()
    settings = Settings() if arguments.data_dir is None else Settings(data_dir=arguments.data_dir)
    try:
        command = prepare(settings, arguments.port, lambda line: print(line, file=sys.stderr, flush=True))
    except (BrokerError, JarError, JavaNotFoundError) as error:
        sys.exit(f"trunkline: {error}")
    print(f"Kafka on {command.bootstrap_servers}, log {command.log_file}", file=sys.stderr, flush=True)
    os.execve(command.arguments[0], command.arguments, dict(command.environment))


if __name__ == "__main__":
    main()
