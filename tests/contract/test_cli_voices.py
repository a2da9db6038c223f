"""`trunkline voices` as its user has it: files that stay, and the audit trail in a real log."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import uuid
import wave
from pathlib import Path

import numpy as np
import pytest

from processors.tts.voices import VoiceStore
from schemas.events import Access
from streams.codec import default_codec
from streams.consumer import BEGINNING, END, LogReader
from streams.settings import REPOSITORY, Settings
from tests.support.engines import running_host, settings_in
from tests.support.kafka import TestBroker

CONSENT = "I, Ana Tester, agree that my voice is used.\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A sample and a consent."""
    hum = 9_000 * np.sin(2 * np.pi * 150 * np.arange(4 * 24_000) / 24_000)
    sample, consent = tmp_path / "ana.wav", tmp_path / "ana.txt"
    with wave.open(str(sample), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(hum.astype("<i2").tobytes())
    consent.write_text(CONSENT)
    return sample, consent


def run(*arguments: str, data_dir: Path, servers: str = "") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    given = {**kept, "TRUNKLINE_DATA_DIR": str(data_dir)}
    if servers:
        given["TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS"] = servers
    command = [sys.executable, "-m", "api.cli.main", "voices", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=given, cwd=REPOSITORY, timeout=300)


async def accesses(settings: Settings) -> list[Access]:
    found = []
    async with LogReader(settings, "test-cli-voices") as reader:
        partitions = await reader.partitions(Access.TOPIC)
        async for record in reader.read_to(dict.fromkeys(partitions, (BEGINNING, END))):
            event = default_codec().decode_keyed(record.topic, record.key, record.value)
            if isinstance(event, Access):
                found.append(event)
    return found


def test_a_voice_is_added_listed_and_removed_and_the_trail_tells(
    kafka: TestBroker, files: tuple[Path, Path], tmp_path: Path
) -> None:
    name, data_dir = f"v{uuid.uuid4().hex}", tmp_path / "data"
    sample, consent = files
    added = run(
        *("add", name, str(sample), "--consent", str(consent), "--json"),
        data_dir=data_dir,
        servers=kafka.bootstrap_servers,
    )
    assert (added.returncode, added.stderr) == (0, "")
    shown = json.loads(added.stdout)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert [shown["sample_sha256"], shown["consent_sha256"]] == digests
    assert VoiceStore(Settings(data_dir=data_dir)).consent(name) == CONSENT
    assert json.loads(run("list", "--json", data_dir=data_dir).stdout) == shown
    assert name in run("list", data_dir=data_dir).stdout
    removed = run("remove", name, data_dir=data_dir, servers=kafka.bootstrap_servers)
    assert (removed.returncode, removed.stdout) == (0, "removed\n")
    assert run("list", "--json", data_dir=data_dir).stdout == ""
    told = [event for event in asyncio.run(accesses(kafka.settings())) if name in event.what]
    told.sort(key=lambda event: event.occurred_at)
    ends = f"{name}: sample sha256 {digests[0]}, consent sha256 {digests[1]}"
    assert [event.what for event in told] == [f"voices add {ends}", f"voices remove {ends}"]
    assert all(event.actor.startswith("local:") and event.via == "cli" for event in told)


def test_without_the_trail_there_is_no_voice(files: tuple[Path, Path], tmp_path: Path) -> None:
    sample, consent = files
    for servers, expected in (("", "no platform is running"), ("127.0.0.1:1", "the log at 127.0.0.1:1")):
        done = run(
            *("add", "brand", str(sample), "--consent", str(consent)), data_dir=tmp_path / "data", servers=servers
        )
        assert done.returncode == 1
        assert expected in done.stderr
        assert not [*(tmp_path / "data").rglob("*.wav")]


def test_what_is_wrong_is_said_by_field(files: tuple[Path, Path], tmp_path: Path) -> None:
    sample, consent = files
    for arguments, expected in (
        (("add", "Brand", str(sample), "--consent", str(consent)), "name: expected a letter a to z"),
        (("add", "brand", str(consent), "--consent", str(consent)), "sample: expected a WAV file"),
        (("add", "brand", str(sample), "--consent", str(sample)), "consent: expected a text"),
        (("add", "brand", str(tmp_path / "none"), "--consent", str(consent)), "sample: "),
        (("remove", "brand"), "name: expected one of no voice, since there is none, found 'brand'"),
        (("say", "brand", "Hello.", "--out", str(tmp_path / "out.wav")), "name: no voice is named 'brand'"),
    ):
        done = run(*arguments, data_dir=tmp_path / "data", servers="127.0.0.1:1")
        assert done.returncode == 2, done.stderr
        assert expected in done.stderr


def test_an_engine_that_takes_on_no_voices_says_so(files: tuple[Path, Path], tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "data")
    sample, consent = files
    VoiceStore(settings).prepare("brand", sample.read_bytes(), consent.read_bytes(), 1, "test").keep()
    arguments = ("say", "brand", "Hello.", "--out", str(tmp_path / "out.wav"))
    done = run(*arguments, data_dir=settings.data_dir)
    assert (done.returncode, "no tts engine for 5 s" in done.stderr) == (1, True), done.stderr
    with running_host(settings, "tts"):
        done = run(*arguments, data_dir=settings.data_dir)
    assert (done.returncode, "hibari speaks with no voices but its own" in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "out.wav").exists()
