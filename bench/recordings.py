"""Recordings with known words for what is measured without a platform, and what the telephone leaves of them."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from api.audio import Doubler, Halver, mulaw_to_pcm, pcm_to_mulaw
from api.demo import SCRIPT, Script
from bench import utterances
from bench.voice import human_speech
from processors.engine import Transcribe, Transcribed
from processors.stage import event_id
from processors.stt.state import SAMPLE_RATE_HZ
from processors.stt.whisper import WhisperEngine
from schemas.events import AudioFrame
from streams.yamlfile import load_yaml

FRAME_SAMPLES = 640  # 40 ms

_SNR_DB = 20

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording of one whole turn; `voice` is human or synthetic."""

    samples: Samples
    words: str
    voice: str


def clips() -> list[Clip]:
    """All recordings with known words."""
    script = load_yaml(SCRIPT, Script)
    turns = [turn for turn in script.turns if turn.voice != "human"]
    human = [load(path, words) for path, words in human_speech()]
    return human + [load(SCRIPT.parent / turn.file, turn.says, "synthetic") for turn in turns]


def load(path: Path, words: str = "", voice: str = "human") -> Clip:
    """A WAV: PCM16 mono at any rate; raises ValueError for another."""
    one = utterances.load(path, words, voice, SAMPLE_RATE_HZ)
    return Clip(of_pcm(one.pcm.tobytes()), words, voice)


def telephone(samples: Samples) -> Samples:
    """What is left of it after 8,000 Hz and mu-law, by the gateway's own filters."""
    return of_pcm(Doubler().process(mulaw_to_pcm(pcm_to_mulaw(Halver().process(pcm_of(samples))))))


def noisy(samples: Samples) -> Samples:
    """The telephone in a room with white noise, 20 dB below the speech."""
    loud = samples[np.abs(samples) > 0.01]
    level = np.sqrt(np.mean(loud**2) / 10 ** (_SNR_DB / 10))
    return telephone(samples + utterances.noise(len(samples), float(level)))


CONDITIONS: dict[str, Callable[[Samples], Samples]] = {
    "clean": lambda samples: samples,
    "telephone": telephone,
    "telephone and noise": noisy,
}


def frames(pcm: bytes, agent: str) -> Iterator[AudioFrame]:
    """The audio as the gateway writes it into the log."""
    for number in itertools.count():
        piece = pcm[2 * FRAME_SAMPLES * number : 2 * FRAME_SAMPLES * (number + 1)]
        if len(piece) < 2 * FRAME_SAMPLES:
            return
        yield AudioFrame(
            event_id=event_id("call", str(number)),
            session_id="call",
            tenant_id="bench",
            agent_id=agent,
            turn=0,
            seq=number,
            occurred_at=0,
            pcm=piece,
            sample_index=FRAME_SAMPLES * number,
            captured_at=FRAME_SAMPLES * (number + 1) * 1_000_000 // SAMPLE_RATE_HZ,
        )


def read(engine: WhisperEngine, request: Transcribe) -> Transcribed:
    """The engine's reading that counts, here and now; its `compute_ms` are those of all of the answer."""
    replies = [reply for reply in engine.answer(request) if isinstance(reply, Transcribed)]
    return msgspec.structs.replace(replies[-1], compute_ms=sum(reply.compute_ms for reply in replies))


def quietest(samples: Samples, at_ms: int) -> int:
    """The quietest place around there, so that a cut itself makes no sound."""
    step = SAMPLE_RATE_HZ // 100
    at = at_ms * SAMPLE_RATE_HZ // 1000
    places = range(max(step, at - 8 * step), min(len(samples) - step, at + 8 * step), step // 2)
    return min(places, key=lambda place: float(np.sum(samples[place - step : place + step] ** 2)), default=at)


def pcm_of(samples: Samples) -> bytes:
    """PCM16 little-endian."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def of_pcm(pcm: bytes) -> Samples:
    """PCM16 as samples of -1 to 1."""
    return np.frombuffer(pcm, dtype="<i2").astype(np.float32) / np.float32(32768)
