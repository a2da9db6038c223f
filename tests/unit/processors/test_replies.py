"""Answers that cannot be answers are told from those that can."""

import asyncio
import math
import struct
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from processors.engine import (
    Embed,
    Embedded,
    Generate,
    Generated,
    HeardWord,
    Message,
    Reply,
    Request,
    Speak,
    Spoken,
    Transcribe,
    Transcribed,
)
from processors.replies import Checker, GarbageError

SECOND = bytes(32_000)
CHAT = Generate((Message("user", "Hello"),), max_tokens=40)


def transcribed(text: str = "hello there", confidence: float = 0.9, words: tuple[HeardWord, ...] = ()) -> Transcribed:
    return Transcribed(text, words, confidence, "en", "m", 10.0)


def embedded(*rows: list[float]) -> Embedded:
    return Embedded(np.array(rows, "<f4").tobytes(), len(rows[0]) if rows else 0, "m", 1.0)


def tone(seconds: float, peak: float = 8000.0) -> bytes:
    wave = peak * np.sin(np.arange(int(16_000 * seconds)) * 0.1)
    return bytes(wave.astype("<i2").tobytes())


def through(request: Request, *replies: Reply, checker: Checker | None = None) -> list[Reply]:
    async def stream() -> AsyncGenerator[Reply, None]:
        for reply in replies:
            yield reply

    async def run() -> list[Reply]:
        return [reply async for reply in (checker or Checker()).checked(request, stream())]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "replies"),
    [
        (Transcribe(SECOND), [transcribed()]),
        (Transcribe(SECOND), [transcribed("")]),
        (Transcribe(SECOND), [transcribed("no no no no")]),
        (Transcribe(SECOND), [transcribed("1 2 3 4 5 6 7 8 9")]),
        (Transcribe(SECOND), [transcribed(words=(HeardWord("hello", 0, 900, 0.5),))]),
        (Embed(("a", "b")), [embedded([1.0, 0.0], [0.6, 0.8])]),
        (CHAT, [Generated("Your order "), Generated("is on its way."), Generated("", "m", 3, 5)]),
        (Speak("Hello there."), [Spoken(tone(0.5)), Spoken(bytes(3200)), Spoken(tone(0.3))]),
        (Speak("..."), []),
    ],
)
def test_ordinary_answers_pass(request_: Request, replies: list[Reply]) -> None:
    assert through(request_, *replies) == replies


@pytest.mark.parametrize(
    ("request_", "replies", "named"),
    [
        (Transcribe(SECOND), [], "found none"),
        (Transcribe(SECOND), [Generated("hello")], "expected Transcribed"),
        (Transcribe(30 * SECOND), [transcribed("you " * 200)], "words"),
        (Transcribe(30 * SECOND), [transcribed("so " + "thank " * 20)], "in a row"),
        (Transcribe(SECOND), [transcribed("x" * 400)], "characters"),
        (Transcribe(SECOND), [transcribed(confidence=math.nan)], "confidence"),
        (Transcribe(SECOND), [transcribed(words=(HeardWord("a", 0, 90_000, 0.5),))], "times"),
        (Embed(("a",)), [embedded([1.0, 0.0], [0.0, 1.0])], "rows"),
        (Embed(("a",)), [embedded([math.nan, 1.0])], "length 1"),
        (Embed(("a",)), [embedded([0.0, 0.0])], "length 1"),
        (Embed(("a",)), [Embedded(b"", 0, "m", 1.0)], "rows"),
        (CHAT, [Generated("you " * 30)], "in a row"),
        (CHAT, [Generated("a b " * 300)], "tokens"),
        (CHAT, [Generated("\x00\x01")], "control"),
        (Speak("Hello there."), [], "silence"),
        (Speak("Hello there."), [Spoken(b"")], "whole"),
        (Speak("Hello there."), [Spoken(b"\x01\x02\x03")], "whole"),
        (Speak("Hello there."), [Spoken(bytes(16_000))], "silence"),
        (Speak("Hello there."), [Spoken(struct.pack("<h", -32768) * 8000)], "full scale"),
        (Speak("Hi."), [Spoken(tone(1.0))] * 20, "at most"),
    ],
)
def test_garbage_is_told(request_: Request, replies: list[Reply], named: str) -> None:
    with pytest.raises(GarbageError, match=named) as found:
        through(request_, *replies)
    assert found.value.reason == "invalid"


def test_vectors_of_another_model_are_told_by_their_dimensions() -> None:
    checker = Checker()
    through(Embed(("a",)), embedded([1.0, 0.0]), checker=checker)
    with pytest.raises(GarbageError, match="expected 2, found 3"):
        through(Embed(("a",)), embedded([1.0, 0.0, 0.0]), checker=checker)


def test_silence_is_held_back_until_a_sound_follows() -> None:
    """Else the caller would hear the silence of a broken engine before another one speaks."""

    async def run() -> list[str]:
        told: list[str] = []

        async def stream() -> AsyncGenerator[Reply, None]:
            told.append("silence made")
            yield Spoken(bytes(6400))
            told.append("sound made")
            yield Spoken(tone(0.2))

        async for _ in Checker().checked(Speak("Hello."), stream()):
            told.append("passed on")
        return told

    assert asyncio.run(run()) == ["silence made", "sound made", "passed on", "passed on"]


def test_an_error_never_says_what_was_said() -> None:
    with pytest.raises(GarbageError) as found:
        through(Transcribe(SECOND), transcribed("secret " * 40))
    assert "secret" not in str(found.value)
