"""Whisper on CTranslate2, read over as short a window as the speech needs, with a guard against repetition.

Whisper was trained on windows of 30 s. Encoding 30 s for 3 s of speech costs most of the time, so the window here is
the speech and a second more, yet at least 10 s. Short windows make the decoder repeat itself now and then; but aligned
with the audio, words that were said twice take time twice, and a loop's copies take next to none: these are dropped.
Where the quick model is unsure or looped, a second, larger one reads too, if a caller who waits can wait that long.
Nothing is sampled, so the same audio gives one model the same text.

The most likely token is taken each time: beams of 5 took a third longer and heard no better over the telephone. A
reading nobody wants any more ends between two steps of it, since a step cannot be interrupted.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

from processors.engine import Capabilities, EngineError, HeardWord, Reply, Request, Transcribe, Transcribed
from processors.models import ResolvedModel
from processors.stt.cores import one_is_free
from processors.stt.together import Together, Unwanted

SAMPLE_RATE_HZ = 16000
AUDIO_MS_MAX = 30_000
AUDIO_MS_MIN = 60

_COMPUTE_TYPES = {"cpu": "int8", "cuda": "float16"}  # where none is set
_FRAME_SAMPLES = 160
_WINDOW_FRAMES_MIN = 1000
_WINDOW_FRAMES_MAX = 3000
_TAIL_FRAMES = 100
_FRAMES_A_SECOND = 100
_TOKEN_S = 0.02  # resolution of the alignment
_BEAM = 1
_BEAM_LOOPED = 5  # where n-grams are banned, the most likely token alone leads astray
_NGRAM_BANNED = 4
_CONFIRMED = 0.5  # a token of that probability is the one that greedy decoding takes
_PROMPT_TOKENS_MAX = 100
_SENTENCE_ENDS = ".!?。！？"
_FEATURE_FRAMES_MIN = 4  # more than a spectrum's window, which reaches over frames
_SILENT_FRAMES = 3

# A reading that comes later than that after it was asked for is worse for the caller than one the model is unsure of.
SECOND_BUDGET_S = 0.9
# What is hardly more than a guess would be answered wrongly: better late.
GUESSED_BELOW = -0.4  # average log probability of a token
GUESSED_BUDGET_S = 2.0
# A wrong digit is another customer, and the quick model is as sure of wrong ones.
NUMBER_BUDGET_S = 3.0
_DIGIT = r"(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|double|triple)"
_NUMBER = re.compile(rf"\d|\b{_DIGIT}\W+{_DIGIT}\b")
# A word or two sound like many languages, and callers change theirs seldom.
SWITCHED_ABOVE = 0.8
_SECOND_RATIO = 2.2  # the second model's time by the first's, until it is measured
_SECOND_RATIO_MAX = 4.0  # one slow moment must not rule it out for ever
_SECOND_RATIO_KEPT = 0.8

# Chosen on human speech, clean, over the telephone, quiet, overdriven and in noise.
UNSURE_BELOW = -0.25  # average log probability of a token
_SILENT_ABOVE = 0.6  # probability of the no-speech token
_SILENT_BELOW = -0.5
_REPEATED_WORDS_MIN = 3  # a repetition of fewer words is how people talk
_REPEATED_LETTERS_MIN = 6
_SQUEEZED_RATIO = (
    0.45  # a loop's copy lasts less than this part of the longest copy; what was said twice, more than 0.6
)
_SQUEEZED_WORD_MS = 60
_UNTIMED_MS_MAX = 20
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
        return language in _LANGUAGE_CODES if self._multilingual else language == "en"

    def encode(self, pcm: bytes) -> Any:
        """See `Reader`."""
        mel = log_mel(self.extractor, pcm)
        return self._together.do((self.name, "encode", mel.shape), self._encode, mel)

    def encode_apart(self, pcm: bytes) -> Any:
        """See `Reader`."""
        return self.model.encode(ctranslate2.StorageView.from_array(log_mel(self.extractor, pcm)))

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
        other = self._generate(encoded, seconds, request, language, beam=_BEAM_LOOPED, ngram=_NGRAM_BANNED)
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


_Heard = tuple[Reader, Any, Reading]  # by whom, the audio as that one encoded it, and what it made of it


class WhisperEngine:
    """Speech to text by a quick model and, where that is unsure, a second one; see `processors.engine.Engine`."""

    def __init__(
        self,
        quick: Reader,
        second: Reader | None = None,
        licence: str = "",
        together: Together | None = None,
        device: str = "cpu",
        now_s: Callable[[], float] = time.perf_counter,
        free: Callable[[], bool] = one_is_free,
    ) -> None:
        """`together` is that of the readers: as many readings are under way as it makes at once.

        `free` says whether a core has nothing to do.
        """
        self._free = free if device == "cpu" else lambda: False
        self._apart = ThreadPoolExecutor(1, thread_name_prefix="second-opinion")
        self._ahead: Future[Any] | None = None
        self._together = together or Together()
        self._readers = (quick,) if second is None else (quick, second)
        self._now_s = now_s
        self._second_ratio = _SECOND_RATIO
        self._capabilities = Capabilities(
            role="stt",
            model="+".join(reader.name for reader in self._readers),
            languages=tuple(code for code in _LANGUAGE_CODES if any(reader.speaks(code) for reader in self._readers)),
            sample_rate_hz=SAMPLE_RATE_HZ,
            concurrency=self._together.at_once_max,
            licence=licence,
            device=device,
        )

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return self._capabilities

    def warm(self) -> None:
        """Reads a second of silence with each model, alignment included."""
        silence = bytes(2 * SAMPLE_RATE_HZ)
        for reader in self._readers:
            encoded = reader.encode(silence)
            reader.align(encoded, reader.read(encoded, 1.0, Transcribe(silence), "en"), 1.0)

    def answer(self, request: Request) -> "Transcription":
        """One `Transcribed`; `refused` for a language that no model knows, `invalid` for what is no PCM of 30 s."""
        stopped = threading.Event()
        return Transcription(self._answer(request, stopped.is_set), stopped)

    def _answer(self, request: Request, stopped: Callable[[], bool]) -> Generator[Reply]:
        if not isinstance(request, Transcribe):
            raise EngineError("invalid", f"expected Transcribe, found {type(request).__name__}")
        if len(request.pcm) % 2:
            raise EngineError("invalid", "pcm: expected whole 16-bit samples, found an odd number of bytes")
        duration_ms = len(request.pcm) * 1000 // (2 * SAMPLE_RATE_HZ)
        if duration_ms > AUDIO_MS_MAX:
            raise EngineError("invalid", f"pcm: expected at most {AUDIO_MS_MAX} ms, found {duration_ms}")
        language = _code(request.language or "en")
        candidates = self._candidates(request, language)
        readers = [reader for reader in self._readers if all(reader.speaks(one) for one in candidates)]
        if not readers:
            raise EngineError("refused", f"language: expected one of {', '.join(self.capabilities.languages)}")
        if duration_ms < AUDIO_MS_MIN:
            yield Transcribed("", (), 0.0, language, readers[0].name, 0.0)
            return
        try:
            with self._together.reading(not request.partial, lambda: not stopped()):
                reply = self._transcribed(readers, request, duration_ms, candidates, stopped)
        except Unwanted:
            return
        if reply is not None:
            yield reply

    def _candidates(self, request: Transcribe, language: str) -> list[str]:
        """What languages the speech may be in, the probable one first; without those that no model knows beside it."""
        others = [_code(one) for one in request.languages]
        beside = [reader for reader in self._readers if reader.speaks(language)]
        known = [one for one in others if any(reader.speaks(one) for reader in beside)]
        return list(dict.fromkeys((language, *known)))

    def _transcribed(
        self,
        readers: Sequence[Reader],
        request: Transcribe,
        duration_ms: int,
        candidates: Sequence[str],
        stopped: Callable[[], bool],
    ) -> Transcribed | None:
        """The reply; None where it was stopped before there was one. Its `compute_ms` is this reading's share."""
        started_s = self._now_s()
        seconds = duration_ms / 1000
        heard = self._heard(readers, request, seconds, candidates, stopped)
        if not heard:
            return None
        _, _, reading = heard[-1]
        words: tuple[HeardWord, ...] = ()
        if not reading.silent:
            words = estimated(reading, duration_ms) if request.partial and not reading.words else _timed(heard, seconds)
        return Transcribed(
            text="" if reading.silent else reading.text,
            words=words,
            confidence=0.0 if reading.silent else reading.confidence,
            language=reading.language,
            model=reading.model,
            compute_ms=(self._now_s() - started_s - self._together.others_s) * 1000,
            doubtful=not heard[0][2].silent and _budget_s(heard[0][2]) > 0,
        )

    def _heard(
        self,
        readers: Sequence[Reader],
        request: Transcribe,
        seconds: float,
        candidates: Sequence[str],
        stopped: Callable[[], bool],
    ) -> "list[_Heard]":
        """The first reader's reading, and the second's where the first is unsure and the caller can wait for it.

        The last one counts; none where it was stopped before there was one.
        """
        first, *others = readers
        ahead = self._begun_ahead(others, request)
        began_s = self._now_s()
        encoded = first.encode(request.pcm)
        if stopped():
            return []
        language = _spoken(first, encoded, candidates)
        reading = first.read(encoded, seconds, request, language)
        if stopped():
            return []
        spent_s = self._now_s() - began_s
        in_time = spent_s * (1 + self._second_ratio) <= _budget_s(reading)
        if reading.silent or request.partial or request.quick or not (others and in_time):
            return [(first, encoded, reading)]
        second = others[0]
        encoded_second = ahead.result() if ahead is not None else second.encode(request.pcm)
        if stopped():
            return []
        # What the first one is unsure of, the other seldom says as well.
        likely = reading.logprob >= UNSURE_BELOW and not reading.suspect
        confirmed = second.confirm(encoded_second, reading, seconds, request) if likely else None
        if stopped():
            return []
        opinion = confirmed or second.read(encoded_second, seconds, request, language)
        if ahead is None:
            self._measured((self._now_s() - began_s - spent_s) / max(spent_s, 1e-3))
        if stopped():
            return []
        if opinion.silent or (opinion.suspect and not reading.suspect):
            return [(first, encoded, reading)]
        return [(first, encoded, reading), (second, encoded_second, opinion)]

    def _begun_ahead(self, others: Sequence[Reader], request: Transcribe) -> "Future[Any] | None":
        """The second reader's encoding, begun beside the first one's reading where it will probably be wanted.

        Only while a core has nothing to do, and nobody else is read.
        """
        wanted = others and request.doubtful and not (request.partial or request.quick)
        under_way = self._ahead is not None and not self._ahead.done()
        if not wanted or under_way or not (self._together.alone and self._free()):
            return None
        self._ahead = self._apart.submit(others[0].encode_apart, request.pcm)
        return self._ahead

    def _measured(self, ratio: float) -> None:
        """The second model took that many times as long as the first, for the same audio in the same moment."""
        kept = _SECOND_RATIO_KEPT * self._second_ratio + (1 - _SECOND_RATIO_KEPT) * ratio
        self._second_ratio = min(kept, _SECOND_RATIO_MAX)


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


