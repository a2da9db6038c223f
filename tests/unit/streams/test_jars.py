"""The lock of Kafka's jars: what is not as locked is refused."""

import hashlib
import re
from pathlib import Path

import pytest

from streams import jars
from streams.jars import Jar, JarError
from streams.settings import KafkaSettings, Settings

JAR = Jar("org.example", "thing", "1.0", hashlib.sha256(b"jar").hexdigest())


def settings_with(jars_dir: Path, **kafka: object) -> Settings:
    return Settings(kafka=KafkaSettings.model_validate({"jars_dir": jars_dir, **kafka}))


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose cache holds the one locked jar."""
    (tmp_path / "thing-1.0.jar").write_bytes(b"jar")
    monkeypatch.setattr(jars, "read_lock", lambda: [JAR])
    return settings_with(tmp_path)


def test_the_committed_lock_names_kafka_and_its_logging_binding() -> None:
    locked = {jar.coordinate for jar in jars.read_lock()}
    assert f"org.apache.kafka:kafka_2.13:{jars.KAFKA_VERSION}" in locked
    assert f"org.apache.kafka:kafka-clients:{jars.KAFKA_VERSION}" in locked
    assert ":".join(jars.BINDING) in locked


def test_a_jar_as_locked_is_on_the_class_path(locked: Settings) -> None:
    assert jars.class_path(locked) == [locked.kafka.jars_dir / "thing-1.0.jar"]


def test_an_altered_jar_is_refused_by_name(locked: Settings) -> None:
    (locked.kafka.jars_dir / "thing-1.0.jar").write_bytes(b"another")
    with pytest.raises(JarError, match=r"thing-1\.0\.jar \(org\.example:thing:1\.0\) was altered.*Delete"):
        jars.class_path(locked)


def test_an_unreachable_repository_says_what_else_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "read_lock", lambda: [JAR])
    with pytest.raises(JarError, match=r"127\.0\.0\.1:1.*MAVEN_URL.*DISTRIBUTION_DIR"):
        jars.class_path(settings_with(tmp_path, maven_url="http://127.0.0.1:1"))
    assert list(tmp_path.glob("*")) == []


def test_a_malformed_lock_names_its_line(tmp_path: Path) -> None:
    lock = tmp_path / "jars.lock"
    lock.write_text("# comment\nabc org.example:thing:1.0\n")
    with pytest.raises(JarError, match=re.escape(f"{lock}:2: expected '<sha256> <group>:<artifact>:<version>'")):
        jars.read_lock(lock)


def test_a_distribution_replaces_the_fetched_jars(tmp_path: Path) -> None:
    libs = tmp_path / "kafka_2.13-4.1.2" / "libs"
    libs.mkdir(parents=True)
    names = ["kafka-clients-4.1.2.jar", "kafka_2.13-4.1.2.jar"]
    for name in names:
        (libs / name).touch()
    settings = settings_with(tmp_path / "none", distribution_dir=libs.parent)
    assert [jar.name for jar in jars.class_path(settings)] == names


def test_what_is_no_distribution_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JarError, match=r"is not an unpacked Apache Kafka 4 distribution: expected libs/kafka_2\.13"):
        jars.class_path(settings_with(tmp_path, distribution_dir=tmp_path))
