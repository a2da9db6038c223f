"""Speech that is kept: what every caller is told in the same words, and nothing else."""

from collections.abc import Iterator

import pytest

from processors.agents import Agent, load_agents
from processors.engine import Capabilities, Embed, EngineError, Reply, Request, Speak, Spoken
from processors.tts.kept import KeptSpeech, fixed_sentences
from streams.settings import REPOSITORY

GREETING = "Hello, this is Ridgeline Outdoor."


class Voice:
    """Speaks two pieces, and remembers what it was asked."""

    capabilities = Capabilities("tts", "test", streaming=True)

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.warmed = False

    def warm(self) -> None:
        self.warmed = True

    def answer(self, request: Request) -> Iterator[Reply]:
        self.asked.append(request)
        if not isinstance(request, Speak):
            raise EngineError("invalid")
        return iter([Spoken(f"{request.text}/{number}".encode(), "test", 5.0) for number in range(2)])


@pytest.fixture(scope="module")
def shop() -> Agent:
    return load_agents(REPOSITORY / "infra" / "agents")["shop"]


def pcm(replies: Iterator[Reply]) -> list[bytes]:
    return [reply.pcm for reply in replies if isinstance(reply, Spoken)]


def test_greetings_are_spoken_before_anybody_calls(shop: Agent) -> None:
    voice = Voice()
    kept = KeptSpeech(voice, [shop])
    kept.warm()
    assert voice.warmed
    assert GREETING in [request.text for request in voice.asked if isinstance(request, Speak)]
    before = len(voice.asked)
    replies = list(kept.answer(Speak(GREETING, shop.voice.name, shop.voice.speed)))
    assert pcm(iter(replies)) == [f"{GREETING}/{number}".encode() for number in range(2)]
    assert [reply.compute_ms for reply in replies] == [0.0, 0.0]
    assert len(voice.asked) == before


def test_another_voice_or_speed_is_other_speech(shop: Agent) -> None:
    voice = Voice()
    kept = KeptSpeech(voice, [shop])
    for request in (Speak(GREETING), Speak(GREETING, "other"), Speak(GREETING, speed=1.5), Speak(GREETING)):
        assert len(pcm(kept.answer(request))) == 2
    assert len(voice.asked) == 3


def test_what_is_said_to_one_caller_is_not_kept(shop: Agent) -> None:
    voice = Voice()
    kept = KeptSpeech(voice, [shop])
    for _ in range(2):
        list(kept.answer(Speak("Your order 1 0 4 2 is on its way with UPS.")))
    assert len(voice.asked) == 2
    with pytest.raises(EngineError):
        kept.answer(Embed(("text",)))


def test_speech_that_was_broken_off_is_not_kept(shop: Agent) -> None:
    voice = Voice()
    kept = KeptSpeech(voice, [shop])
    pieces = kept.answer(Speak(GREETING))
    next(pieces)
    del pieces
    assert len(pcm(kept.answer(Speak(GREETING)))) == 2
    assert len(voice.asked) == 2


def test_fixed_sentences_hold_no_variable(shop: Agent) -> None:
    assert GREETING in list(fixed_sentences(shop.greeting))
    templates = [text for intent in shop.intents for variants in intent.templates.values() for text in variants]
    assert any(template.variables for template in templates)
    fixed = set(fixed_sentences(templates))
    assert fixed
    assert not any("{" in sentence for sentence in fixed)


class Renamed(Voice):
    """The same name means another voice from time to time; one language it does not speak."""

    meant = "one"

    def voice_meant(self, name: str) -> str:
        return f"{name} {self.meant}"

    def answer(self, request: Request) -> Iterator[Reply]:
        if isinstance(request, Speak) and request.language == "de":
            raise EngineError("invalid", "language: expected en, found 'de'")
        return super().answer(request)


def test_a_name_that_means_another_voice_is_spoken_anew(shop: Agent) -> None:
    voice = Renamed()
    kept = KeptSpeech(voice, [shop])
    for meant, asks in (("one", 1), ("one", 1), ("other", 2), ("other", 2), ("one", 3)):
        voice.meant = meant
        assert len(pcm(kept.answer(Speak(GREETING, "brand")))) == 2
        assert len(voice.asked) == asks


def test_an_agent_that_the_engine_cannot_speak_for_keeps_it_from_no_other(shop: Agent) -> None:
    german = shop.model_copy(update={"languages": ("de",)})
    voice = Renamed()
    KeptSpeech(voice, [german, shop]).warm()
    assert GREETING in [request.text for request in voice.asked if isinstance(request, Speak)]
    assert all(request.language == "en" for request in voice.asked if isinstance(request, Speak))
