"""What an engine's answer must look like to be believed.

An engine that went wrong often answers all the same: a word two hundred times, silence, noise, vectors of another
model. What could not be the answer to its request is a failure like any other, so that another engine is asked.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import numpy as np

from processors.engine import (
    Embed,
    Embedded,
    EngineError,
    Generate,
    Generated,
    Reply,
    Request,
    Speak,
    Spoken,
    Transcribe,
    Transcribed,
)

SAMPLES_A_SECOND = 16_000
WORDS_A_SECOND_MAX = 6.0  # people reach five for a while
CHARS_A_SECOND_MAX = 30.0
SPARE_WORDS, SPARE_CHARS = 6, 60  # short audio may hold numbers that are written as many words
SAME_WORDS_MAX = 12  # in a row
UNIT_TOLERANCE = 0.02
CHARS_A_TOKEN_MAX = 24
SAME_TOKENS_MAX = 16
SPEECH_S_A_CHAR_MAX, SPEECH_S_SPARE = 0.4, 4.0  # a digit may be spoken for half a second
QUIET_PEAK = 64  # of 32,768: no voice is so faint
QUIET_S_MAX = 1.5  # before the first sound
CLIPPED_SHARE_MAX = 0.3


class GarbageError(EngineError):
    """An engine answered what cannot be an answer. Its text says what was expected, never what was said."""

    def __init__(self, detail: str) -> None:
        super().__init__("invalid", detail)


class Checker:
    """Checks the replies to one role's requests; remembers the dimensions that its vectors had first."""

    def __init__(self) -> None:
        self._dimensions = 0

    async def checked(self, request: Request, replies: AsyncGenerator[Reply, None]) -> AsyncGenerator[Reply, None]:
        """The replies as they come; raises GarbageError at the first that cannot be, or when there is none.

        Silence at the beginning of speech is held back until a sound follows, so that an engine that makes nothing but
        silence is found out before any of it was passed on.
        """
        async with aclosing(replies):
            match request:
                case Transcribe():
                    stream = _each(replies, lambda reply: _check_transcribed(request, reply))
                case Embed():
                    stream = _each(replies, lambda reply: self._check_embedded(request, reply))
                case Generate():
                    stream = _generated(request, replies)
                case Speak():
                    stream = _spoken(request, replies)
                case _:
                    stream = replies
            async with aclosing(stream):
                found = False
                async for reply in stream:
                    found = True
                    yield reply
            if not found and not (isinstance(request, Speak) and not sounds(request.text)):
                raise GarbageError("expected an answer, found none")

    def _check_embedded(self, request: Embed, reply: Reply) -> None:
        if not isinstance(reply, Embedded):
            raise _other(Embedded, reply)
        rows, dimensions = len(request.texts), reply.dimensions
        if dimensions < 1 or len(reply.vectors) != 4 * rows * dimensions:
            raise GarbageError(f"vectors: expected {rows} rows of {dimensions}, found {len(reply.vectors)} bytes")
        if self._dimensions not in (0, dimensions):
            raise GarbageError(f"dimensions: expected {self._dimensions}, found {dimensions}")
        vectors = np.frombuffer(reply.vectors, "<f4").reshape(rows, dimensions)
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(vectors, axis=1)
        if not bool(np.all(np.abs(lengths - 1.0) <= UNIT_TOLERANCE)):  # false for what is not finite, too
            raise GarbageError("vectors: expected rows of length 1")
        if rows:
            self._dimensions = dimensions


async def _each(replies: AsyncIterator[Reply], check: Callable[[Reply], None]) -> AsyncGenerator[Reply, None]:
    async for reply in replies:
        check(reply)
        yield reply


