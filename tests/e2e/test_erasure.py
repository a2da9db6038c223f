"""A call is erased on the real platform: its words and its audio are in no file any more, and a certificate says so."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from api.client import load_turns, place_call
from processors.clickhouse.rows import TABLES, personal_columns
from schemas.event import Event
from schemas.events import AudioFrame, SpeechChunk, Transcript, TranscriptKind
from streams.codec import BuiltInIds, Codec
from streams.consumer import session_records
from streams.keyring import Keyring
from streams.kms import key_management
from streams.settings import REPOSITORY
from tests.support.platform import Platform, running_platform

SPEECH = REPOSITORY / "tests" / "data" / "speech"
CALLS = (SPEECH / "librivox_0880.wav", SPEECH / "librivox_0920.wav")


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with running_platform() as running:
        yield running


async def events_of(platform: Platform, session_id: str) -> list[Event]:
    """Opened with the keys as they are now: none is remembered from before an erase."""
    codec = Codec(BuiltInIds(), Keyring(platform.settings.keys_dir, key_management(platform.settings)))
    records = await session_records(platform.settings, session_id)
    return [codec.decode(record.topic, record.value) for record in records]


def secrets_of(events: list[Event]) -> set[bytes]:
    """Phrases of the caller, each of several words, and pieces of both sides' sound."""
    secrets, pieces = set(), []
    for event in events:
        if isinstance(event, Transcript) and event.kind is TranscriptKind.FINAL:
            words = event.text.split()
            secrets |= {" ".join(words[at : at + 3]).encode() for at in range(len(words) - 2)}
        if isinstance(event, AudioFrame | SpeechChunk) and len(event.pcm) >= 64:
            # From the loudest sample on: silence is in many files.
            samples = np.frombuffer(event.pcm, "<i2").astype(int)
            start = 2 * min(int(abs(samples).argmax()), len(samples) - 16)
            pieces.append(event.pcm[start : start + 32])
    pieces = [piece for piece in pieces if len(set(piece)) > 16]
    return secrets | set(pieces[:: max(1, len(pieces) // 40)])


def found_in(data_dir: Path, secrets: set[bytes]) -> dict[str, int]:
    """How many of the secrets each file holds, of those that hold any."""
    found = {}
    for path in data_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes().rstrip(b"\0")  # Kafka's indexes are mostly space to grow
            if count := sum(secret in content for secret in secrets):
                found[str(path.relative_to(data_dir))] = count
    return found


def words_in_rows(platform: Platform, session_id: str) -> int:
    """Rows of the call that hold something personal."""
    return sum(
        platform.number(
            f"SELECT count() FROM {table} WHERE session_id = '{session_id}' AND NOT ("
            + " AND ".join(f"empty(assumeNotNull({name}))" for name in columns)
            + ")"
        )
        for event, table in TABLES.items()
        if (columns := personal_columns(event))
    )


async def test_an_erased_call_is_in_no_file(platform: Platform, tmp_path: Path) -> None:
    result = await place_call(platform.url, load_turns(CALLS[:1]))
    kept = await place_call(platform.url, load_turns(CALLS[1:]))
    session_id = result.session_id
    events = await events_of(platform, session_id)
    secrets = secrets_of(events)
    assert len([secret for secret in secrets if len(secret) == 32]) > 20
    await platform.counted(f"SELECT count() FROM sessions WHERE session_id = '{session_id}' AND kind = 'ended'", 1)
    assert words_in_rows(platform, session_id) > 0
    assert found_in(platform.data_dir, {session_id.encode()}), "what is there is found"

    (signed,) = platform.rows("erase", session_id, "--reason", "asked for")

    assert found_in(platform.data_dir, secrets) == {}
    assert words_in_rows(platform, session_id) == 0
    platform.run("audit", "verify", session_id)
    for event in await events_of(platform, session_id):
        assert not any(getattr(event, name) for name in event.PII)

    made = signed["certificate"]
    assert (made["session_id"], made["tenant"], made["reason"]) == (session_id, "demo", "asked for")
    assert made["stores"]["kafka"]["voice.transcripts"]["records"] > 0
    assert all(counts["readable"] == 0 for counts in made["stores"]["kafka"].values())
    assert made["stores"]["clickhouse"]["rows"]["transcripts"] > 0
    file = platform.data_dir / "certificates" / f"{session_id}.json"
    assert json.loads(file.read_text()) == signed
    assert "signed, unaltered" in platform.run("erase", "--verify", str(file))
    made["reason"] = "nobody asked"
    (tmp_path / "altered.json").write_text(json.dumps(signed))
    with pytest.raises(AssertionError, match="the content is not what was signed"):
        platform.run("erase", "--verify", str(tmp_path / "altered.json"))

    assert words_in_rows(platform, kept.session_id) > 0, "other calls stay"
    assert any(event.text for event in await events_of(platform, kept.session_id) if isinstance(event, Transcript))


async def test_it_is_still_erased_after_the_platform_was_started_again(platform: Platform) -> None:
    result = await place_call(platform.url, load_turns(CALLS[:1]))
    secrets = secrets_of(await events_of(platform, result.session_id))
    platform.run("erase", result.session_id)
    platform.run("down")
    platform.up()
    assert found_in(platform.data_dir, secrets) == {}
    assert words_in_rows(platform, result.session_id) == 0
    assert "is erased" in platform.run("erase", result.session_id), "asked again, it is certified again"


def test_what_cannot_be_erased_is_said(platform: Platform) -> None:
    for arguments, why in [
        (["no-such-session"], "no session 'no-such-session' is in the log"),
        ([], "either SESSION or --caller ID is expected"),
        (["one", "--caller", "two"], "either SESSION or --caller ID is expected"),
        (["--caller", "+15550100"], "no session of that caller"),
        (["--verify", str(REPOSITORY / "README.md")], "a signed certificate is expected"),
    ]:
        with pytest.raises(AssertionError, match=why):
            platform.run("erase", *arguments)
