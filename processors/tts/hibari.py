"""hibari: small English voices distilled from Kokoro, on ONNX. It speaks 24 kHz; we pass on 16 kHz."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import soxr
from hibari import Hibari

from processors.engine import Capabilities, EngineError, Reply, Request, Speak, Spoken
from processors.models import ModelError, ResolvedModel
from processors.tts.limits import language_meant, within
from processors.tts.spoken import spoken
from processors.tts.trimmer import OUT_HZ, QUIET, TAIL_MS, Wave, onset, pcm16, pieces

LANGUAGES = ("en",)


class HibariVoices:
    """An `Engine` for the role tts. Voices other than the first are loaded when first asked for."""

    def __init__(
        self, voice: str, model: ResolvedModel, find: Callable[[str], ResolvedModel], voices: Mapping[str, str]
    ) -> None:
        """`find` gives the model of a voice or raises ModelError; `voices` are the models' names by voice."""
        self._default = voice
        self._model = model
        self._find = find
        self._names = voices
        self._loading = threading.Lock()
        self._reading = threading.Lock()  # the reading rules share caches
        # One thread: two are slower for a network this small, and the other core has work.
        self._voices = {voice: Hibari(voice=voice, model=str(model.path), threads=1)}

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return Capabilities(
            "tts", self._model.name, streaming=True, languages=LANGUAGES, concurrency=2, licence=self._model.licence
        )

    def warm(self) -> None:
        """See `Engine`."""
        for _ in self.answer(Speak("Hello there, qwyxt.")):  # an unknown word loads the spelling net too
            pass

    def answer(self, request: Request) -> Iterator[Reply]:
        """See `Engine`: pieces of 200 ms, the silence at both ends cut; none for a text without words."""
        asked = within(request)
        language_meant(asked.language, LANGUAGES)
        return self._speak(self._voice(asked.voice or self._default), asked)

    def _speak(self, voice: Hibari, request: Speak) -> Iterator[Reply]:
        started_s = time.perf_counter()
        with self._reading:
            sentences = voice.phonemize(spoken(request.text))
        for phonemes in sentences:
            wave = voice.from_phonemes(phonemes, request.speed, seed=0)
            pcm = _pcm(_trimmed(wave, voice.sample_rate), voice.sample_rate)
            # The first piece of what was made at once carries what it took; waiting for the reader costs nothing.
            compute_ms = 1000 * (time.perf_counter() - started_s)
            for piece in pieces(pcm):
                yield Spoken(piece, self._model.name, compute_ms)
                compute_ms = 0.0
            started_s = time.perf_counter()

    def _voice(self, name: str) -> Hibari:
        with self._loading:
            if name not in self._voices:
                if name not in self._names:
                    raise EngineError("invalid", f"voice: expected one of {', '.join(self._names)}; found {name!r}")
                try:
                    model = self._find(name)
                except ModelError as error:
                    raise EngineError("invalid", str(error)) from error
                self._voices[name] = Hibari(voice=name, model=str(model.path), threads=1)
            return self._voices[name]


def _trimmed(wave: Wave, rate_hz: int) -> Wave:
    """The wave without the silence at its ends, but for a breath."""
    loud = np.flatnonzero(np.abs(wave) > QUIET)
    if loud.size == 0:
        return wave[:0]
    first = onset(wave, int(loud[0]), rate_hz)
    last = min(len(wave), int(loud[-1]) + rate_hz * TAIL_MS // 1000)
    return wave[first:last]


def _pcm(wave: Wave, rate_hz: int) -> bytes:
    """float32 at any rate to PCM16 little-endian at `OUT_HZ`."""
    samples = soxr.resample(wave, rate_hz, OUT_HZ) if len(wave) else wave
    return pcm16(samples)
