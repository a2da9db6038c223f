"""What bench callers say: recorded speech at the telephone's rate or the platform's, whole or in fragments.

Where speech ends is judged by its energy, in steps of 20 ms, from the very samples that are sent, as
`trunkline call` does.
"""

import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from api.wav import ROOM_PERCENTILE, Pcm, frame_power, speaking

FRAME_MS = 20
# Pauses of callers who think in mid-sentence: beyond the turn-taking pause, within the completion pause.
THINKING_MS = ((400, 650), (650, 400))
_DIP_MS = 60


@dataclass(frozen=True, slots=False)
class Utterance:
    """One turn of a caller; `words` are what is said in it, `voice` is human or synthetic. PCM is 16-bit mono."""

    name: str
    words: str
    voice: str
    pcm: Pcm
    rate_hz: int

    @cached_property
    def frames(self) -> list[Pcm]:
        """Frames of 20 ms, the last one filled up with silence."""
        size = self.rate_hz * FRAME_MS // 1000
        padded = np.pad(self.pcm, (0, -len(self.pcm) % size))
        return list(padded.reshape(-1, size))

    @cached_property
    def room(self) -> float:
        """The power of the quietest frames."""
        return float(np.percentile(frame_power(self.pcm, self.rate_hz * FRAME_MS // 1000), ROOM_PERCENTILE))

    @cached_property
    def speaking(self) -> NDArray[np.intp]:
        """Which frames have speech in them (see `api.wav.speaking`). Raises ValueError for silence."""
        found = speaking(self.pcm, self.rate_hz * FRAME_MS // 1000)
        if not len(found):
            raise ValueError("there is no speech in the recording")
        return found

    @cached_property
    def speech(self) -> tuple[int, int]:
        """The first and the last frame with speech in it."""
        return int(self.speaking[0]), int(self.speaking[-1])


def load(path: Path, words: str, voice: str, rate_hz: int) -> Utterance:
    """A WAV (PCM16 mono, any rate) at the rate that is asked for."""
    with wave.open(str(path)) as file:
        if file.getnchannels() != 1 or file.getsampwidth() != 2:
            raise ValueError(f"{path}: expected 16-bit mono")
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
        rate = file.getframerate()
    if rate != rate_hz:
        pcm = soxr.resample(pcm, rate, rate_hz).astype(np.int16)
    return Utterance(path.name, words, voice, pcm, rate_hz)


def fragmented(one: Utterance, pauses_ms: Sequence[int] = THINKING_MS[0]) -> Utterance:
    """The utterance with a pause at the quietest place near each of its equal parts' borders, so between two sounds.

    Silence that is there already counts: the pauses are as long as they are said to be. They are as loud as the room.
    """
    size = one.rate_hz * FRAME_MS // 1000
    first, last = one.speech[0] * size, (one.speech[1] + 1) * size
    length = last - first
    pieces, before = [], 0
    for number, pause_ms in enumerate(pauses_ms, 1):
        border = first + length * number // (len(pauses_ms) + 1)
        cut = quietest(one.pcm, border, length // (3 * len(pauses_ms) + 3), one.rate_hz)
        silence_ms = max(0, pause_ms - _quiet_ms(one, cut // size))
        room = noise(one.rate_hz * silence_ms // 1000, float(np.sqrt(one.room)))
        pieces += [one.pcm[before:cut], room.astype(np.int16)]
        before = cut
    pieces.append(one.pcm[before:])
    return replace(one, name=f"{one.name}, in fragments", pcm=np.concatenate(pieces))


def _quiet_ms(one: Utterance, frame: int) -> int:
    """How long nothing is said around a frame."""
    after = int(np.searchsorted(one.speaking, frame))
    if not 0 < after < len(one.speaking) or one.speaking[after] == frame:
        return 0
    return int(one.speaking[after] - one.speaking[after - 1] - 1) * FRAME_MS


def noise(samples: int, level: float) -> NDArray[np.float32]:
    """White noise, always the same."""
    return np.random.default_rng(7).normal(0, level, samples).astype(np.float32)


def quietest(pcm: Pcm, around: int, reach: int, rate_hz: int) -> int:
    """The middle of the quietest stretch within `reach` samples of `around`."""
    width = rate_hz * _DIP_MS // 1000
    start = max(0, around - reach)
    power = pcm[start : around + reach + width].astype(np.float64) ** 2
    sums = np.convolve(power, np.ones(width), "valid")
    return start + int(np.argmin(sums)) + width // 2
