"""WAV files as callers have them, read as the platform hears them (PCM16 mono at 16,000 Hz); calls written as WAV."""

import io
import math
import struct
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_RATES_HZ = range(1_000, 768_001)
_CHANNELS_MAX = 64

ROOM_PERCENTILE = 5  # the quietest frames are the room
_FULL_SCALE_DB = 10 * math.log10(32768**2)
_SILENT_DB = -55.0
# Breath is further below the loudest frame than that.
_BELOW_LOUDEST_DB = 35.0
# In some recordings the room is near: their noise around the words is no speech.
_ABOVE_ROOM_DB = 10.0
# But what is so loud speaks, whatever seems to be the room: in a recording without pauses that is soft speech.
_SPEAKS_BELOW_LOUDEST_DB = 15.0
# The release of a last "t" is a single frame, too, but follows the vowel within that.
_CLICK_APART_FRAMES = 12

Pcm = NDArray[np.int16]


class WavError(ValueError):
    """The file is no audio that can be read; the message names the file and what was expected."""


@dataclass(frozen=True, slots=True)
class _Format:
    code: int
    channels: int
    sample_rate_hz: int
    bits: int


def read_wav(path: Path) -> Pcm:
    """The file's audio as int16 mono at 16,000 Hz, (n,); all channels are mixed evenly.

    Reads integer WAV of 8, 16, 24 and 32 bits and float WAV of 32 and 64 bits, of any rate and channel count.
    Raises WavError for everything else, and for a file that holds no samples.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WavError(f"{path}: cannot be read ({error.strerror}); expected a WAV file") from error
    return decode_wav(data, str(path))


def decode_wav(data: bytes, name: str) -> Pcm:
    """Like `read_wav`, for bytes that are already there; `name` is what errors call them."""
    wav_format, samples = _parse(data, name)
    mono = _samples(samples, wav_format, name).reshape(-1, wav_format.channels).mean(axis=1)
    if not len(mono):
        raise WavError(f"{name}: holds no samples; expected audio")
    if wav_format.sample_rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, wav_format.sample_rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    pcm: Pcm = np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)
    return pcm


def _parse(data: bytes, name: str) -> tuple[_Format, bytes]:
    if len(data) < 12 or data[:4] not in (b"RIFF", b"RIFX") or data[8:12] != b"WAVE":
        raise WavError(f"{name}: is no WAV file ({_guess(data)}); expected RIFF/WAVE with PCM or float samples")
    if data[:4] == b"RIFX":
        raise WavError(f"{name}: is a big-endian WAV file; expected little-endian (RIFF)")
    wav_format: _Format | None = None
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        body = data[at + 8 : at + 8 + size]
        if kind == b"fmt ":
            wav_format = _format(body, name)
        elif kind == b"data":
            if wav_format is None:
                raise WavError(f"{name}: its samples come before their format; expected a 'fmt ' chunk first")
            return wav_format, body
        at += 8 + size + size % 2
    missing = "'data'" if wav_format else "'fmt '"
    raise WavError(f"{name}: has no {missing} chunk; expected a complete WAV file")


def _format(body: bytes, name: str) -> _Format:
    if len(body) < 16:
        raise WavError(f"{name}: its 'fmt ' chunk has {len(body)} bytes; expected 16 or more")
    code, channels, sample_rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if code == _EXTENSIBLE and len(body) >= 26:
        code = struct.unpack_from("<H", body, 24)[0]
    if not 1 <= channels <= _CHANNELS_MAX:
        raise WavError(f"{name}: has {channels} channels; expected 1 to {_CHANNELS_MAX}")
    if sample_rate_hz not in _RATES_HZ:
        expected = f"{_RATES_HZ.start} to {_RATES_HZ.stop - 1}"
        raise WavError(f"{name}: has a sample rate of {sample_rate_hz} Hz; expected {expected}")
    allowed = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}.get(code)
    if allowed is None:
        raise WavError(f"{name}: is compressed (WAV format {code}); expected integer PCM (1) or float (3)")
    if bits not in allowed:
        raise WavError(f"{name}: has samples of {bits} bits; expected {', '.join(map(str, allowed))}")
    return _Format(code, channels, sample_rate_hz, bits)


def _samples(data: bytes, wav_format: _Format, name: str) -> NDArray[np.float64]:
    """Interleaved samples in [-1, 1); a half frame at the end is dropped."""
    frame_size = wav_format.channels * wav_format.bits // 8
    data = data[: len(data) - len(data) % frame_size]
    if wav_format.code == _FLOAT:
        values = np.frombuffer(data, f"<f{wav_format.bits // 8}").astype(np.float64)
        if not np.isfinite(values).all():
            raise WavError(f"{name}: holds samples that are not finite numbers; expected floats from -1 to 1")
        return np.clip(values, -1.0, 1.0)
    if wav_format.bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128.0) / 128.0
    if wav_format.bits == 24:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return padded.reshape(-1).view("<i4").astype(np.float64) / 2**31
    return np.frombuffer(data, f"<i{wav_format.bits // 8}").astype(np.float64) / float(2 ** (wav_format.bits - 1))


def _guess(data: bytes) -> str:
    known = {b"ID3": "MP3", b"\xff\xfb": "MP3", b"OggS": "Ogg", b"fLaC": "FLAC", b"FORM": "AIFF"}
    for start, kind in known.items():
        if data.startswith(start):
            return f"it looks like {kind}"
    return "empty" if not data else "unknown content"


def speaking(pcm: Pcm, frame: int) -> NDArray[np.intp]:
    """The indices of the frames that hold speech, by energy. `frame` is 20 ms of samples; the last one is filled up.

    A frame speaks when its power is within 35 dB of the loudest one's and 10 dB above the room's, or within 15 dB of
    the loudest in any case. One that is alone for 240 ms on both sides is a click. Nothing speaks where all is silent.
    """
    power = frame_power(pcm, frame)
    level_db = 10 * np.log10(power + 1e-12) - _FULL_SCALE_DB
    loudest_db = float(level_db.max(initial=-np.inf))
    if loudest_db < _SILENT_DB:
        return np.zeros(0, np.intp)
    floor_db = max(loudest_db - _BELOW_LOUDEST_DB, float(np.percentile(level_db, ROOM_PERCENTILE)) + _ABOVE_ROOM_DB)
    found = np.flatnonzero(level_db > min(floor_db, loudest_db - _SPEAKS_BELOW_LOUDEST_DB))
    near = np.diff(found) <= _CLICK_APART_FRAMES
    return found[np.append(near, False) | np.insert(near, 0, False)]


def speech_end(pcm: Pcm, frame: int) -> int:
    """The index of the last frame that holds speech (see `speaking`); -1 when there is none."""
    found = speaking(pcm, frame)
    return int(found[-1]) if len(found) else -1


def frame_power(pcm: Pcm, frame: int) -> NDArray[np.float64]:
    """Of each frame: the mean of its samples' squares."""
    frames = -(-len(pcm) // frame)
    padded = np.zeros(frames * frame)
    padded[: len(pcm)] = pcm
    power: NDArray[np.float64] = np.mean(padded.reshape(frames, frame) ** 2, axis=1)
    return power


def write_stereo(path: Path, left: Pcm, right: Pcm) -> None:
    """Writes two tracks of 16,000 Hz side by side; the shorter one is filled up with silence."""
    both = np.zeros((max(len(left), len(right)), 2), "<i2")
    both[: len(left), 0] = left
    both[: len(right), 1] = right
    _write(path, both.tobytes(), channels=2)


def write_mono(path: Path, pcm: bytes) -> None:
    """Writes one track: PCM16 little-endian of 16,000 Hz."""
    _write(path, pcm, channels=1)


def _write(path: Path, frames: bytes, channels: int) -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE_HZ)
        out.writeframes(frames)
    path.write_bytes(buffer.getvalue())
