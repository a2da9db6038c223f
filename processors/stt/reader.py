"""One Whisper model on CTranslate2, read over as short a window as the speech needs.

Whisper was trained on windows of 30 s. Encoding 30 s for 3 s of speech costs most of the time, so the window here is
the speech and a second more, yet at least 10 s. Short windows make the decoder repeat itself (`loops.py`).

The most likely token is taken each time: beams of 5 took a third longer and heard no better over the telephone. Nothing
is sampled, so the same audio gives one model the same text.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

# Idle threads of OpenMP spin unless told otherwise, and would hold a core; read when the library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Likewise those of numpy's matrix product, which is too small here to be worth sharing.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import ctranslate2
import numpy as np
import tokenizers
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.tokenizer import _LANGUAGE_CODES, Tokenizer
from numpy.typing import NDArray

from processors.engine import HeardWord, Transcribe
from processors.models import ResolvedModel
from processors.stt.loops import NGRAM_BANNED, repeats, said, words_of
from processors.stt.together import Together

LANGUAGE_CODES: tuple[str, ...] = tuple(_LANGUAGE_CODES)
SENTENCE_ENDS = ".!?。！？"

_COMPUTE_TYPES = {"cpu": "int8", "cuda": "float16"}  # where none is set
_FRAME_SAMPLES = 160
_WINDOW_FRAMES_MIN = 1000
_WINDOW_FRAMES_MAX = 3000
_TAIL_FRAMES = 100
_FRAMES_A_SECOND = 100
_TOKEN_S = 0.02  # resolution of the alignment
_BEAM = 1
_BEAM_LOOPED = 5  # where n-grams are banned, the most likely token alone leads astray
_CONFIRMED = 0.5  # a token of that probability is the one that greedy decoding takes
_PROMPT_TOKENS_MAX = 100
_FEATURE_FRAMES_MIN = 4  # more than a spectrum's window, which reaches over frames
_SILENT_FRAMES = 3
_SILENT_ABOVE = 0.6  # probability of the no-speech token
_SILENT_BELOW = -0.5
_LOOPED_SPAN_MIN = 0.6  # what is left of a loop must span this part of the audio, or words are missing


@dataclass(frozen=True, slots=True)
class Reading:
    """What one model made of the audio. `suspect` means that it went round in a loop, which was cut out.

    `words` are there when finding that out has already told their times.
    """

    text: str
    tokens: tuple[int, ...]
    logprob: float
    no_speech: float
    suspect: bool
    model: str
    language: str
    words: tuple[HeardWord, ...] = ()

    @property
    def silent(self) -> bool:
        """No words but punctuation, or the model says that it hears no speech, and its words are as unlikely."""
        return not words_of(self.text) or (self.no_speech > _SILENT_ABOVE and self.logprob < _SILENT_BELOW)

    @property
    def confidence(self) -> float:
        """0 to 1: the geometric mean of the tokens' probabilities."""
        return float(np.exp(min(0.0, self.logprob)))


class Reader(Protocol):
    """One model that reads audio; `WhisperReader` in life."""

    name: str

    def speaks(self, language: str) -> bool:
        """Whether it knows the language, an ISO 639-1 code."""
        ...

    def encode(self, pcm: bytes) -> Any:
        """The encoder's output for at most 30 s of PCM16; given back to `read` and `align`."""
        ...

    def encode_apart(self, pcm: bytes) -> Any:
        """As `encode`, in a thread of no reading's: on a core of its own, together with nobody."""
        ...

    def detect(self, encoded: Any) -> Mapping[str, float]:
        """How probable each language is that it knows; empty for a model of one language."""
        ...

    def read(self, encoded: Any, seconds: float, request: Transcribe, language: str) -> Reading:
        """The most likely words."""
        ...

    def align(self, encoded: Any, reading: Reading, seconds: float) -> tuple[HeardWord, ...]:
        """When each word of the reading was said."""
        ...

    def confirm(self, encoded: Any, reading: Reading, seconds: float, request: Transcribe) -> Reading | None:
        """Another one's reading as its own, with its times, where it would say the same; None where it may not."""
        ...


