"""Callers bring WAV files of every kind; what is no audio is refused by name."""

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from api.wav import WavError, decode_wav, read_wav, speech_end, write_stereo
from bench.utterances import Utterance
from streams.settings import REPOSITORY


def chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def wav(samples: bytes, *, code: int, channels: int, rate: int, bits: int, extensible: bool = False) -> bytes:
    width = channels * bits // 8
    body = struct.pack("<HHIIHH", 0xFFFE if extensible else code, channels, rate, rate * width, width, bits)
    if extensible:
        body += struct.pack("<HHIH", 22, bits, 0, code) + b"\0" * 14
    return riff(chunk(b"fmt ", body), chunk(b"LIST", b"odd"), chunk(b"data", samples))


def tone(rate: int, seconds: float = 0.5) -> NDArray[np.float64]:
    wave_of: NDArray[np.float64] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return wave_of


def encode(values: NDArray[np.float64], code: int, bits: int) -> bytes:
    if code == 3:
        return values.astype(f"<f{bits // 8}").tobytes()
    if bits == 8:
        return np.rint(values * 127 + 128).astype(np.uint8).tobytes()
    if bits == 24:
        return b"".join(int(value).to_bytes(3, "little", signed=True) for value in np.rint(values * (2**23 - 1)))
    return np.rint(values * (2.0 ** (bits - 1) - 1)).astype(f"<i{bits // 8}").tobytes()


@pytest.mark.parametrize(("code", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("extensible", [False, True])
def test_every_kind_becomes_pcm16_mono_16k(code: int, bits: int, rate: int, channels: int, extensible: bool) -> None:
    values = np.repeat(tone(rate), channels)
    data = wav(encode(values, code, bits), code=code, channels=channels, rate=rate, bits=bits, extensible=extensible)
    pcm = decode_wav(data, "x.wav")
    assert pcm.dtype == np.int16
    assert abs(len(pcm) - 8_000) <= 2
    middle = slice(1_000, 7_000)
    error = pcm[middle] / 32768.0 - tone(16_000)[middle]
    assert np.sqrt(np.mean(error**2)) < 0.01


def test_channels_are_mixed_evenly() -> None:
    left_only = np.stack([tone(16_000), np.zeros(8_000)], axis=1).reshape(-1)
    pcm = decode_wav(wav(encode(left_only, 1, 16), code=1, channels=2, rate=16_000, bits=16), "x.wav")
    assert abs(int(np.abs(pcm).max()) - 8192) < 10


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"ID3\x04 some music", "MP3"),
        (b"hello, this is a text file", "no WAV file"),
        (riff(chunk(b"data", b"\0\0")), "before their format"),
        (riff(chunk(b"fmt ", b"\1\0")), "expected 16 or more"),
        (riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16))), "'data'"),
        (wav(b"", code=1, channels=1, rate=16_000, bits=16), "no samples"),
        (wav(b"\0" * 4, code=7, channels=1, rate=8_000, bits=8), "compressed"),
        (wav(b"\0" * 4, code=1, channels=0, rate=8_000, bits=8), "0 channels"),
        (wav(b"\0" * 4, code=1, channels=1, rate=0, bits=8), "0 Hz"),
        (wav(b"\0" * 4, code=1, channels=1, rate=8_000, bits=12), "12 bits"),
        (wav(struct.pack("<f", float("nan")), code=3, channels=1, rate=8_000, bits=32), "finite"),
    ],
)
def test_what_is_no_audio_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(WavError, match=r"turn-3\.wav: .*expected") as caught:
        decode_wav(data, "turn-3.wav")
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WavError, match=r"gone\.wav: cannot be read"):
        read_wav(tmp_path / "gone.wav")


def test_a_file_cut_off_while_written_gives_what_is_there() -> None:
    whole = wav(encode(tone(16_000), 1, 16), code=1, channels=1, rate=16_000, bits=16)
    assert len(decode_wav(whole[:-4_001], "x.wav")) == 8_000 - 2_001


def test_end_of_speech_is_the_last_loud_frame_and_not_a_click() -> None:
    pcm = np.zeros(16_000, np.int16)
    pcm[3_200:6_400] = (tone(16_000)[:3_200] * 32767).astype(np.int16)
    pcm[12_000] = 20_000
    assert speech_end(pcm, 320) == 19
    assert speech_end(np.zeros(1_000, np.int16), 320) == -1
    assert speech_end(np.zeros(0, np.int16), 320) == -1


def test_a_soft_end_is_speech_and_the_noise_of_a_room_is_none() -> None:
    room = np.random.default_rng(1).normal(0, 60, 16_000)
    loud = room.copy()
    loud[3_200:6_400] += tone(16_000)[:3_200] * 20_000
    assert speech_end(loud.astype(np.int16), 320) == 19
    loud[6_400:6_720] += tone(16_000)[:320] * 20_000 / 20
    assert speech_end(loud.astype(np.int16), 320) == 20


def test_the_release_of_a_last_consonant_is_speech() -> None:
    pcm = np.zeros(16_000, np.int16)
    pcm[3_200:6_400] = (tone(16_000)[:3_200] * 32767).astype(np.int16)
    pcm[9_600:9_920] = 4_000
    assert speech_end(pcm, 320) == 30


def test_benchmarks_and_callers_know_one_end_of_speech() -> None:
    for path in sorted((REPOSITORY / "infra/demo").glob("*.wav")):
        pcm = read_wav(path)
        assert Utterance(path.name, "", "", pcm, 16_000).speech[1] == speech_end(pcm, 320)


def test_stereo_holds_both_tracks_aligned(tmp_path: Path) -> None:
    path = tmp_path / "reply.wav"
    write_stereo(path, np.array([1, 2, 3], np.int16), np.array([9], np.int16))
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 16_000, 3)
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [1, 9, 2, 0, 3, 0]
