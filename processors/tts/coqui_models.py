"""The two kinds of Coqui model that speak: XTTS, which streams and takes on voices, and VITS, a sentence at a time.

A model directory holds `config.json` and the weights as their publisher lays them out; the first says which kind it is.
Nothing in it is run or changed: weights are read as weights only.
"""

import importlib.util
import json
import logging
import pickle
import re
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import structlog
import torch
import torchaudio

from processors.engine import EngineError
from processors.tts.trimmer import Wave
from processors.tts.voices import VoiceStore

log = structlog.get_logger(__name__)

CPML = "CPML (Coqui Public Model License): no commercial use without a licence from the owner of the weights"
UNKNOWN_LICENCE = "not stated: see where the weights come from"
LATENTS_MAX = 32  # voices whose latents are kept; some 150 kB each
STREAM_TOKENS = 20  # of audio between two pieces, some 0.9 s of speech
_SENTENCE_CHARS_MAX = 250
_SEED = 0  # a sentence sounds the same each time: what was cut short goes on at the same sample
_LATENTS_HZ = 22_050
_WEIGHTS = ("model.pth", "model_file.pth", "best_model.pth")
# What a language's text needs beside the package itself.
_LANGUAGE_NEEDS = {"ja": "cutlet", "zh-cn": "pypinyin"}
_SENTENCE_END = re.compile(r"(?<=[.!?…。！？؟।])\s+|(?<=[。！？])|\n+")


class CoquiModel(Protocol):
    """A loaded model; speaks one text at a time."""

    licence: str
    languages: tuple[str, ...]
    rate_hz: int
    clones: bool

    def knows(self, voice: str) -> bool:
        """Whether it can speak with the voice of that name."""
        ...

    def sentences(self, text: str, language: str) -> Iterator[str]:
        """The text in parts that it can speak at once; raises EngineError for what it cannot read."""
        ...

    def speak(self, sentence: str, language: str, voice: str, speed: float) -> Iterator[Wave]:
        """Samples of -1 to 1 as they are made; an empty voice is its first. Raises EngineError."""
        ...


def load(directory: Path, device: str, store: VoiceStore) -> CoquiModel:
    """The model of that directory; raises EngineError (`invalid`), which names the file and what is expected."""
    # The package logs what it speaks.
    logging.getLogger("TTS").setLevel(logging.CRITICAL + 1)
    path = directory / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError("invalid", f"{path}: expected a Coqui model's settings ({type(error).__name__})") from error
    makers: dict[str, Callable[[], CoquiModel]] = {
        "xtts": lambda: XttsModel(directory, device, store),
        "vits": lambda: VitsModel(directory, device),
    }
    make = makers.get(str(kind).lower())
    if make is None:
        raise EngineError("invalid", f"{path}: expected model xtts or vits, found {kind!r}")
    try:
        return make()
    except (OSError, RuntimeError, ValueError, KeyError, ImportError, pickle.UnpicklingError) as error:
        raise EngineError("invalid", f"{directory}: the model cannot be loaded ({_brief(error)})") from error


class XttsModel:
    """XTTS v2: speaks as it goes, with its own speakers and with any voice of the store."""

    licence = CPML
    clones = True

    def __init__(self, directory: Path, device: str, store: VoiceStore) -> None:
        from TTS.config import load_config
        from TTS.tts.models.xtts import Xtts

        self._config = load_config(directory / "config.json")
        self._model = Xtts(self._config)
        # Its own way of reading weights writes old ones anew, and then their hash is another.
        self._model._load_checkpoint = _xtts_weights
        self._model.load_checkpoint(self._config, checkpoint_dir=directory)
        self._model.to(device)
        self._store = store
        manager = self._model.speaker_manager
        self._speakers: dict[str, Any] = dict(manager.speakers) if manager is not None else {}
        self._latents: OrderedDict[tuple[str, str], Sequence[Any]] = OrderedDict()
        self.languages = _readable(self._config.languages)
        self.rate_hz = int(self._config.audio.output_sample_rate)

    def knows(self, voice: str) -> bool:
        """See `CoquiModel`."""
        return voice in self._speakers or self._store.find(voice) is not None

    def sentences(self, text: str, language: str) -> Iterator[str]:
        """See `CoquiModel`: parts that are short enough in letters and in tokens."""
        limit = self._model.tokenizer.char_limits.get(language.partition("-")[0], _SENTENCE_CHARS_MAX)
        for part in split(text, limit):
            yield from self._fitting(part, language)

    def _fitting(self, part: str, language: str) -> Iterator[str]:
        try:
            tokens = len(self._model.tokenizer.encode(part.strip().lower(), lang=language))
        except Exception as error:  # what reads numbers out raises anything for those that it has no words for
            raise EngineError(
                "invalid", f"text: it cannot be read out in {language} ({type(error).__name__})"
            ) from None
        if tokens < self._model.args.gpt_max_text_tokens - 2:  # a start and an end come to it
            yield part
        elif len(part) > 1:
            middle = len(part) // 2
            yield from self._fitting(part[:middle], language)
            yield from self._fitting(part[middle:], language)

    def speak(self, sentence: str, language: str, voice: str, speed: float) -> Iterator[Wave]:
        """See `CoquiModel`."""
        conditioning, embedding = self._voice(voice)
        torch.manual_seed(_SEED)
        stream = self._model.inference_stream(
            sentence,
            language,
            conditioning,
            embedding,
            stream_chunk_size=STREAM_TOKENS,
            temperature=self._config.temperature,
            length_penalty=self._config.length_penalty,
            repetition_penalty=self._config.repetition_penalty,
            top_k=self._config.top_k,
            top_p=self._config.top_p,
            speed=speed,
        )
        try:
            for chunk in stream:
                yield _wave(chunk)
        finally:
            stream.close()

    def _voice(self, name: str) -> Sequence[Any]:
        """Conditioning and embedding; those of a stored voice are made when it first speaks."""
        stored = self._store.find(name)
        if stored is not None:
            return self._cloned(name, stored.sample_sha256)
        speaker = name or next(iter(self._speakers), "")
        if speaker in self._speakers:
            return tuple(self._speakers[speaker].values())
        known = self._store.all()
        if name or not known:
            expected = ", ".join((*self._speakers, *(voice.name for voice in known)))
            raise EngineError(
                "invalid", f"voice: expected one of {expected or '`trunkline voices add`'}; found {name!r}"
            )
        return self._cloned(known[0].name, known[0].sample_sha256)

    def _cloned(self, name: str, sample_sha256: str) -> Sequence[Any]:
        """From the cache, if the voice has not been used just now it is made; voices that are gone are forgotten."""
        for key in [key for key in self._latents if not self._current(*key)]:
            del self._latents[key]
        key = name, sample_sha256
        if key not in self._latents:
            samples, rate_hz = self._store.sample(name)
            self._latents[key] = self._condition(samples, rate_hz)
            log.info("voice learnt", voice=name)
        self._latents.move_to_end(key)
        while len(self._latents) > LATENTS_MAX:
            self._latents.popitem(last=False)
        return self._latents[key]

    def _current(self, name: str, sample_sha256: str) -> bool:
        voice = self._store.find(name)
        return voice is not None and voice.sample_sha256 == sample_sha256

    def _condition(self, samples: Wave, rate_hz: int) -> Sequence[Any]:
        """As the package does with a file; without one its decoder of files is not needed."""
        audio = torchaudio.functional.resample(torch.from_numpy(samples)[None, :], rate_hz, _LATENTS_HZ)
        audio = audio[:, : _LATENTS_HZ * self._config.max_ref_len].clip(-1, 1)
        if self._config.sound_norm_refs:
            audio = audio / audio.abs().max() * 0.75
        embedding = self._model.get_speaker_embedding(audio, _LATENTS_HZ)
        conditioning = self._model.get_gpt_cond_latents(
            audio, _LATENTS_HZ, length=self._config.gpt_cond_len, chunk_length=self._config.gpt_cond_chunk_len
        )
        return conditioning, embedding


