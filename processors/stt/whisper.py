"""Speech to text by a quick Whisper model and, where that is unsure, a second, larger one.

The quick one's words are told at once, so that others work ahead on them while the rest is found out: when each was
said, whether they are a sentence, what the second model makes of it. That one reads if a caller who waits can wait that
long. A reading nobody wants any more ends between two steps of it, since a step cannot be interrupted. What one model
does is in `reader.py`.
"""

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from processors.engine import Capabilities, EngineError, HeardWord, Reply, Request, Transcribe, Transcribed
from processors.stt.completeness import LANGUAGE as COMPLETE_LANGUAGE
from processors.stt.cores import one_is_free
from processors.stt.reader import LANGUAGE_CODES, SENTENCE_ENDS, Reader, Reading
from processors.stt.state import SAMPLE_RATE_HZ
from processors.stt.together import Together, Unwanted

log = structlog.get_logger(__name__)

AUDIO_MS_MAX = 30_000
AUDIO_MS_MIN = 60

# A reading that comes later than that after it was asked for is worse for the caller than one the model is unsure of.
SECOND_BUDGET_S = 0.9
# So long a reading waits for the judgement whether its words are a sentence, while others work on them already: longer
# where the mark is in doubt, which alone would have the caller wait longer still; not at all where other callers wait.
COMPLETE_WAIT_S = 0.06
COMPLETE_WAIT_DOUBTFUL_S = 0.15
_LOOK_S = 0.01
_MARK_SURE = 0.9  # below it `endpoint.py` doubts the mark; engines do not import that: it knows agents
_WARM_S = 5.0
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

_Heard = tuple[Reader, Any, Reading]  # by whom, the audio as that one encoded it, and what it made of it
_Settled = tuple[Transcribed, "Future[float] | None", float]  # with a judgement on its way, waited for so long at most


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that is answered: the languages it may be in, and whether it was withdrawn."""

    request: Transcribe
    duration_ms: int
    candidates: Sequence[str]
    stopped: Callable[[], bool]

    @property
    def seconds(self) -> float:
        return self.duration_ms / 1000


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
        complete: Callable[[str], float] | None = None,
    ) -> None:
        """`together` is that of the readers: as many readings are under way as it makes at once.

        `free` says whether a core has nothing to do; `complete`, how probable it is that a sentence ends there.
        """
        self._complete = complete
        self._judging = ThreadPoolExecutor(1, thread_name_prefix="completeness")
        self._judged_ahead: Future[float] = Future()
        self._judged_ahead.set_result(0.0)
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
            languages=tuple(code for code in LANGUAGE_CODES if any(reader.speaks(code) for reader in self._readers)),
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
        if self._complete is not None:
            _in_time(self._judging.submit(self._complete, "Hello"), _WARM_S)

    def answer(self, request: Request) -> "Transcription":
        """A rough reading; or the best one, mostly with a provisional one before it.

        `refused` for a language that no model knows, `invalid` for what is no PCM of 30 s.
        """
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
        asked = _Asked(request, duration_ms, candidates, stopped)
        settled: _Settled | None = None
        with contextlib.suppress(Unwanted), self._together.reading(not request.partial, lambda: not stopped()):
            settled = yield from self._readings(readers, asked)
        # Out of the readings that others may wait for, since nothing is read any more.
        if settled is not None:
            reply, complete, wait_s = settled
            yield msgspec.structs.replace(reply, complete=_in_time(complete, wait_s, stopped))

    def _candidates(self, request: Transcribe, language: str) -> list[str]:
        """What languages the speech may be in, the probable one first; without those that no model knows beside it."""
        others = [_code(one) for one in request.languages]
        beside = [reader for reader in self._readers if reader.speaks(language)]
        known = [one for one in others if any(reader.speaks(one) for reader in beside)]
        return list(dict.fromkeys((language, *known)))

    def _readings(self, readers: Sequence[Reader], asked: "_Asked") -> "Generator[Transcribed, None, _Settled | None]":
        """The first reader's words as soon as they are there; returns what counts in the end, None where stopped.

        That is the second reader's reading where the first is unsure and the caller can wait for it. Each `compute_ms`
        is this reading's share of the time since the one before.
        """
        first, *others = readers
        second = others[0] if others and not (asked.request.partial or asked.request.quick) else None
        ahead = self._begun_ahead(second, asked.request)
        began_s, mine_s = self._now_s(), self._mine_s
        heard = self._first(first, asked)
        if heard is None:
            return None
        _, _, reading = heard
        spent_s = self._now_s() - began_s
        complete = self._judged(reading, asked.request)
        if not asked.request.partial and _is_probable(reading):
            words = estimated(reading, asked.duration_ms)
            yield _reply(reading, words, self._mine_s - mine_s, first=reading, provisional=True)
            mine_s = self._mine_s
        every = [heard]
        if second is not None and not reading.silent and spent_s * (1 + self._second_ratio) <= _budget_s(reading):
            opinion = self._opinion(second, ahead, reading, asked, spent_s)
            if opinion is None:
                if complete is not None:
                    complete.cancel()
                return None
            if not (opinion[2].silent or (opinion[2].suspect and not reading.suspect)):
                every.append(opinion)
        return self._settled(every, asked, complete, mine_s)

    def _settled(
        self, heard: "Sequence[_Heard]", asked: "_Asked", complete: "Future[float] | None", mine_s: float
    ) -> "_Settled":
        """The last reading with its words' times."""
        reading = heard[-1][2]
        words: tuple[HeardWord, ...] = ()
        if not reading.silent:
            rough = asked.request.partial and not reading.words
            words = estimated(reading, asked.duration_ms) if rough else _timed(heard, asked.seconds)
        reply = _reply(reading, words, self._mine_s - mine_s, first=heard[0][2])
        sure = bool(words) and words[-1].confidence >= _MARK_SURE
        wait_s = 0.0 if asked.request.quick else COMPLETE_WAIT_S if sure else COMPLETE_WAIT_DOUBTFUL_S
        return reply, complete, wait_s

    @property
    def _mine_s(self) -> float:
        """A clock that stands still while others' readings are at work."""
        return self._now_s() - self._together.others_s

    def _judged(self, reading: Reading, request: Transcribe) -> "Future[float] | None":
        """Whether that is a sentence, found out beside what follows; the larger model completes what broke off.

        While a core has nothing to do, what was said so far is judged, too: the model remembers what it has read, and
        judges the end so much sooner.
        """
        if self._complete is None or reading.silent or reading.language != COMPLETE_LANGUAGE:
            return None
        if not request.partial:
            return self._judging.submit(self._complete, reading.text)
        if self._judged_ahead.done() and self._free():
            self._judged_ahead = self._judging.submit(self._complete, reading.text)
        return None

    @staticmethod
    def _first(reader: Reader, asked: "_Asked") -> "_Heard | None":
        """What the first reader makes of it; None where it was stopped."""
        encoded = reader.encode(asked.request.pcm)
        if asked.stopped():
            return None
        language = _spoken(reader, encoded, asked.candidates)
        reading = reader.read(encoded, asked.seconds, asked.request, language)
        return None if asked.stopped() else (reader, encoded, reading)

    def _opinion(
        self, second: Reader, ahead: "Future[Any] | None", reading: Reading, asked: "_Asked", first_s: float
    ) -> "_Heard | None":
        """What the second reader makes of it, of which the first one's reading took `first_s`; None where stopped."""
        began_s = self._now_s()
        encoded = ahead.result() if ahead is not None else second.encode(asked.request.pcm)
        if asked.stopped():
            return None
        # What the first one is unsure of, the other seldom says as well.
        likely = reading.logprob >= UNSURE_BELOW and not reading.suspect
        other = second.confirm(encoded, reading, asked.seconds, asked.request) if likely else None
        if other is None and not asked.stopped():
            other = second.read(encoded, asked.seconds, asked.request, reading.language)
        if other is None or asked.stopped():
            return None
        if ahead is None:
            self._measured((self._now_s() - began_s) / max(first_s, 1e-3))
        return second, encoded, other

    def _begun_ahead(self, second: Reader | None, request: Transcribe) -> "Future[Any] | None":
        """The second reader's encoding, begun beside the first one's reading where it will probably be wanted.

        Only while a core has nothing to do, and nobody else is read.
        """
        under_way = self._ahead is not None and not self._ahead.done()
        if second is None or not request.doubtful or under_way or not (self._together.alone and self._free()):
            return None
        self._ahead = self._apart.submit(second.encode_apart, request.pcm)
        return self._ahead

    def _measured(self, ratio: float) -> None:
        """The second model took that many times as long as the first, for the same audio in the same moment."""
        kept = _SECOND_RATIO_KEPT * self._second_ratio + (1 - _SECOND_RATIO_KEPT) * ratio
        self._second_ratio = min(kept, _SECOND_RATIO_MAX)