def _code(language: str) -> str:
    """The language of a tag such as de-CH."""
    return language.partition("-")[0].lower()


def _spoken(reader: Reader, encoded: Any, candidates: Sequence[str]) -> str:
    """Which of the candidates is heard: the first, unless another one is clearly more probable."""
    first, *others = candidates
    if not others:
        return first
    found = reader.detect(encoded)
    best = max(others, key=lambda one: found.get(one, 0.0))
    total = sum(found.get(one, 0.0) for one in candidates)
    return best if found.get(best, 0.0) > SWITCHED_ABOVE * total else first


def _budget_s(reading: Reading) -> float:
    """How long both models together may take, so that the second one reads too; 0 where the first is sure."""
    if _NUMBER.search(reading.text.lower()):
        return NUMBER_BUDGET_S
    if reading.suspect or reading.logprob < GUESSED_BELOW:
        return GUESSED_BUDGET_S
    return SECOND_BUDGET_S if reading.logprob < UNSURE_BELOW else 0.0


class Transcription(Iterator[Reply]):
    """The replies to one request. `cancel` may be called from another thread: it ends after the step at work."""

    def __init__(self, replies: Generator[Reply], stopped: threading.Event) -> None:
        self._replies = replies
        self._stopped = stopped

    def __next__(self) -> Reply:
        return next(self._replies)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self._stopped.set()

    def close(self) -> None:
        """Ends it; no call may be under way."""
        self._replies.close()


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


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def repeats(text: str) -> bool:
    """Whether the text says something again, at a length that a loop would have too."""
    words = words_of(text)
    grams = [tuple(words[at : at + _NGRAM_BANNED]) for at in range(len(words) - _NGRAM_BANNED + 1)]
    return len(set(grams)) < len(grams) or next(_runs(words), None) is not None


