"""Speech that can be checked: words as PCM, so that a lost or doubled frame changes what is heard.

A caller's word is 16 blocks of 200 samples; every sample of a block says which word and which block it is. The agent's
sentence is a ramp of samples that only this text has. Silence is zeros; a cough is loud and has no words.
"""

import zlib
from functools import lru_cache

import numpy as np

from processors.engine import HeardWord, Transcribed
from processors.stt.state import WINDOW_BYTES

RATE_HZ = 16_000
BLOCK = 200
BLOCKS = 16
WORD_MS = BLOCK * BLOCKS * 1000 // RATE_HZ
BROKEN = "[broken]"
ENOUGH = BLOCKS // 2  # at the end of the audio, half a word is understood
COUGH = 32_767

_words: dict[str, int] = {}
_names: list[str] = []


def silence(ms: int) -> bytes:
    """So much of nothing."""
    return bytes(2 * RATE_HZ * ms // 1000)


def cough(ms: int) -> bytes:
    """So much of a cough."""
    return np.full(RATE_HZ * ms // 1000, COUGH, "<i2").tobytes()


@lru_cache(maxsize=500)
def say(text: str) -> bytes:
    """A caller's words, without pauses between them."""
    pieces = []
    for word in text.split():
        if word not in _words:
            _words[word] = len(_names)
            _names.append(word)
        first = 1 + _words[word] * BLOCKS
        pieces.append(np.repeat(np.arange(first, first + BLOCKS, dtype="<i2"), BLOCK).tobytes())
    return b"".join(pieces)


@lru_cache(maxsize=2000)
def hear(pcm: bytes) -> tuple[HeardWord, ...]:
    """The words in the audio; what is not exactly a word is broken, unless it is still being said at the end."""
    samples = np.frombuffer(pcm, "<i2")
    starts = np.concatenate(([0], np.flatnonzero(np.diff(samples)) + 1)) if len(samples) else np.zeros(0, np.int64)
    ends = np.append(starts[1:], len(samples))
    heard: list[HeardWord] = []
    expected, began, word = 0, 0, 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        value = int(samples[start])
        word, block = divmod(value - 1, BLOCKS)
        whole = end - start == BLOCK
        if value in (0, COUGH) and expected == 0:
            continue
        if value in (0, COUGH) or block != expected or not whole:
            if end == len(samples) and value not in (0, COUGH) and block == expected and end - start < BLOCK:
                expected = block
                break
            heard.append(_word(BROKEN, start, end))
            expected = 0
            continue
        began = start if block == 0 else began
        expected = (block + 1) % BLOCKS
        if expected == 0:
            heard.append(_word(_names[word], began, end))
    if expected >= ENOUGH:
        heard.append(_word(_names[word], began, len(samples)))
    return tuple(heard)


def _word(name: str, start: int, end: int) -> HeardWord:
    return HeardWord(name, start * 1000 // RATE_HZ, end * 1000 // RATE_HZ, 0.9)


def transcribe(pcm: bytes, compute_ms: float) -> Transcribed:
    """What a perfect engine would hear."""
    words = hear(pcm)
    return Transcribed(" ".join(word.word for word in words), words, 0.9, "en", "simulated", compute_ms)


def detect(state: bytes, windows: bytes) -> tuple[list[float], bytes]:
    """A perfect `Detector`."""
    every = (windows[at : at + WINDOW_BYTES] for at in range(0, len(windows), WINDOW_BYTES))
    return [0.0 if window.count(0) == len(window) else 1.0 for window in every], b"detector"


@lru_cache(maxsize=2000)
def voice(text: str) -> bytes:
    """The agent's speech of a sentence: 8 ms for each character."""
    count = 128 * len(text)
    return ((np.arange(count) + zlib.crc32(text.encode())) % 30_000 + 1).astype("<i2").tobytes()
