"""When a reading is trusted: scripted readers around the real engine logic, and the guard against loops."""

import itertools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor

from processors.engine import HeardWord, Transcribe, Transcribed
from processors.stt.loops import repeats, said
from processors.stt.reader import Reading, _joined, _supported, log_mel
from processors.stt.whisper import WhisperEngine, estimated

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
    reading: Callable[[], None] = lambda: None
    sure: float = 0.9
    sounds_like: Mapping[str, float] = field(default_factory=dict)
    confirms: bool = False
    encoded_apart: int = 0

    def speaks(self, language: str) -> bool:
        return language in self.languages

    def encode(self, pcm: bytes) -> Any:
        return self.name

    def encode_apart(self, pcm: bytes) -> Any:
        self.encoded_apart += 1
        return self.name

    def detect(self, encoded: Any) -> Mapping[str, float]:
        return self.sounds_like

    def read(self, encoded: Any, seconds: float, request: Transcribe, language: str) -> Reading:
        assert encoded == self.name, "each reader has an encoding of its own"
        self.reads += 1
        self.reading()
        return Reading(self.text, (1, 2), self.logprob, self.no_speech, self.suspect, self.name, language)

    def align(self, encoded: Any, reading: Reading, seconds: float) -> tuple[HeardWord, ...]:
        assert encoded == self.name == reading.model
        return (HeardWord(reading.text, 0, 900, self.sure),)

    def confirm(self, encoded: Any, reading: Reading, seconds: float, request: Transcribe) -> Reading | None:
        assert encoded == self.name != reading.model
        words = (HeardWord(reading.text, 10, 800, self.sure),)
        return replace(reading, model=self.name, words=words) if self.confirms else None


def replies(engine: WhisperEngine, **request: Any) -> list[Transcribed]:
    found = []
    for reply in engine.answer(Transcribe(SECOND, **request)):
        assert isinstance(reply, Transcribed)
        found.append(reply)
    return found


def ask(engine: WhisperEngine, **request: Any) -> Transcribed:
    """The reading that counts."""
    return replies(engine, **request)[-1]


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


@pytest.mark.parametrize("confirms", [True, False])
def test_a_second_opinion_that_agrees_is_not_read_word_for_word(confirms: bool) -> None:
    second = ScriptedReader("second", text="it is 1043", confirms=confirms)
    reply = ask(WhisperEngine(ScriptedReader("quick", text="it is 1042"), second))
    assert (reply.model, second.reads) == ("second", 0 if confirms else 1)
    (word,) = reply.words
    assert (word.word, word.start_ms) == (("it is 1042", 10) if confirms else ("it is 1043", 0))


@pytest.mark.parametrize("doubt", [{"suspect": True}, {"logprob": -0.5}])
def test_what_the_first_one_is_unsure_of_is_read_by_the_second(doubt: dict[str, Any]) -> None:
    second = ScriptedReader("second", text="it is 1043", confirms=True)
    assert ask(WhisperEngine(ScriptedReader("quick", text="it is 1042", **doubt), second)).text == "it is 1043"


@pytest.mark.parametrize(
    ("text", "logprob", "partial", "doubtful"),
    [
        ("it is 1042", -0.1, True, True),
        ("it is red", -0.3, True, True),
        ("it is red", -0.1, True, False),
        (".", -0.9, True, False),
        ("it is 1042", -0.1, False, True),
    ],
)
def test_a_reading_says_whether_more_than_one_model_reads_such_words(
    text: str, logprob: float, partial: bool, doubtful: bool
) -> None:
    engine = WhisperEngine(ScriptedReader("quick", text=text, logprob=logprob), ScriptedReader("second"))
    assert ask(engine, partial=partial).doubtful is doubtful


