"""Speech as it is made: resampled, and without the silence at its ends."""

import numpy as np
import numpy.typing as npt
import pytest

from processors.tts.trimmer import CHUNK_BYTES, HEAD_MS, LEAD_MS, OUT_HZ, QUIET, TAIL_MS, Trimmer, pieces

RATE_HZ = 24_000


def tone(length_ms: int) -> npt.NDArray[np.float32]:
    times = np.arange(RATE_HZ * length_ms // 1000) / RATE_HZ
    return (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def silence(length_ms: int) -> npt.NDArray[np.float32]:
    return np.zeros(RATE_HZ * length_ms // 1000, np.float32)


def trimmed(wave: npt.NDArray[np.float32], step: int = 5000) -> bytes:
    trimmer = Trimmer(RATE_HZ)
    fed = [trimmer.feed(wave[start : start + step]) for start in range(0, len(wave), step)]
    return b"".join([*fed, trimmer.finish()])


def length_ms(pcm: bytes) -> float:
    return 1000 * len(pcm) / 2 / OUT_HZ


def test_silence_at_both_ends_is_cut_and_that_within_stays() -> None:
    pcm = trimmed(np.concatenate((silence(700), tone(300), silence(500), tone(300), silence(900))))
    assert length_ms(pcm) == pytest.approx(LEAD_MS + 1100 + TAIL_MS, abs=2)
    samples = np.abs(np.frombuffer(pcm, "<i2").astype(np.int32))
    assert 1000 * np.flatnonzero(samples > QUIET * 32_768)[0] / OUT_HZ == pytest.approx(LEAD_MS, abs=1)
    assert samples.max() == pytest.approx(0.5 * 32_767, rel=0.02)


@pytest.mark.parametrize(("soft_ms", "kept_ms"), [(10, 10), (25, 25), (100, HEAD_MS)])
def test_a_soft_onset_is_kept(soft_ms: int, kept_ms: int) -> None:
    soft = tone(soft_ms) * 0.012  # below what counts as speech, but to be heard
    pcm = trimmed(np.concatenate((silence(300), soft, tone(300), silence(300))))
    samples = np.abs(np.frombuffer(pcm, "<i2").astype(np.int32))
    loud_ms = 1000 * np.flatnonzero(samples > QUIET * 32_768)[0] / OUT_HZ
    assert loud_ms == pytest.approx(LEAD_MS + kept_ms, abs=2)


def test_the_same_speech_is_the_same_however_it_is_cut() -> None:
    wave = np.concatenate((silence(100), tone(400), silence(50), tone(20), silence(10)))
    assert trimmed(wave, 700) == trimmed(wave, len(wave))


@pytest.mark.parametrize("wave", [silence(0), silence(3000)])
def test_where_there_is_no_sound_there_is_nothing(wave: npt.NDArray[np.float32]) -> None:
    assert trimmed(wave) == b""


def test_sound_is_passed_on_before_the_sentence_is_whole() -> None:
    trimmer = Trimmer(RATE_HZ)
    assert trimmer.feed(silence(1000)) == b""
    assert length_ms(trimmer.feed(tone(500))) > 400


def test_pieces_are_small_and_whole() -> None:
    pcm = bytes(range(256)) * 100
    cut = list(pieces(pcm))
    assert b"".join(cut) == pcm
    assert all(len(piece) <= CHUNK_BYTES and len(piece) % 2 == 0 for piece in cut)
    assert list(pieces(b"")) == []