def _check_transcribed(request: Transcribe, reply: Reply) -> None:
    if not isinstance(reply, Transcribed):
        raise _other(Transcribed, reply)
    seconds = len(request.pcm) / 2 / SAMPLES_A_SECOND
    words = reply.text.split()
    if len(words) > SPARE_WORDS + WORDS_A_SECOND_MAX * seconds:
        raise GarbageError(f"text: expected fewer words in {seconds:.1f} s, found {len(words)}")
    if len(reply.text) > SPARE_CHARS + CHARS_A_SECOND_MAX * seconds:
        raise GarbageError(f"text: expected fewer characters in {seconds:.1f} s, found {len(reply.text)}")
    if _same_in_a_row(words) > SAME_WORDS_MAX:
        raise GarbageError(f"text: expected no word more than {SAME_WORDS_MAX} times in a row")
    if not 0.0 <= reply.confidence <= 1.0:
        raise GarbageError(f"confidence: expected 0 to 1, found {reply.confidence}")
    if not math.isfinite(reply.compute_ms):
        raise GarbageError("compute_ms: expected a finite number")
    end_ms = 1000 * seconds + 1000
    if any(not 0 <= word.start_ms <= word.end_ms <= end_ms or not 0 <= word.confidence <= 1 for word in reply.words):
        raise GarbageError("words: expected times within the audio and confidences of 0 to 1")


async def _generated(request: Generate, replies: AsyncIterator[Reply]) -> AsyncGenerator[Reply, None]:
    chars, tail = 0, ""
    async for reply in replies:
        if not isinstance(reply, Generated):
            raise _other(Generated, reply)
        chars += len(reply.text) + (len(reply.chosen.arguments) if reply.chosen is not None else 0)
        if chars > request.max_tokens * CHARS_A_TOKEN_MAX:
            raise GarbageError(f"text: expected at most {request.max_tokens} tokens, found {chars} characters")
        tail = (tail + reply.text)[-400:]
        if _same_in_a_row(tail.split()) > SAME_TOKENS_MAX:
            raise GarbageError(f"text: expected no word more than {SAME_TOKENS_MAX} times in a row")
        if any(ord(char) < 32 and char not in "\t\n\r" for char in reply.text):
            raise GarbageError("text: expected no control characters")
        yield reply


async def _spoken(request: Speak, replies: AsyncIterator[Reply]) -> AsyncGenerator[Reply, None]:
    longest = SPEECH_S_SPARE + SPEECH_S_A_CHAR_MAX * len(request.text) / max(request.speed, 0.1)
    seconds, sounded, held = 0.0, False, list[Reply]()
    async for reply in replies:
        if not isinstance(reply, Spoken):
            raise _other(Spoken, reply)
        seconds += _check_pcm(reply.pcm)
        if seconds > longest:
            raise GarbageError(f"pcm: expected at most {longest:.1f} s for {len(request.text)} characters")
        if not sounded:
            held.append(reply)
            sounded = _peak(reply.pcm) > QUIET_PEAK
            if not sounded and seconds > QUIET_S_MAX:
                break
            if sounded:
                for one in held:
                    yield one
            continue
        yield reply
    if not sounded and sounds(request.text):
        raise GarbageError(f"pcm: expected speech, found {seconds:.1f} s of silence")


def _check_pcm(pcm: bytes) -> float:
    """Its length in seconds."""
    if not pcm or len(pcm) % 2:
        raise GarbageError(f"pcm: expected whole 16-bit samples, found {len(pcm)} bytes")
    samples = np.frombuffer(pcm, "<i2").astype(np.int32)
    if float(np.mean(np.abs(samples) >= 32_767)) > CLIPPED_SHARE_MAX:
        raise GarbageError("pcm: expected speech, found full scale")
    return len(samples) / SAMPLES_A_SECOND


def _peak(pcm: bytes) -> int:
    return int(np.abs(np.frombuffer(pcm, "<i2").astype(np.int32)).max(initial=0))


def _same_in_a_row(words: list[str]) -> int:
    longest = run = 0
    before = ""
    for word in words:
        run = run + 1 if word == before else 1
        before = word
        longest = max(longest, run)
    return longest


def sounds(text: str) -> bool:
    """Whether there is anything in it to be spoken."""
    return any(character.isalnum() for character in text)


def _other(expected: type, found: object) -> GarbageError:
    return GarbageError(f"expected {expected.__name__}, found {type(found).__name__}")