@pytest.mark.parametrize(
    ("asked", "free", "ahead"),
    [
        ({"doubtful": True}, True, 1),
        ({"doubtful": True}, False, 0),
        ({"doubtful": False}, True, 0),
        ({"doubtful": True, "partial": True}, True, 0),
        ({"doubtful": True, "quick": True}, True, 0),
    ],
)
def test_what_the_second_reader_will_be_asked_is_begun_beside_the_first(
    asked: dict[str, Any], free: bool, ahead: int
) -> None:
    second = ScriptedReader("second")
    ask(WhisperEngine(ScriptedReader("quick", text="it is 1042"), second, free=lambda: free), **asked)
    assert second.encoded_apart == ahead


class Watch:
    """A clock that only readers move."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def takes(self, seconds: float) -> Callable[[], None]:
        def pass_by() -> None:
            self.now_s += seconds

        return pass_by

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("doubt", "first_s", "model"),
    [
        ({"logprob": -0.3}, 0.08, "second"),
        ({"logprob": -0.3}, 0.28, "second"),
        ({"logprob": -0.3}, 0.29, "quick"),
        ({"logprob": -0.5}, 0.29, "second"),
        ({"suspect": True}, 0.29, "second"),
        ({"text": "it is 10042"}, 0.29, "second"),
        ({"text": "one oh four"}, 0.29, "second"),
        ({"text": "this one is red"}, 0.08, "quick"),
        ({"logprob": -0.5}, 1.0, "quick"),
    ],
)
def test_a_second_opinion_that_would_come_too_late_is_not_asked_for(
    doubt: dict[str, Any], first_s: float, model: str
) -> None:
    watch = Watch()
    quick = ScriptedReader("quick", **doubt, reading=watch.takes(first_s))
    assert ask(WhisperEngine(quick, ScriptedReader("second"), now_s=watch)).model == model


def test_a_slow_second_model_is_asked_less_but_never_ruled_out() -> None:
    watch = Watch()
    quick = ScriptedReader("quick", logprob=-0.3, reading=watch.takes(0.2))
    second = ScriptedReader("second", reading=watch.takes(4.0))
    engine = WhisperEngine(quick, second, now_s=watch)
    assert [ask(engine).model for _ in range(3)] == ["second", "quick", "quick"]
    quick.reading = watch.takes(0.08)
    assert ask(engine).model == "second"


@pytest.mark.parametrize("stopped_in", ["quick", "second"])
def test_a_reading_nobody_wants_ends_after_the_step_at_work(stopped_in: str) -> None:
    quick, second = ScriptedReader("quick", logprob=-0.5), ScriptedReader("second")
    answer = WhisperEngine(quick, second).answer(Transcribe(SECOND))
    {"quick": quick, "second": second}[stopped_in].reading = answer.cancel
    assert list(answer) == []
    assert (quick.reads, second.reads) == (1, stopped_in == "second")


@pytest.mark.parametrize(
    ("quick", "request_", "models"),
    [
        ({}, {}, [("quick", True), ("quick", False)]),
        ({}, {"quick": True}, [("quick", True), ("quick", False)]),
        ({"logprob": -0.3}, {}, [("quick", True), ("second", False)]),
        ({"text": "it is 1042"}, {}, [("quick", True), ("second", False)]),
        ({"logprob": -0.5}, {}, [("second", False)]),
        ({"suspect": True}, {}, [("second", False)]),
        ({"no_speech": 0.9, "logprob": -0.9}, {}, [("quick", False)]),
        ({}, {"partial": True}, [("quick", False)]),
    ],
)
def test_the_first_ones_words_are_told_at_once_unless_they_are_rough_or_a_guess(
    quick: dict[str, Any], request_: dict[str, Any], models: list[tuple[str, bool]]
) -> None:
    engine = WhisperEngine(ScriptedReader("quick", **quick), ScriptedReader("second"))
    found = replies(engine, **request_)
    assert [(reply.model, reply.provisional) for reply in found] == models
    assert all("".join(word.word for word in reply.words) == reply.text.replace(" ", "") for reply in found[:-1])


def test_each_reading_says_what_it_took_since_the_one_before() -> None:
    watch = Watch()
    quick = ScriptedReader("quick", logprob=-0.3, reading=watch.takes(0.1))
    second = ScriptedReader("second", reading=watch.takes(0.25))
    engine = WhisperEngine(quick, second, now_s=watch)
    assert [reply.compute_ms for reply in replies(engine)] == pytest.approx([100, 250])


@pytest.mark.parametrize("samples", [960, 16_000, 95_999, 160_000, 479_000])
def test_features_are_those_of_the_whole_window(samples: int) -> None:
    extractor = FeatureExtractor()
    speech = np.random.default_rng(1).normal(0, 2000, samples).astype("<i2")
    found = log_mel(extractor, speech.tobytes())
    frames = found.shape[2]
    whole = np.zeros(frames * 160, dtype=np.float32)
    whole[:samples] = speech
    assert frames >= min(3000, samples // 160 + 100)
    np.testing.assert_allclose(found[0], extractor(whole / 32768, padding=0)[:, :frames], atol=1e-5)


def test_a_word_is_as_sure_as_the_end_it_makes() -> None:
    heard = _joined([(" So", 0, 0.2, 0.9), (",", 0.2, 0.2, 0.1), (" he", 0.2, 0.4, 0.5), (".", 0.4, 0.4, 0.8)])
    assert [(word.word, word.confidence) for word in heard] == [("So,", 0.9), ("he.", 0.8)]


@pytest.mark.parametrize(("quick_text", "sure"), [("he was not an.", 0.4), ("he was not an", 0.0)])
def test_the_quick_model_says_whether_the_sentence_is_over(quick_text: str, sure: float) -> None:
    """The larger one completes what was broken off, and is sure of it."""
    quick = ScriptedReader("quick", text=quick_text, logprob=-0.5, sure=0.4)
    reply = ask(WhisperEngine(quick, ScriptedReader("second", text="he was not an ill man.", sure=0.95)))
    assert (reply.model, reply.text) == ("second", "he was not an ill man.")
    assert reply.words[-1].confidence == sure


def test_silence_needs_no_second_opinion() -> None:
    second = ScriptedReader("second")
    engine = WhisperEngine(ScriptedReader("quick", text="you", logprob=-0.7, no_speech=0.95), second)
    assert ask(engine).text == ""
    assert second.reads == 0


def test_punctuation_alone_is_silence() -> None:
    assert ask(WhisperEngine(ScriptedReader("quick", text=". . . . ."))).text == ""


def test_another_language_goes_to_the_model_that_knows_it() -> None:
    quick, second = ScriptedReader("quick"), ScriptedReader("second", languages=("en", "de"))
    engine = WhisperEngine(quick, second)
    assert ask(engine, language="de-CH").model == "second"
    assert quick.reads == 0
    assert set(engine.capabilities.languages) == {"en", "de"}


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("Where is my order?", False),
        ("No, no, no, thank you.", False),
        ("5551212", False),
        ("5551212 5551212", True),
        ("Go forward ten meters. Go forward ten meters.", True),
        ("Hello. Go forward ten meters. Go forward ten meters.", True),
        ("you " * 7, True),
        ("", False),
    ],
)
def test_a_repetition_of_weight_is_looked_at(text: str, again: bool) -> None:
    assert repeats(text) is again


def spoken(text: str, lengths_ms: list[int]) -> tuple[HeardWord, ...]:
    """The words one after the other, each as long as the list says; the last length goes for the rest."""
    at, words = 0, []
    for number, word in enumerate(text.split()):
        length_ms = lengths_ms[min(number, len(lengths_ms) - 1)]
        words.append(HeardWord(word, at, at + length_ms, 0.9))
        at += length_ms
    return tuple(words)


def kept(text: str, lengths_ms: list[int]) -> str:
    return " ".join(word.word for word in said(spoken(text, lengths_ms)))


def test_what_was_said_twice_stays() -> None:
    twice = "He was not ill. He was not ill."
    assert kept(twice, [300]) == twice
    assert kept("five five five five five", [200]) == "five five five five five"


def test_the_copies_of_a_loop_go() -> None:
    looped = "Hello. Go forward ten meters. Go forward ten meters. go forward ten meters."
    assert kept(looped, [400, 300, 300, 300, 300, 0]) == "Hello. Go forward ten meters."
    assert kept("he might have been made more than he might have been made mo", [300] * 7 + [0]) == (
        "he might have been made more than"
    )
    assert kept("you you you you you you", [300, 0]) == "you"
    assert kept("go on now go on now go on now bye", [300, 300, 300, 20, 20, 20, 20, 20, 20, 300]) == "go on now bye"


def test_estimated_words_cover_the_audio_in_order() -> None:
    reading = Reading("one three sixteen", (), -0.1, 0.0, False, "m", "en")
    words = estimated(reading, 1000)
    assert [word.word for word in words] == ["one", "three", "sixteen"]
    assert (words[0].start_ms, words[-1].end_ms) == (0, 1000)
    assert all(a.end_ms == b.start_ms for a, b in itertools.pairwise(words))


@pytest.mark.parametrize(
    ("sounds_like", "spoken"),
    [
        ({"en": 0.1, "de": 0.85, "fr": 0.05}, "de"),
        ({"en": 0.3, "de": 0.65, "fr": 0.05}, "en"),
        ({"en": 0.05, "de": 0.01, "fr": 0.9}, "en"),
        ({"de": 0.02, "en": 0.001, "ru": 0.97}, "de"),
        ({}, "en"),
    ],
)
def test_the_language_of_several_is_heard_and_changes_where_it_is_clear(
    sounds_like: dict[str, float], spoken: str
) -> None:
    reader = ScriptedReader("quick", languages=("en", "de", "ru"), sounds_like=sounds_like)
    assert ask(WhisperEngine(reader), language="en-GB", languages=("en-GB", "de-CH")).language == spoken


def test_a_model_of_one_language_leaves_several_to_one_that_knows_them() -> None:
    quick = ScriptedReader("quick", languages=("en",))
    second = ScriptedReader("second", languages=("en", "de"), sounds_like={"de": 0.9, "en": 0.1})
    heard = ask(WhisperEngine(quick, second), languages=("en", "de"))
    assert (heard.model, heard.language, quick.reads) == ("second", "de", 0)


def test_languages_that_no_model_knows_are_left_out() -> None:
    heard = ask(WhisperEngine(ScriptedReader("quick", languages=("en",))), languages=("en", "xx"))
    assert (heard.model, heard.language) == ("quick", "en")


def test_what_the_device_computes_with_is_a_setting() -> None:
    assert (_supported("", "cpu"), _supported("float32", "cpu")) == ("int8", "float32")


@pytest.mark.parametrize(
    ("compute_type", "device", "expected"),
    [
        ("float99", "cpu", r"engines\.compute_type: expected one of .*int8.* on this cpu, found 'float99'"),
        ("", "tpu", r"engines\.device: expected one of cpu, cuda, found 'tpu'"),
    ],
)
def test_a_device_or_compute_type_there_is_not_is_named(compute_type: str, device: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        _supported(compute_type, device)


# ---- whether the words are a sentence


def judged_by(complete: Callable[[str], float], text: str = "hello there", **request: Any) -> float | None:
    engine = WhisperEngine(ScriptedReader("quick", text), complete=complete, free=lambda: True)
    engine.warm()
    reply = ask(engine, **request)
    assert reply.text == text
    return reply.complete


def test_the_quick_readers_words_are_judged_unless_they_are_rough_or_in_another_language() -> None:
    asked: list[str] = []

    def complete(text: str) -> float:
        asked.append(text)
        return 0.5

    assert judged_by(complete) == 0.5
    assert asked[-1] == "hello there"
    assert judged_by(complete, partial=True) is None
    engine = WhisperEngine(ScriptedReader("quick", languages=("de",)), complete=complete)
    count = len(asked)
    assert ask(engine, language="de").complete is None
    assert len(asked) == count


def test_a_judgement_that_fails_or_comes_late_costs_no_words() -> None:
    late = threading.Event()

    def waits(text: str) -> float:
        late.wait()
        return 0.5

    def fails(text: str) -> float:
        raise KeyError("choices")

    try:
        assert judged_by(fails) is None
        assert judged_by(waits) is None
    finally:
        late.set()