class WhisperReader:
    """One CTranslate2 Whisper model. Calls may come from several threads, and are made together where they meet."""

    def __init__(
        self,
        model: ResolvedModel,
        device: str,
        threads: int,
        together: Together | None = None,
        compute_type: str = "",
    ) -> None:
        """Loads the files of the model's directory; by default weights become int8 on the CPU, float16 on CUDA.

        Readers that share a processor share `together`. Raises ValueError for a device or compute type there is not.
        """
        self.name = model.name
        self._together = together or Together()
        self.model = ctranslate2.models.Whisper(
            str(model.directory),
            device=device,
            compute_type=_supported(compute_type, device),
            intra_threads=threads,
        )
        self._words = _words(model.directory / "tokenizer.json")
        self._multilingual: bool = self.model.is_multilingual
        self.extractor = FeatureExtractor(feature_size=self.model.n_mels)
        self._tokenizers: dict[str, Tokenizer] = {}
        self._banned = _banned(self.tokenizer("en"))

    def speaks(self, language: str) -> bool:
        """See `Reader`."""
        return language in LANGUAGE_CODES if self._multilingual else language == "en"

    def encode(self, pcm: bytes) -> Any:
        """See `Reader`."""
        mel = log_mel(self.extractor, pcm)
        return self._together.do((self.name, "encode", mel.shape), self._encode, mel)

    def encode_apart(self, pcm: bytes) -> Any:
        """See `Reader`."""
        return self._encode([log_mel(self.extractor, pcm)])[0]

    def _encode(self, features: Sequence[NDArray[np.float32]]) -> list[Any]:
        alone = len(features) == 1
        encoded = self.model.encode(ctranslate2.StorageView.from_array(np.concatenate(features)), to_cpu=not alone)
        return [encoded] if alone else _apart(encoded)

    def detect(self, encoded: Any) -> Mapping[str, float]:
        """See `Reader`."""
        if not self._multilingual:
            return {}

        def detected(several: Sequence[Any]) -> Sequence[list[tuple[str, float]]]:
            found: Sequence[list[tuple[str, float]]] = self.model.detect_language(_as_one(several))
            return found

        found = self._together.do((self.name, "detect", tuple(encoded.shape)), detected, encoded)
        return {token[2:-2]: probability for token, probability in found}  # <|de|>

    def read(self, encoded: Any, seconds: float, request: Transcribe, language: str) -> Reading:
        """See `Reader`; the copies of a loop are dropped, or else repeated n-grams are banned."""
        reading = self._generate(encoded, seconds, request, language, beam=_BEAM)
        if not repeats(reading.text):
            return reading
        heard = self.align(encoded, reading, seconds)
        kept = said(heard)
        if len(kept) == len(heard):
            return replace(reading, words=heard)
        if kept and kept[-1].end_ms - kept[0].start_ms >= _LOOPED_SPAN_MIN * heard[-1].end_ms:
            text = " ".join(word.word for word in kept)
            return replace(reading, text=text, words=kept, suspect=True)
        other = self._generate(encoded, seconds, request, language, beam=_BEAM_LOOPED, ngram=NGRAM_BANNED)
        return replace(other, suspect=True)

    def _generate(
        self, encoded: Any, seconds: float, request: Transcribe, language: str, beam: int, ngram: int = 0
    ) -> Reading:
        tokenizer = self.tokenizer(language)
        prompt = [*self._vocabulary(tokenizer, request.vocabulary), *tokenizer.sot_sequence, tokenizer.no_timestamps]
        longest = len(prompt) + min(220, 16 + int(12 * seconds))

        def generate(several: Sequence[tuple[Any, int]]) -> Sequence[Any]:
            found: Sequence[Any] = self.model.generate(
                _as_one([encoded for encoded, _ in several]),
                [prompt] * len(several),
                beam_size=beam,
                no_repeat_ngram_size=ngram,
                max_length=max(longest for _, longest in several),
                return_scores=True,
                return_no_speech_prob=True,
                suppress_tokens=self._banned,
            )
            return found

        kind = (self.name, "read", tuple(encoded.shape), tuple(prompt), beam, ngram)
        result = self._together.do(kind, generate, (encoded, longest))
        ids = result.sequences_ids[0]
        tokens = tuple(token for token in ids if token < tokenizer.eot)
        text = tokenizer.decode(list(tokens)).strip()
        return Reading(
            text=text,
            tokens=tokens,
            logprob=result.scores[0] * len(ids) / (len(ids) + 1),
            no_speech=result.no_speech_prob,
            suspect=False,
            model=self.name,
            language=language,
        )

    def align(self, encoded: Any, reading: Reading, seconds: float) -> tuple[HeardWord, ...]:
        """See `Reader`; by dynamic time warping over the cross-attention, as in openai/whisper's timing.py."""
        return self._aligned(encoded, reading.tokens, seconds, reading.language)[0]

    def confirm(self, encoded: Any, reading: Reading, seconds: float, request: Transcribe) -> Reading | None:
        """See `Reader`: one pass over the whole text, where reading it takes a pass for each of its tokens."""
        tokenizer = self.tokenizer(reading.language)
        tokens = tuple(tokenizer.encode(" " + reading.text))
        words, sure = self._aligned(encoded, tokens, seconds, reading.language, request.vocabulary)
        if not words or min(sure) < _CONFIRMED:
            return None
        logprob = float(np.mean(np.log(sure)))
        return replace(reading, tokens=tokens, logprob=logprob, model=self.name, words=words)

    def _aligned(
        self, encoded: Any, tokens: Sequence[int], seconds: float, language: str, vocabulary: Sequence[str] = ()
    ) -> tuple[tuple[HeardWord, ...], Sequence[float]]:
        """The words with their times, and how probable each token is after those before it."""
        tokenizer = self.tokenizer(language)
        frames = max(2, int(seconds * _FRAMES_A_SECOND))
        sequence = [*self._vocabulary(tokenizer, vocabulary), *tokenizer.sot_sequence]

        def align(several: Sequence[tuple[Any, list[int], int]]) -> Sequence[Any]:
            encodings, texts, lengths = zip(*several, strict=True)
            found: Sequence[Any] = self.model.align(_as_one(encodings), sequence, list(texts), list(lengths))
            return found

        kind = (self.name, "align", tuple(encoded.shape), tuple(sequence))
        result = self._together.do(kind, align, (encoded, list(tokens), frames))
        token_index, time_index = np.array(result.alignments, dtype=np.int64).T
        begins = np.r_[True, np.diff(token_index) > 0]
        times_s = time_index[begins] * _TOKEN_S
        words, parts = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
        bounds = np.cumsum([0, *(len(part) for part in parts[:-1])])
        spans = [
            (word, times_s[start], times_s[end], float(np.mean(result.text_token_probs[start:end])))
            for word, start, end in zip(words, bounds[:-1], bounds[1:], strict=False)
        ]
        return _joined(spans), result.text_token_probs

    def tokenizer(self, language: str) -> Tokenizer:
        """Its words and marks for a language that it speaks."""
        tokenizer = self._tokenizers.get(language)
        if tokenizer is None:
            tokenizer = Tokenizer(self._words, self._multilingual, task="transcribe", language=language)
            self._tokenizers[language] = tokenizer
        return tokenizer

    @staticmethod
    def _vocabulary(tokenizer: Tokenizer, vocabulary: Sequence[str]) -> list[int]:
        """The prompt that makes these words likely: Whisper takes it for the text before this."""
        if not vocabulary:
            return []
        words: list[int] = tokenizer.encode(" " + ", ".join(vocabulary) + ".")
        return [tokenizer.sot_prev, *words[-_PROMPT_TOKENS_MAX:]]