class VitsModel:
    """VITS, through the package's synthesizer: no streaming within a sentence, no voices but its own."""

    licence = UNKNOWN_LICENCE
    clones = False

    def __init__(self, directory: Path, device: str) -> None:
        from TTS.utils.synthesizer import Synthesizer

        weights = next((directory / name for name in _WEIGHTS if (directory / name).is_file()), None)
        if weights is None:
            raise OSError(f"expected one of {', '.join(_WEIGHTS)}")
        self._synthesizer = Synthesizer(tts_checkpoint=weights, tts_config_path=directory / "config.json")
        self._synthesizer.to(device)
        self._model = self._synthesizer.tts_model
        self._length_scale = float(self._model.length_scale)
        manager = self._model.speaker_manager
        self._speakers = tuple(manager.name_to_id) if manager is not None else ()
        names = tuple(self._model.language_manager.language_names)
        if not names:
            log.warning("the model does not say which language it speaks", taken="en")
        self._named = bool(names)
        self.languages = names or ("en",)
        self.rate_hz = int(self._synthesizer.output_sample_rate)

    def knows(self, voice: str) -> bool:
        """See `CoquiModel`."""
        return voice in self._speakers

    def sentences(self, text: str, language: str) -> Iterator[str]:
        """See `CoquiModel`: those that have a letter which it knows."""
        for sentence in split(text, _SENTENCE_CHARS_MAX):
            if self._model.tokenizer.text_to_ids(sentence, language=self._language(language)):
                yield sentence

    def speak(self, sentence: str, language: str, voice: str, speed: float) -> Iterator[Wave]:
        """See `CoquiModel`: all of it at once."""
        torch.manual_seed(_SEED)
        self._model.length_scale = self._length_scale / speed
        speaker = voice or (self._speakers[0] if self._speakers else None)
        with torch.inference_mode():
            made = self._model.synthesize(sentence, speaker=speaker, language=self._language(language))
        yield np.asarray(made["wav"], np.float32).reshape(-1)

    def _language(self, language: str) -> str | None:
        return language if self._named else None


def split(text: str, chars_max: int) -> Iterator[str]:
    """The sentences of a text, long ones in parts of at most `chars_max`; none that has neither letter nor digit."""
    for sentence in _SENTENCE_END.split(text):
        for part in textwrap.wrap(sentence, chars_max, break_on_hyphens=False):
            if any(char.isalnum() for char in part):
                yield part


def _readable(languages: Sequence[str]) -> tuple[str, ...]:
    """Those whose text can be read here."""
    missing = {
        language: needed
        for language in languages
        if (needed := _LANGUAGE_NEEDS.get(language)) and importlib.util.find_spec(needed) is None
    }
    if missing:
        log.info("languages left out, each for want of a package", missing=missing)
    return tuple(language for language in languages if language not in missing)


def _xtts_weights(path: Path) -> dict[str, Any]:
    """The weights, also of old files, which hold their settings as a pickled class."""
    from TTS.tts.models.xtts import _legacy_safe_globals

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with _legacy_safe_globals():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return dict(checkpoint["model"])


def _wave(chunk: Any) -> Wave:
    samples: Wave = chunk.detach().float().cpu().numpy().reshape(-1)
    return samples


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
