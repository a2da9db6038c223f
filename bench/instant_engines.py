"""Engines that answer at once, so that what is left to measure is the platform.

`TRUNKLINE_ENGINES__STT=bench.instant_engines:stt`, and so on. The caller asks whether anybody hears, whatever was
said; the answer is a second of a tone for each sentence.
"""

import hashlib
import re
from collections.abc import Iterator

import numpy as np

from processors.engine import (
    Capabilities,
    Embed,
    Embedded,
    Engine,
    EngineError,
    Generate,
    Generated,
    HeardWord,
    Reply,
    Request,
    Speak,
    Spoken,
    Transcribe,
    Transcribed,
)
from streams.settings import Settings

TEXT = "Hello, can you hear me?"  # few words: what has more than the audio can hold is taken for garbage
ENVIRONMENT = {
    f"TRUNKLINE_ENGINES__{role.upper()}": f"bench.instant_engines:{role}"
    for role in ("stt", "embeddings", "llm", "tts")
}
SPOKEN_MS = 1000
_CHUNK_MS = 200
_DIMENSIONS = 384
_MODEL = "instant"


def _tone() -> bytes:
    """Loud enough to be heard; a caller's energy tells no speech from it."""
    samples = np.arange(16 * SPOKEN_MS)
    return (6000 * np.sin(samples * 2 * np.pi * 440 / 16000)).astype("<i2").tobytes()


_TONE = _tone()


def _vector(text: str) -> bytes:
    """A unit vector of the words alone: the same for the same words, nearly at right angles to all others."""
    words = " ".join(re.findall(r"\w+", text.lower()))
    seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8])
    vector = np.random.default_rng(seed).standard_normal(_DIMENSIONS).astype("<f4")
    return bytes((vector / np.linalg.norm(vector)).astype("<f4").tobytes())


class InstantEngine:
    """See `processors.engine.Engine`."""

    def __init__(self, role: str) -> None:
        self._role = role

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return Capabilities(self._role, _MODEL, streaming=True, concurrency=4)

    def warm(self) -> None:
        """See `Engine`; there is nothing to warm."""

    def answer(self, request: Request) -> Iterator[Reply]:
        """See `Engine`."""
        match request:
            case Transcribe():
                yield _transcribed(len(request.pcm) // 32)
            case Embed():
                yield Embedded(b"".join(map(_vector, request.texts)), _DIMENSIONS, _MODEL, 0.0)
            case Generate():
                yield Generated("Yes.", _MODEL, 1, 1, 0.0)
            case Speak():
                step = _CHUNK_MS * 32
                for start in range(0, len(_TONE), step):
                    yield Spoken(_TONE[start : start + step], _MODEL, 0.0)
            case _:
                raise EngineError("invalid", f"expected a model's request, found {type(request).__name__}")


def _transcribed(audio_ms: int) -> Transcribed:
    words = TEXT.split()
    step_ms = max(1, audio_ms // len(words))
    heard = [HeardWord(word, n * step_ms, (n + 1) * step_ms, 0.95) for n, word in enumerate(words)]
    return Transcribed(TEXT, tuple(heard), 0.95, "en", _MODEL, 0.0)


def stt(settings: Settings) -> Engine:
    """Hears `TEXT` in everything."""
    return InstantEngine("stt")


def embeddings(settings: Settings) -> Engine:
    """Tells texts apart, and nothing else."""
    return InstantEngine("embeddings")


def llm(settings: Settings) -> Engine:
    """Says yes."""
    return InstantEngine("llm")


def tts(settings: Settings) -> Engine:
    """Hums."""
    return InstantEngine("tts")