def _reply(
    reading: Reading, words: tuple[HeardWord, ...], took_s: float, first: Reading, provisional: bool = False
) -> Transcribed:
    return Transcribed(
        text="" if reading.silent else reading.text,
        words=words,
        confidence=0.0 if reading.silent else reading.confidence,
        language=reading.language,
        model=reading.model,
        compute_ms=took_s * 1000,
        doubtful=not first.silent and _budget_s(first) > 0,
        provisional=provisional,
    )


def _in_time(
    complete: "Future[float] | None", wait_s: float, stopped: Callable[[], bool] = lambda: False
) -> float | None:
    """What is known by then, or before it is stopped: callers wait for the reading, and the marks tell much of it."""
    if complete is None:
        return None
    try:
        for _ in range(math.floor(wait_s / _LOOK_S)):
            if complete.done() or stopped():
                break
            wait((complete,), _LOOK_S)
        return complete.result(0)
    except TimeoutError:
        complete.cancel()
    except Exception as error:  # whatever its runtime raises of odd texts: the words are there all the same
        log.warning("whether words are a sentence cannot be told", error=type(error).__name__)
    return None


def _is_probable(reading: Reading) -> bool:
    """Whether it is hardly changed by what follows, so that working ahead on it is worth its while."""
    return not (reading.silent or reading.suspect) and reading.logprob >= GUESSED_BELOW


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
    ended = timed[0] and heard[0][2].text.endswith(tuple(SENTENCE_ENDS))
    last = words[-1]
    return (*words[:-1], HeardWord(last.word, last.start_ms, last.end_ms, timed[0][-1].confidence if ended else 0.0))