def _runs(words: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Every n-gram of weight that is followed by itself: where it starts, its length, the copies in a row."""
    for length in range(1, len(words) // 2 + 1):
        start = 0
        while start + 2 * length <= len(words):
            copies = 1
            gram = words[start : start + length]
            while words[start + copies * length : start + (copies + 1) * length] == gram:
                copies += 1
            weight = length * (copies - 1)
            if weight >= _REPEATED_WORDS_MIN or (weight and len("".join(gram)) >= _REPEATED_LETTERS_MIN):
                yield start, length, copies
            start += (copies - 1) * length + 1


def said(heard: tuple[HeardWord, ...]) -> tuple[HeardWord, ...]:
    """The words without those copies of a repetition, and that tail, for which the audio has no time."""
    timed = len(heard)
    while timed and heard[timed - 1].end_ms - heard[timed - 1].start_ms <= _UNTIMED_MS_MAX:
        timed -= 1
    if 0 < timed <= len(heard) - _REPEATED_WORDS_MIN:
        return said(heard[:timed])
    words = [" ".join(words_of(word.word)) for word in heard]
    for start, length, copies in _runs(words):
        grams = [heard[at : at + length] for at in range(start, start + copies * length, length)]
        lasted_ms = [gram[-1].end_ms - gram[0].start_ms for gram in grams]
        least_ms = float(_SQUEEZED_WORD_MS * length)
        if length > 1:
            least_ms = max(least_ms, _SQUEEZED_RATIO * max(lasted_ms))
        kept = [gram for gram, ms in zip(grams, lasted_ms, strict=True) if ms >= least_ms]
        if len(kept) < copies:
            kept = kept or grams[:1]
            rest = heard[start + copies * length :]
            return said((*heard[:start], *(word for gram in kept for word in gram), *rest))
    return heard


def estimated(reading: Reading, duration_ms: int) -> tuple[HeardWord, ...]:
    """The words spread over the audio by their length: good enough while the caller still speaks."""
    pieces = reading.text.split()
    total = sum(len(piece) + 1 for piece in pieces)
    words, before = [], 0
    for piece in pieces:
        after = before + len(piece) + 1
        start_ms, end_ms = duration_ms * before // total, duration_ms * after // total
        words.append(HeardWord(piece, start_ms, end_ms, reading.confidence))
        before = after
    return tuple(words)


def _timed(heard: Sequence[_Heard], seconds: float) -> tuple[HeardWord, ...]:
    """The last reading's words.

    Whether the sentence ends with them is for the first reader to say: the larger model completes what was broken off.
    """
    timed = [reading.words or reader.align(encoded, reading, seconds) for reader, encoded, reading in heard]
    words = timed[-1]
    if len(heard) == 1 or not words:
        return words
    ended = timed[0] and heard[0][2].text.endswith(tuple(_SENTENCE_ENDS))
    last = words[-1]
    return (*words[:-1], HeardWord(last.word, last.start_ms, last.end_ms, timed[0][-1].confidence if ended else 0.0))


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
            sure = probability if bare[-1] in _SENTENCE_ENDS else last.confidence
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
