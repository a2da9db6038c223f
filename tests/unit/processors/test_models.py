import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from processors import models
from processors.models import ModelError
from streams.settings import Settings
from streams.yamlfile import ConfigError

Write = Callable[[str], Settings]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes models.yaml and returns settings that use it."""

    def write(text: str) -> Settings:
        path = tmp_path / "models.yaml"
        path.write_text(text)
        return Settings(models_file=path, cache_dir=tmp_path / "cache")

    return write


def entry(source: str, *files: tuple[str, bytes], extra: str = "", name: str = "m", engine: str = "e") -> str:
    lines = [f"  - {{name: {name}, role: tts, engine: {engine}, licence: MIT, source: '{source}', files: ["]
    for path, content in files:
        digest = hashlib.sha256(content).hexdigest()
        lines.append(f"      {{path: {path}, sha256: {digest}, size_bytes: {len(content)}{extra}}},")
    return "\n".join([*lines, "  ]}"]) + "\n"


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python package that carries data and breaks when it is imported."""
    put(tmp_path / "site/carrier_of_models/__init__.py", b"raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return tmp_path / "site/carrier_of_models"


def test_a_directory_is_found_beside_the_file_that_names_it(tmp_path: Path, write: Write) -> None:
    put(tmp_path / "voices/v.onnx", b"net")
    put(tmp_path / "voices/sub/t.json", b"{}")
    settings = write("models:\n" + entry("directory:voices", ("v.onnx", b"net"), ("sub/t.json", b"{}")))
    resolved = models.resolve(settings, "m")
    assert resolved.path.read_bytes() == b"net"
    assert resolved.directory.resolve() == (tmp_path / "voices").resolve()
    assert (resolved.directory / "sub/t.json").read_bytes() == b"{}"
    assert (resolved.name, resolved.licence) == ("m", "MIT")


def test_a_package_is_read_without_importing_it(package: Path, write: Write) -> None:
    put(package / "data/v.onnx", b"net")
    settings = write("models:\n" + entry("package:carrier_of_models/data", ("v.onnx", b"net")))
    assert models.resolve(settings, "m").path.read_bytes() == b"net"
    assert "carrier_of_models" not in sys.modules


def test_parts_are_put_together_once_beside_the_other_files(tmp_path: Path, package: Path, write: Write) -> None:
    put(package / "one/net.1", b"ab")
    put(package / "two/net.2", b"cd")
    put(package / "one/vocabulary.txt", b"words")
    parts = ", parts: ['package:carrier_of_models/one/net.1', 'package:carrier_of_models/two/net.2']"
    text = "models:\n" + entry("package:carrier_of_models/one", ("net.bin", b"abcd"), extra=parts)
    vocabulary = entry("x", ("vocabulary.txt", b"words")).splitlines()[1]
    settings = write(text.replace("  ]}", f"{vocabulary}\n  ]}}"))
    resolved = models.resolve(settings, "m")
    assert (resolved.directory / "net.bin").read_bytes() == b"abcd"
    assert (resolved.directory / "vocabulary.txt").read_bytes() == b"words"
    assert resolved.directory.is_relative_to(tmp_path / "cache")
    (package / "two/net.2").unlink()
    assert models.resolve(settings, "m").path.read_bytes() == b"abcd"
    assert sorted(path.name for path in resolved.directory.iterdir()) == ["net.bin", "vocabulary.txt"]


def test_altered_parts_are_refused_and_leave_nothing_behind(tmp_path: Path, package: Path, write: Write) -> None:
    put(package / "net.1", b"aX")
    parts = ", parts: ['package:carrier_of_models/net.1']"
    settings = write("models:\n" + entry("package:carrier_of_models", ("net.bin", b"ab"), extra=parts))
    with pytest.raises(ModelError, match="expected sha256"):
        models.resolve(settings, "m")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_wrong_hash_is_refused_by_name(tmp_path: Path, write: Write) -> None:
    path = put(tmp_path / "voices/v.onnx", b"not")
    settings = write("models:\n" + entry("directory:voices", ("v.onnx", b"net")))
    with pytest.raises(ModelError) as raised:
        models.resolve(settings, "m")
    for part in (
        "model m",
        "v.onnx",
        str(path),
        hashlib.sha256(b"net").hexdigest(),
        hashlib.sha256(b"not").hexdigest(),
    ):
        assert part in str(raised.value)
    assert "Put the files" in str(raised.value)


def test_a_file_changed_after_it_was_checked_is_noticed(tmp_path: Path, write: Write) -> None:
    path = put(tmp_path / "voices/v.onnx", b"net")
    settings = write("models:\n" + entry("directory:voices", ("v.onnx", b"net")))
    models.resolve(settings, "m")
    path.write_bytes(b"nex!")
    with pytest.raises(ModelError, match="expected sha256"):
        models.resolve(settings, "m")


def test_only_verify_reads_again_what_looks_unchanged(tmp_path: Path, write: Write) -> None:
    path = put(tmp_path / "voices/v.onnx", b"net")
    settings = write("models:\n" + entry("directory:voices", ("v.onnx", b"net")))
    models.resolve(settings, "m")
    times = path.stat()
    path.write_bytes(b"nex")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert models.resolve(settings, "m").path == path
    with pytest.raises(ModelError, match="expected sha256"):
        models.verify(settings, "m")
    with pytest.raises(ModelError, match="expected sha256"):
        models.resolve(settings, "m")


def test_what_is_missing_is_named_with_how_to_get_it(write: Write) -> None:
    settings = write(
        "models:\n"
        + entry("directory:voices", ("v.onnx", b"net"))
        + entry("package:no_such_package_here/x", ("v.onnx", b"net"), name="p")
        + entry("package:pytest", ("no.onnx", b"net"), name="q")
    )
    with pytest.raises(ModelError, match=r"model m: file v.onnx is missing at .*voices/v.onnx\. Put the files"):
        models.resolve(settings, "m")
    with pytest.raises(ModelError, match=r"model p: it needs the Python package no_such_package_here.*pip install"):
        models.resolve(settings, "p")
    with pytest.raises(ModelError, match=r"model q: file no.onnx is missing.*pip install --force-reinstall pytest"):
        models.resolve(settings, "q")
    with pytest.raises(ModelError, match=r"model 'z' is not in .*; expected one of m, p, q"):
        models.resolve(settings, "z")


def test_a_hub_file_is_read_from_the_hub_s_cache(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache has the layout of the hub's client, so the client itself finds the file."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--someone--voice"
    put(repository / "refs/v1", b"0123456789abcdef0123456789abcdef01234567")
    put(repository / "snapshots/0123456789abcdef0123456789abcdef01234567/voices/v.onnx", b"net")
    settings = write("models:\n" + entry("hub:someone/voice@v1", ("voices/v.onnx", b"net")))
    assert models.resolve(settings, "m", fetch=False).path.read_bytes() == b"net"


def test_an_unreachable_hub_is_said_to_be_so(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    settings = write("models:\n" + entry("hub:someone/voice@v1", ("v.onnx", b"net")))
    with pytest.raises(ModelError, match=r"model m: file v.onnx could not be fetched.*hf download someone/voice"):
        models.resolve(settings, "m")
    with pytest.raises(ModelError, match="was not fetched from the hub yet"):
        models.verify(settings, "m")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("directory:voices", "folder:voices", "models.yaml:2: models[0].source: expected package:MODULE"),
        ("directory:voices", "hub:someone/voice", "models.yaml:2: models[0].source: expected hub:OWNER/NAME@REVISION"),
        ("path: v.onnx", "path: ../v.onnx", "models.yaml:3: models[0].files[0].path: expected a path inside"),
        ("role: tts", "role: tss", "models.yaml:2: models[0].role: expected 'stt', 'vad'"),
        ("licence: MIT", "license: MIT", "models.yaml:2: models[0].license: is not known here; did you mean licence?"),
    ],
)
def test_mistakes_in_the_file_are_shown_where_they_are(write: Write, old: str, new: str, expected: str) -> None:
    settings = write("models:\n" + entry("directory:voices", ("v.onnx", b"net")).replace(old, new))
    with pytest.raises(ConfigError) as raised:
        models.resolve(settings, "m")
    assert expected in str(raised.value)


def test_two_models_of_one_name_are_refused(write: Write) -> None:
    text = entry("directory:voices", ("v.onnx", b"net"))
    with pytest.raises(ConfigError, match=r"each model needs a name of its own, found m more than once"):
        models.catalogue(write("models:\n" + text + text))


def test_settings_choose_the_model(write: Write) -> None:
    text = "models:\n" + "".join(
        entry("directory:voices", ("v.onnx", b"net"), name=name, engine="hibari") for name in ("a", "b")
    )
    settings = write(text)
    assert models.chosen(settings, "tts").name == "a"
    settings.engines.tts_model = "b"
    assert models.chosen(settings, "tts").name == "b"
    settings.engines.tts_model, settings.engines.tts = "", "coqui"
    with pytest.raises(ModelError, match=r"no model of .* is for the tts engine 'coqui'"):
        models.chosen(settings, "tts")


def test_the_shipped_catalogue_has_a_model_for_every_role() -> None:
    settings = Settings()
    for role in ("stt", "embeddings", "llm", "tts"):
        assert models.chosen(settings, role).role == role
