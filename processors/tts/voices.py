"""Voices of one's own: a sample of a person's speech, and that person's consent, each below the data directory.

    voices/NAME/sample.wav   consent.txt   voice.json

Only who runs the platform may read them. A voice is there as a whole or not at all: its folder is made beside the
others under another name, and takes its own at the end.
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import tempfile
import wave
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from streams.settings import Settings

SAMPLE_S_MIN, SAMPLE_S_MAX = 3.0, 60.0
RATE_HZ_MIN, RATE_HZ_MAX = 16_000, 48_000
CONSENT_BYTES_MAX = 64 * 1024
VOICES_MAX = 1000
SAMPLE, CONSENT, FACTS = "sample.wav", "consent.txt", "voice.json"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_FULL_SCALE = {2: 1 << 15, 3: 1 << 23, 4: 1 << 31}
_SILENT = 0.005  # of full scale, root mean square
_SAMPLE_BYTES_MAX = int(SAMPLE_S_MAX) * RATE_HZ_MAX * 2 * 4 + 65_536


class VoiceError(Exception):
    """A voice cannot be had; the text names the field and what is expected there."""


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a voice beside its sample; `created_at` in microseconds since the epoch."""

    name: str
    created_at: int
    created_by: str
    sample_s: float
    sample_rate_hz: int
    sample_sha256: str
    consent_sha256: str


class VoiceStore:
    """The voices of a data directory."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.data_dir / "voices"

    def all(self) -> list[Voice]:
        """All of them by name."""
        names = sorted(path.parent.name for path in self._folder.glob(f"*/{FACTS}"))
        return [voice for name in names if (voice := self.find(name)) is not None]

    def find(self, name: str) -> Voice | None:
        """The voice of that name; None where there is none, or its facts cannot be read."""
        if not _NAME.fullmatch(name):
            return None
        try:
            return msgspec.json.decode((self._folder / name / FACTS).read_bytes(), type=Voice)
        except (OSError, msgspec.MsgspecError):
            return None

    def sample(self, name: str) -> tuple[npt.NDArray[np.float32], int]:
        """The voice's sample as mono of -1 to 1, and its rate in Hz; raises VoiceError where it is gone or altered."""
        voice = self.find(name)
        try:
            data = (self._folder / name / SAMPLE).read_bytes() if voice is not None else b""
        except OSError:
            data = b""
        if voice is None or hashlib.sha256(data).hexdigest() != voice.sample_sha256:
            raise VoiceError(f"voice: the sample of {name!r} is gone or altered")
        return decode(data)

    def consent(self, name: str) -> str:
        """The words of the consent; raises VoiceError where there is no such voice."""
        try:
            return (self._folder / name / CONSENT).read_text(encoding="utf-8")
        except OSError:
            raise VoiceError(f"name: expected a voice that there is, found {name!r}") from None

    def prepare(self, name: str, sample: bytes, consent: bytes, now_us: int, by: str) -> "Prepared":
        """Checks everything and writes it down, under no name yet; raises VoiceError."""
        if not _NAME.fullmatch(name):
            expected = "expected a letter a to z, then at most 39 of a to z, 0 to 9, - and _"
            raise VoiceError(f"name: {expected}, found {name!r}")
        if (self._folder / name).exists():
            raise VoiceError(f"name: expected a new one, {name!r} is taken; `trunkline voices remove {name}` frees it")
        if len(self.all()) >= VOICES_MAX:
            raise VoiceError(f"name: expected at most {VOICES_MAX} voices")
        samples, rate_hz = decode(sample)
        _check_consent(consent)
        voice = Voice(
            name=name,
            created_at=now_us,
            created_by=by,
            sample_s=round(len(samples) / rate_hz, 3),
            sample_rate_hz=rate_hz,
            sample_sha256=hashlib.sha256(sample).hexdigest(),
            consent_sha256=hashlib.sha256(consent).hexdigest(),
        )
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        folder = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        for file, data in ((SAMPLE, sample), (CONSENT, consent), (FACTS, msgspec.json.encode(voice))):
            _write(folder / file, data)
        return Prepared(voice, folder, self._folder / name)

    def remove(self, name: str) -> None:
        """Forgets the voice, sample and consent; raises VoiceError where there is none of that name."""
        if not _NAME.fullmatch(name) or not (self._folder / name).is_dir():
            raise VoiceError(f"name: expected one of {self._names()}, found {name!r}")
        away = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        (self._folder / name).replace(away / name)
        shutil.rmtree(away)

    def _names(self) -> str:
        return ", ".join(voice.name for voice in self.all()) or "no voice, since there is none"


class Prepared:
    """A voice that is whole, and not in use yet."""

    def __init__(self, voice: Voice, folder: Path, place: Path) -> None:
        self.voice = voice
        self._folder = folder
        self._place = place

    def keep(self) -> None:
        """From now on engines find it; raises VoiceError where its name was taken meanwhile."""
        try:
            self._folder.rename(self._place)
        except OSError:
            self.drop()
            raise VoiceError(f"name: expected a new one, {self.voice.name!r} is taken") from None

    def drop(self) -> None:
        """Forgets it."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)


def decode(data: bytes) -> tuple[npt.NDArray[np.float32], int]:
    """A sample as mono of -1 to 1, and its rate in Hz; raises VoiceError for what is no good sample of a voice."""
    if len(data) > _SAMPLE_BYTES_MAX:
        raise VoiceError(f"sample: expected at most {_SAMPLE_BYTES_MAX} bytes, found {len(data)}")
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate_hz, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise VoiceError(f"sample: expected a WAV file of PCM samples ({error})") from None
    if channels not in (1, 2):
        raise VoiceError(f"sample: expected one channel or two, found {channels}")
    if width not in _FULL_SCALE:
        raise VoiceError(f"sample: expected 16, 24 or 32 bits, found {8 * width}")
    if not RATE_HZ_MIN <= rate_hz <= RATE_HZ_MAX:
        raise VoiceError(f"sample: expected a rate of {RATE_HZ_MIN} to {RATE_HZ_MAX} Hz, found {rate_hz}")
    length_s = len(frames) / (channels * width * rate_hz)
    if not SAMPLE_S_MIN <= length_s <= SAMPLE_S_MAX:
        raise VoiceError(f"sample: expected {SAMPLE_S_MIN:g} to {SAMPLE_S_MAX:g} s of speech, found {length_s:.1f} s")
    samples = _samples(frames[: len(frames) // (channels * width) * channels * width], width)
    mono = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    if float(np.sqrt(np.mean(np.square(mono)))) < _SILENT:
        raise VoiceError("sample: expected speech, found next to silence")
    return mono, rate_hz


def _samples(frames: bytes, width: int) -> npt.NDArray[np.float32]:
    if width == 3:  # numpy knows no such number: the bytes become the upper three of four
        padded = np.zeros((len(frames) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        return (padded.reshape(-1).view("<i4") / float(1 << 31)).astype(np.float32)
    return (np.frombuffer(frames, f"<i{width}") / float(_FULL_SCALE[width])).astype(np.float32)


def _check_consent(consent: bytes) -> None:
    if not 0 < len(consent) <= CONSENT_BYTES_MAX:
        raise VoiceError(f"consent: expected a text of 1 to {CONSENT_BYTES_MAX} bytes, found {len(consent)}")
    try:
        text = consent.decode()
    except UnicodeDecodeError:
        raise VoiceError("consent: expected a text in UTF-8") from None
    if not text.strip():
        raise VoiceError("consent: expected the words of the consent, found an empty text")


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
