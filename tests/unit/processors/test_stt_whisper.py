"""When a reading is trusted: scripted readers around the real engine logic, and the guard against loops."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from processors.engine import HeardWord, Transcribe, Transcribed
from processors.stt.whisper import Reading, WhisperEngine, collapsed, estimated, repeats

SECOND = bytes(2 * 16000)


@dataclass
class ScriptedReader:
    """A reader that says what it was told to say."""

    name: str
    text: str = "hello there"
    logprob: float = -0.1
    no_speech: float = 0.0
    suspect: bool = False
    languages: tuple[str, ...] = ("en",)
    reads: int = field(default=0)

    def speaks(self, language: str) -> bool:
        return language in self.languages

    def encode(self, pcm: bytes) -> Any:
        return self.name

    def read(self, encoded: Any, seconds: float, request: Transcribe, language: str) -> Reading:
        assert encoded == self.name, "each reader has an encoding of its own"
        self.reads += 1
        return Reading(self.text, (1, 2), self.logprob, self.no_speech, self.suspect, self.name, language)

    def align(self, encoded: Any, reading: Reading, seconds: float) -> tuple[HeardWord, ...]:
        assert encoded == self.name == reading.model
        return (HeardWord(reading.text, 0, 900, 0.9),)


def ask(engine: WhisperEngine, **request: Any) -> Transcribed:
    reply = next(iter(engine.answer(Transcribe(SECOND, **request))))
    assert isinstance(reply, Transcribed)
    return reply


@pytest.mark.parametrize(
    ("quick", "second", "partial", "model"),
    [
        ({}, {}, False, "quick"),
        ({"logprob": -0.5}, {}, False, "second"),
        ({"logprob": -0.5}, {}, True, "quick"),
        ({"suspect": True}, {}, False, "second"),
        ({"logprob": -0.5}, {"suspect": True}, False, "quick"),
        ({"logprob": -0.5}, {"no_speech": 0.9, "logprob": -0.9}, False, "quick"),
        ({"suspect": True}, {"suspect": True}, False, "second"),
    ],
)
def test_who_is_believed(quick: dict[str, Any], second: dict[str, Any], partial: bool, model: str) -> None:
    engine = WhisperEngine(ScriptedReader("quick", **quick), ScriptedReader("second", **second))
    assert ask(engine, partial=partial).model == model


def test_silence_needs_no_second_opinion() -> None:
    second = ScriptedReader("second")
    engine = WhisperEngine(ScriptedReader("quick", text="you", logprob=-0.7, no_speech=0.95), second)
    assert ask(engine).text == ""
    assert second.reads == 0


def test_another_language_goes_to_the_model_that_knows_it() -> None:
    quick, second = ScriptedReader("quick"), ScriptedReader("second", languages=("en", "de"))
    engine = WhisperEngine(quick, second)
    assert ask(engine, language="de-CH").model == "second"
    assert quick.reads == 0
    assert set(engine.capabilities.languages) == {"en", "de"}


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("Where is my order?", False),
        ("No, no, no, thank you.", False),
        ("One two one two one two.", False),
        ("5551212", False),
        ("5551212 5551212", True),
        ("Go forward ten meters. Go forward ten meters.", True),
        ("I don't know. I don't know. I don't know.", True),
        ("and then " * 5, True),
        ("you " * 7, True),
        ("He might have been made still more respectable than he was. " * 4, True),
        ("", False),
    ],
)
def test_a_loop_is_told_from_speech(text: str, loops: bool) -> None:
    assert repeats(text) is loops


def test_a_loop_collapses_to_one_copy() -> None:
    assert collapsed("Well, go on. go on. go on. go on. go on. Bye.") == "Well, go on. Bye."
    assert collapsed("No, no, thank you.") == "No, no, thank you."


def test_estimated_words_cover_the_audio_in_order() -> None:
    reading = Reading("one three sixteen", (), -0.1, 0.0, False, "m", "en")
    words = estimated(reading, 1000)
    assert [word.word for word in words] == ["one", "three", "sixteen"]
    assert (words[0].start_ms, words[-1].end_ms) == (0, 1000)
    assert all(a.end_ms == b.start_ms for a, b in itertools.pairwise(words))
