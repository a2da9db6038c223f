"""The pauses that `bench.turns` finds, with a detector that hears loudness alone."""

from typing import Any, cast

import numpy as np

from bench.recordings import Samples
from bench.turns import silences
from bench.utterances import noise
from processors.stt.state import SAMPLE_RATE_HZ, WINDOW_SAMPLES


class LoudDetector:
    """Speech is what is loud."""

    def __call__(self, state: bytes, windows: bytes) -> tuple[list[float], bytes]:
        peaks = np.abs(np.frombuffer(windows, "<i2").reshape(-1, WINDOW_SAMPLES)).max(axis=1)
        return (peaks > 3000).astype(float).tolist(), b""


def tone(ms: int) -> Samples:
    at = np.arange(ms * SAMPLE_RATE_HZ // 1000)
    return (0.5 * np.sin(2 * np.pi * 300 * at / SAMPLE_RATE_HZ)).astype(np.float32)


def quiet(ms: int) -> Samples:
    return noise(ms * SAMPLE_RATE_HZ // 1000, 0.0003)


def found(*pieces: Samples) -> list[tuple[int, int | None]]:
    said = np.concatenate([quiet(400), *pieces])
    return [
        (one.end // 16, one.lasted_ms)
        for one in silences(cast(Any, LoudDetector()), said)
        if len(one.pcm) > 2 * 320 * 16
    ]


def test_pauses_and_the_end_are_found_with_their_lengths() -> None:
    (first, lasted_ms), (second, nothing) = found(tone(600), quiet(500), tone(600), quiet(900))
    assert abs(first - 1000) <= 40
    assert lasted_ms is not None
    assert 440 <= lasted_ms <= 520
    assert abs(second - 2100) <= 40
    assert nothing is None


def test_a_gap_within_a_word_is_no_pause() -> None:
    assert len(found(tone(600), quiet(40), tone(600), quiet(900))) == 1
