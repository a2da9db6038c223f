"""The jars of the embedded broker: fetched from Maven Central through jgo, each against a committed sha256.

`python -m streams.jars` writes infra/kafka/jars.lock and clients.lock anew, after a change of version.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jgo
import requests
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import MavenContext

from streams.settings import REPOSITORY, Settings

KAFKA_VERSION = "4.1.2"
ENDPOINT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka logs through SLF4J; this binding to log4j2 is that of its own distribution. Locked beside the endpoint and not
# in it, since its parent would then decide the versions of Kafka's own modules.
BINDING = ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.3")
LOCK_FILE = REPOSITORY / "infra" / "kafka" / "jars.lock"
# For tests with consumers in Java and Kafka's own commands; what these need of others is among Kafka's jars.
CLIENTS = (("org.apache.avro", "avro", "1.12.1"), ("org.apache.kafka", "kafka-tools", KAFKA_VERSION))
CLIENTS_LOCK_FILE = REPOSITORY / "infra" / "kafka" / "clients.lock"

_DOWNLOADS_AT_ONCE = 6
_TIMEOUT_S = 60

Progress = Callable[[str], None]
"""Called with one line for people, at each step that takes its time."""


class JarError(RuntimeError):
    """Kafka's jars cannot be had, or are not what the lock says."""


@dataclass(frozen=True)
class Jar:
    """One line of the lock."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        """As Maven writes it."""
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def file_name(self) -> str:
        """As it lies in the cache and in Kafka's own distribution."""
        return f"{self.artifact}-{self.version}.jar"


def read_lock(lock_file: Path = LOCK_FILE) -> list[Jar]:
    """The locked jars, in the order of the class path."""
    jars: list[Jar] = []
    for number, line in enumerate(lock_file.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        words = line.split()
        parts = words[-1].split(":")
        if len(words) != 2 or len(words[0]) != 64 or len(parts) != 3:
            raise JarError(f"{lock_file}:{number}: expected '<sha256> <group>:<artifact>:<version>', got {line!r}")
        jars.append(Jar(parts[0], parts[1], parts[2], words[0]))
    return jars


def class_path(settings: Settings, on_progress: Progress = lambda line: None) -> list[Path]:
    """The verified jars to run Kafka with: an unpacked distribution where one is configured, else the locked ones.

    Missing jars are fetched (43 MB the first time). Raises JarError: nothing reached, or a jar with another content.
    """
    if settings.kafka.distribution_dir is not None:
        return _of_distribution(settings.kafka.distribution_dir)
    return _locked(settings, read_lock(), on_progress)


def client_class_path(settings: Settings) -> list[Path]:
    """As `class_path`, for consumers in Java and Kafka's own commands: with Avro and kafka-tools."""
    return [*class_path(settings), *_locked(settings, read_lock(CLIENTS_LOCK_FILE), lambda line: None)]


def _locked(settings: Settings, jars: Sequence[Jar], on_progress: Progress) -> list[Path]:
    store = settings.kafka.jars_dir
    missing = [jar for jar in jars if not (store / jar.file_name).exists()]
    for jar in jars:
        if jar not in missing:
            _verify(jar, store / jar.file_name, f"Delete {store / jar.file_name} to have it fetched again")
    if missing:
        on_progress(f"fetching Apache Kafka {KAFKA_VERSION}: {len(missing)} jars into {store}")
        _fetch(settings, missing, store, on_progress)
    return [store / jar.file_name for jar in jars]


def _of_distribution(distribution: Path) -> list[Path]:
    jars = sorted((distribution / "libs").glob("*.jar"))
    if not any(jar.name.startswith("kafka_2.13-4.") for jar in jars):
        raise JarError(
            f"TRUNKLINE_KAFKA__DISTRIBUTION_DIR={distribution} is not an unpacked Apache Kafka 4 distribution: "
            f"expected libs/kafka_2.13-4.*.jar in it"
        )
    return jars


def _fetch(settings: Settings, missing: Sequence[Jar], store: Path, on_progress: Progress) -> None:
    """Fetches into a directory beside the store and moves what was verified: the store never holds half a jar."""
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=store) as staging:
        source = settings.kafka.maven_url.rstrip("/") or MAVEN_CENTRAL_URL
        context = MavenContext(repo_cache=Path(staging), remote_repos={"maven": source}, timeout=_TIMEOUT_S)

        def fetch(jar: Jar) -> None:
            local = _in_local_repository(jar)
            if local is not None:
                path = Path(staging) / jar.file_name
                shutil.copyfile(local, path)
            else:
                path = context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
            _verify(jar, path, f"It came from {source}, which is not to be trusted for it")
            os.replace(path, store / jar.file_name)

        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            try:
                for done, _ in enumerate(pool.map(fetch, missing), 1):
                    if done % 10 == 0 or done == len(missing):
                        on_progress(f"fetching Apache Kafka {KAFKA_VERSION}: {done} of {len(missing)} jars")
            except (requests.RequestException, RuntimeError, OSError) as error:
                pool.shutdown(cancel_futures=True)
                if isinstance(error, JarError):
                    raise
                raise JarError(
                    f"cannot fetch Apache Kafka from {source}: {error}. Without access to it, set "
                    "TRUNKLINE_KAFKA__MAVEN_URL to a mirror, or TRUNKLINE_KAFKA__DISTRIBUTION_DIR to an unpacked "
                    "Apache Kafka distribution"
                ) from error


def _in_local_repository(jar: Jar) -> Path | None:
    """The same jar in this user's Maven repository, if any: only with the locked content."""
    context = MavenContext()
    path = context.project(jar.group, jar.artifact).at_version(jar.version).artifact().cached_path
    return path if path is not None and path.exists() and _sha256(path) == jar.sha256 else None


def _verify(jar: Jar, path: Path, hint: str) -> None:
    actual = _sha256(path)
    if actual != jar.sha256:
        raise JarError(
            f"{path.name} ({jar.coordinate}) was altered: its sha256 is {actual}, the lock has {jar.sha256}. {hint}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_locks() -> None:
    """Writes what `ENDPOINT` and `BINDING` need, and `CLIENTS`, with sha256 sums of what is fetched now."""
    _write_lock(LOCK_FILE, f"{ENDPOINT} and {':'.join(BINDING)}", [*jgo.resolve(ENDPOINT), _artifact(*BINDING)])
    named = " and ".join(":".join(client) for client in CLIENTS)
    _write_lock(CLIENTS_LOCK_FILE, named, [_artifact(*client) for client in CLIENTS])


def _artifact(group: str, name: str, version: str) -> Any:
    return MavenContext().project(group, name).at_version(version).artifact()


def _write_lock(lock_file: Path, title: str, found: Sequence[Any]) -> None:
    artifacts = {str(artifact): artifact for artifact in found}
    lines = [
        f"{_sha256(artifact.resolve())} {artifact.groupId}:{artifact.artifactId}:{artifact.version}"
        for _, artifact in sorted(artifacts.items())
        if artifact.packaging == "jar" and not artifact.classifier
    ]
    lock_file.write_text(f"# {title}; written by `python -m streams.jars`\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    write_locks()
