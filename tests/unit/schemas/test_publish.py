"""Publishing freezes versions: ids are stable, changes get new ones, and breaking changes are refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas import files, publish


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The schemas folder, copied to where it may be changed."""
    for name in ("avro", "published"):
        shutil.copytree(files.HERE / name, tmp_path / name)
    monkeypatch.setattr(files, "AVRO", tmp_path / "avro")
    monkeypatch.setattr(files, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(files, "INDEX", tmp_path / "published" / "index.json")
    clear()
    yield tmp_path
    monkeypatch.undo()
    clear()


def clear() -> None:
    for cached in (files.names, files.load, files.published, files.load_published):
        cached.cache_clear()


def change(copied: Path, name: str, **entry: Any) -> None:
    path = copied / "avro" / f"{name}.avsc"
    schema = json.loads(path.read_text())
    schema["fields"].append({"name": "channel", "type": "string", "doc": "Which.", **entry})
    path.write_text(json.dumps(schema))
    clear()


def test_everything_is_published() -> None:
    assert publish.pending() == [], "run python -m schemas.publish"


def test_ids_are_unique_and_versions_count_from_one() -> None:
    entries = files.published()
    assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
    for name in files.names():
        versions = [entry.version for entry in entries if entry.name == name]
        assert versions == list(range(1, len(versions) + 1))
    for entry in entries:
        assert entry.subject == f"{files.load_published(entry)['topic']}-value"


def test_publishing_twice_adds_nothing(copied: Path) -> None:
    before = files.INDEX.read_text()
    assert publish.publish() == []
    assert files.INDEX.read_text() == before


def test_a_change_becomes_the_next_version_and_the_older_ones_stay(copied: Path) -> None:
    before = files.published()
    change(copied, "intent", default="")
    assert publish.pending() == ["intent"]
    (added,) = publish.publish()
    latest = max(entry.version for entry in before if entry.name == "intent")
    assert added == files.Published(len(before) + 1, "intent", latest + 1, "voice.intents-value")
    assert files.published() == (*before, added)
    assert files.load_published(added) == files.load("intent")
    assert publish.pending() == []


def test_a_breaking_change_is_refused_and_nothing_is_written(copied: Path) -> None:
    before = files.INDEX.read_text()
    change(copied, "intent")
    with pytest.raises(ValueError, match=r"intent\.avsc against intent\.v1\.avsc: channel: a default is expected"):
        publish.publish()
    assert files.INDEX.read_text() == before


def test_a_published_schema_cannot_go(copied: Path) -> None:
    (copied / "avro" / "delivery.avsc").unlink()
    clear()
    with pytest.raises(ValueError, match=r"delivery\.avsc: published, so it must stay"):
        publish.publish()