def _apart(encoded: Any) -> list[Any]:
    """The encodings of one call, each by itself."""
    return [ctranslate2.StorageView.from_array(np.ascontiguousarray(one[np.newaxis])) for one in np.array(encoded)]


def _as_one(encodings: Sequence[Any]) -> Any:
    """Encodings of equal shape in the form that the model takes for one call."""
    if len(encodings) == 1:
        return encodings[0]
    here = [one if one.device == "cpu" else one.to_device(ctranslate2.Device.cpu) for one in encodings]
    return ctranslate2.StorageView.from_array(np.concatenate([np.array(one) for one in here]))


def _supported(compute_type: str, device: str) -> str:
    if device not in _COMPUTE_TYPES:
        raise ValueError(f"engines.device: expected one of {', '.join(_COMPUTE_TYPES)}, found {device!r}")
    chosen = compute_type or _COMPUTE_TYPES[device]
    try:
        supported = ctranslate2.get_supported_compute_types(device)
    except RuntimeError as error:
        raise ValueError(f"engines.device: expected a device that works, found {device}: {error}") from error
    if chosen not in supported:
        known = ", ".join(sorted(supported))
        raise ValueError(f"engines.compute_type: expected one of {known} on this {device}, found {chosen!r}")
    return chosen


def log_mel(extractor: FeatureExtractor, pcm: bytes) -> NDArray[np.float32]:
    """The encoder's input, float32 (1, mels, frames): the speech, then silence to the end of its window.

    Of the silence a few frames are computed and repeated; the rest would be equal to them.
    """
    samples = np.frombuffer(pcm, dtype="<i2")
    spoken = -(-len(samples) // _FRAME_SAMPLES)
    frames = min(_WINDOW_FRAMES_MAX, max(_WINDOW_FRAMES_MIN, spoken + _TAIL_FRAMES))
    frames += frames % 2  # the encoder halves them
    computed = min(frames, max(_FEATURE_FRAMES_MIN, spoken + _SILENT_FRAMES))
    waveform = np.zeros(computed * _FRAME_SAMPLES, dtype=np.float32)
    waveform[: len(samples)] = samples
    waveform /= 32768
    found = extractor(waveform, padding=0)[:, :computed]
    mel = np.empty((1, found.shape[0], frames), dtype=np.float32)
    mel[0, :, :computed] = found
    mel[0, :, computed:] = found[:, -1:]
    return mel


def _joined(spans: Sequence[tuple[str, float, float, float]]) -> tuple[HeardWord, ...]:
    """Words with their punctuation, from the tokenizer's words, where a leading space begins a new one.

    A word at the end of a sentence is as sure as that end.
    """
    words: list[HeardWord] = []
    for word, start_s, end_s, probability in spans:
        bare = word.strip()
        if not bare:
            continue
        attached = words and not (word.startswith(" ") and re.search(r"\w", bare))
        if attached:
            last = words[-1]
            sure = probability if bare[-1] in SENTENCE_ENDS else last.confidence
            words[-1] = HeardWord(last.word + bare, last.start_ms, last.end_ms, sure)
        else:
            words.append(HeardWord(bare, round(start_s * 1000), round(end_s * 1000), probability))
    return tuple(words)


def _words(file: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a model, whole.

    The published files of multilingual models have lost the first merge, of a blank and a t: without it every word
    that begins with t becomes two tokens which the model never saw together.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    merges = found["model"]["merges"]
    first = ["Ġ", "t"] if isinstance(merges[0], list) else "Ġ t"
    if first not in merges:
        merges.insert(0, first)
    return tokenizers.Tokenizer.from_str(json.dumps(found))


def _banned(tokenizer: Tokenizer) -> list[int]:
    """Tokens that are no speech: annotations such as (music), and Whisper's own marks."""
    marks = (tokenizer.transcribe, tokenizer.translate, tokenizer.sot, tokenizer.sot_prev, tokenizer.sot_lm)
    return sorted({*tokenizer.non_speech_tokens, *marks, tokenizer.no_speech})
