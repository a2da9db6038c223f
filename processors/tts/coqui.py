"""Coqui TTS: XTTS v2 with voices of one's own, and VITS models, on CPU or GPU. It needs an environment with torch."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import structlog
import torch

from processors.engine import Capabilities, EngineError, Reply, Request, Speak, Spoken
from processors.tts.coqui_models import CPML, CoquiModel, load
from processors.tts.limits import language_meant, within
from processors.tts.spoken import spoken
from processors.tts.trimmer import OUT_HZ, Trimmer, Wave, pieces
from processors.tts.voices import VoiceError, VoiceStore
from streams.settings import Settings

log = structlog.get_logger(__name__)


class CoquiVoices:
    """An `Engine` for the role tts. A model speaks one text at a time; more processes (`replicas`) speak more."""

    def __init__(self, settings: Settings, directory: Path, name: str, licence: str = "") -> None:
        """Loads the model; raises EngineError (`invalid`) where it or the device is none. `licence`: of its weights."""
        self._device = _device(settings.engines.device)
        torch.set_num_threads(settings.engines.threads)
        self._name = name
        self._store = VoiceStore(settings)
        self._model: CoquiModel = load(directory, self._device, self._store)
        self._licence = licence or self._model.licence
        self._strange: set[str] = set()
        warn = log.warning if self._model.licence == CPML else log.info
        warn("the weights' licence", model=name, licence=self._licence)

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return Capabilities(
            "tts",
            self._name,
            streaming=True,
            languages=self._model.languages,
            sample_rate_hz=OUT_HZ,
            concurrency=1,
            licence=self._licence,
            device=self._device,
            clones=self._model.clones,
        )

    def warm(self) -> None:
        """See `Engine`. A model that has no voice yet is warm when it first speaks with one."""
        try:
            for _ in self.answer(Speak("Hello there.", language=self._model.languages[0])):
                pass
        except EngineError as error:
            if error.reason != "invalid":
                raise
            log.warning("not warm", model=self._name, why=error.detail)

    def answer(self, request: Request) -> Iterator[Reply]:
        """See `Engine`: pieces of 200 ms at most, silence at a sentence's ends cut; none for a text without words."""
        asked = within(request)
        return self._speak(asked, language_meant(asked.language, self._model.languages), self._voice(asked.voice))

    def voice_meant(self, name: str) -> str:
        """What tells the voice of that name from another that had or will have it."""
        voice = self._store.find(name) if self._model.clones else None
        return f"{name} {voice.sample_sha256}" if voice is not None else name

    def _speak(self, request: Speak, language: str, voice: str) -> Iterator[Reply]:
        text = spoken(request.text) if language.partition("-")[0] == "en" else request.text
        for sentence in self._model.sentences(text, language):
            trimmer = Trimmer(self._model.rate_hz)
            started_s = time.perf_counter()
            with closing(self._waves(sentence, language, voice, request.speed)) as waves:
                for wave in waves:
                    pcm = trimmer.feed(wave)
                    if pcm:
                        yield from self._spoken(pcm, started_s)
                        started_s = time.perf_counter()
            yield from self._spoken(trimmer.finish(), started_s)

    def _waves(self, sentence: str, language: str, voice: str, speed: float) -> Generator[Wave, None, None]:
        try:
            yield from self._model.speak(sentence, language, voice, speed)
        except VoiceError as error:
            raise EngineError("invalid", str(error)) from None

    def _spoken(self, pcm: bytes, started_s: float) -> Iterator[Spoken]:
        """The first piece of what was made at once carries what it took."""
        compute_ms = 1000 * (time.perf_counter() - started_s)
        for piece in pieces(pcm):
            yield Spoken(piece, self._name, compute_ms)
            compute_ms = 0.0

    def _voice(self, name: str) -> str:
        """A name that the model does not know gives its first voice, as agents' files promise; that is logged once."""
        if not name or self._model.knows(name):
            return name
        if name not in self._strange and len(self._strange) < 100:
            self._strange.add(name)
            log.warning("unknown voice, the first one speaks", voice=name, model=self._name)
        return ""


def _device(name: str) -> str:
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise EngineError("invalid", f"TRUNKLINE_ENGINES__DEVICE: expected cpu or cuda, found {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise EngineError("invalid", f"TRUNKLINE_ENGINES__DEVICE: found {name!r}, but there is no such device here")
    return name
