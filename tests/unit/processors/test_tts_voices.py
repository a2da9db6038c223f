"""Voices of one's own: what is kept, who may read it, and what is no sample and no consent."""

import hashlib
import io
import os
import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from processors.tts.voices import CONSENT_BYTES_MAX, VoiceError, VoiceStore, decode
from streams.settings import Settings

CONSENT = "I, Ana Tester, agree. Grüße.".encode()


def wav(seconds: float = 4.0, rate_hz: int = 24_000, channels: int = 1, width: int = 2, loud: float = 0.3) -> bytes:
    """A hum."""
    hum = loud * np.sin(2 * np.pi * 150 * np.arange(round(seconds * rate_hz)) / rate_hz)
    whole = (np.repeat(hum, channels) * ((1 << 31) - 1)).astype("<i4").view(np.uint8).reshape(-1, 4)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        file.writeframes(whole[:, 4 - width :].tobytes())
    return out.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> VoiceStore:
    return VoiceStore(Settings(data_dir=tmp_path))


def test_a_voice_is_kept_whole_and_found_by_name(store: VoiceStore) -> None:
    sample = wav()
    prepared = store.prepare("brand", sample, CONSENT, 17, "local:ana")
    assert store.find("brand") is None
    assert store.all() == []
    prepared.keep()
    voice = store.find("brand")
    assert voice == prepared.voice
    assert store.all() == [voice]
    assert voice is not None
    assert (voice.created_at, voice.created_by, voice.sample_s, voice.sample_rate_hz) == (17, "local:ana", 4.0, 24_000)
    assert voice.sample_sha256 == hashlib.sha256(sample).hexdigest()
    assert voice.consent_sha256 == hashlib.sha256(CONSENT).hexdigest()
    assert store.consent("brand") == CONSENT.decode()
    samples, rate_hz = store.sample("brand")
    assert (len(samples), rate_hz) == (96_000, 24_000)


def test_nobody_else_may_read_it(store: VoiceStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store.prepare("brand", wav(), CONSENT, 17, "x").keep()
    finally:
        os.umask(before)
    paths = [tmp_path / "voices", *(tmp_path / "voices").rglob("*")]
    assert len(paths) == 5
    assert {(path.stat().st_mode & 0o777, path.is_dir()) for path in paths} == {(0o700, True), (0o600, False)}


def test_what_is_not_kept_or_removed_leaves_nothing(store: VoiceStore, tmp_path: Path) -> None:
    store.prepare("brand", wav(), CONSENT, 17, "x").drop()
    store.prepare("brand", wav(), CONSENT, 17, "x").keep()
    store.remove("brand")
    assert list((tmp_path / "voices").iterdir()) == []
    for name in ("brand", "../voices", ""):
        with pytest.raises(VoiceError, match="name: expected one of no voice"):
            store.remove(name)
        with pytest.raises(VoiceError, match="voice: the sample of"):
            store.sample(name)


def test_a_name_is_taken_once(store: VoiceStore) -> None:
    late = store.prepare("brand", wav(), CONSENT, 17, "x")
    store.prepare("brand", wav(5.0), CONSENT, 17, "x").keep()
    with pytest.raises(VoiceError, match="name: expected a new one, 'brand' is taken"):
        late.keep()
    with pytest.raises(VoiceError, match="`trunkline voices remove brand` frees it"):
        store.prepare("brand", wav(), CONSENT, 17, "x")
    assert [voice.sample_s for voice in store.all()] == [5.0]


@pytest.mark.parametrize("name", ["", "Brand", "../etc", "a/b", "a" * 41, "9lives", "brand\n", "."])
def test_a_name_that_is_none_is_refused(store: VoiceStore, name: str) -> None:
    with pytest.raises(VoiceError, match="name: expected a letter a to z"):
        store.prepare(name, wav(), CONSENT, 17, "x")
    assert store.find(name) is None


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (b"", "sample: expected a WAV file of PCM samples"),
        (b"ID3 what is no WAV file", "sample: expected a WAV file of PCM samples"),
        (wav(2.9), "sample: expected 3 to 60 s of speech, found 2.9 s"),
        (wav(60.5, 16_000), "sample: expected 3 to 60 s of speech, found 60.5 s"),
        (wav(rate_hz=8_000), "sample: expected a rate of 16000 to 48000 Hz, found 8000"),
        (wav(rate_hz=96_000), "sample: expected a rate of 16000 to 48000 Hz, found 96000"),
        (wav(channels=3), "sample: expected one channel or two, found 3"),
        (wav(width=1), "sample: expected 16, 24 or 32 bits, found 8"),
        (wav(loud=0.001), "sample: expected speech, found next to silence"),
        (bytes(30_000_000), "sample: expected at most 23105536 bytes, found 30000000"),
    ],
)
def test_what_is_no_good_sample_is_refused_by_what_is_wrong(store: VoiceStore, sample: bytes, expected: str) -> None:
    with pytest.raises(VoiceError) as raised:
        store.prepare("brand", sample, CONSENT, 17, "x")
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("consent", "expected"),
    [
        (b"", "consent: expected a text of 1 to"),
        (b" \n", "consent: expected the words of the consent"),
        (b"\xff\xfe\x00", "consent: expected a text in UTF-8"),
        (b"x" * (CONSENT_BYTES_MAX + 1), "consent: expected a text of 1 to"),
    ],
)
def test_what_is_no_consent_is_refused(store: VoiceStore, consent: bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match=expected):
        store.prepare("brand", wav(), consent, 17, "x")
    assert not (tmp_path / "voices").exists()


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_usual_form_is_the_same_sound(width: int, channels: int) -> None:
    samples, rate_hz = decode(wav(channels=channels, width=width))
    expected = 0.3 * np.sin(2 * np.pi * 150 * np.arange(4 * rate_hz) / rate_hz)
    assert np.abs(samples - expected).max() < 1e-3


def test_a_length_that_the_header_only_claims_is_not_believed(store: VoiceStore) -> None:
    whole = bytearray(wav(4.0))
    whole[40:44] = struct.pack("<I", 0x7FFFFFFF)
    assert store.prepare("brand", bytes(whole), CONSENT, 17, "x").voice.sample_s == 4.0


def test_an_altered_sample_is_not_spoken_with(store: VoiceStore, tmp_path: Path) -> None:
    store.prepare("brand", wav(), CONSENT, 17, "x").keep()
    (tmp_path / "voices" / "brand" / "sample.wav").write_bytes(wav(5.0))
    with pytest.raises(VoiceError, match="the sample of 'brand' is gone or altered"):
        store.sample("brand")


def test_facts_that_cannot_be_read_are_no_voice(store: VoiceStore, tmp_path: Path) -> None:
    store.prepare("brand", wav(), CONSENT, 17, "x").keep()
    (tmp_path / "voices" / "brand" / "voice.json").write_text("{")
    assert store.find("brand") is None
    assert store.all() == []
    store.remove("brand")
