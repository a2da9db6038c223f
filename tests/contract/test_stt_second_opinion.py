"""A second opinion by the real models: where the larger one would say the same, one pass over the text tells."""

from dataclasses import replace

import pytest

from processors import models
from processors.engine import Transcribe, Transcribed
from processors.stt.reader import Reading, WhisperReader
from processors.stt.whisper import WhisperEngine
from streams.settings import Settings
from tests.support.stt_suite import RATE_HZ, WORDS, pcm, recorded


@pytest.fixture(scope="module")
def readers() -> tuple[WhisperReader, WhisperReader]:
    settings = Settings()
    quick, second = (WhisperReader(models.resolve(settings, one.name), "cpu", 1) for one in models.readers(settings))
    return quick, second


def audio(name: str) -> tuple[bytes, float]:
    speech = pcm(recorded(name))
    return speech, len(speech) / 2 / RATE_HZ


def own(reader: WhisperReader, name: str) -> Reading:
    """What it says by itself."""
    speech, seconds = audio(name)
    return reader.read(reader.encode(speech), seconds, Transcribe(speech), "en")


def confirmed(reader: WhisperReader, reading: Reading, name: str) -> Reading | None:
    speech, seconds = audio(name)
    return reader.confirm(reader.encode(speech), reading, seconds, Transcribe(speech))


@pytest.mark.parametrize("name", WORDS)
def test_words_become_the_tokens_that_the_model_says(readers: tuple[WhisperReader, WhisperReader], name: str) -> None:
    for reader in readers:
        reading = own(reader, name)
        assert tuple(reader.tokenizer("en").encode(" " + reading.text)) == reading.tokens


@pytest.mark.parametrize("name", WORDS)
def test_what_is_confirmed_is_what_it_would_have_read(readers: tuple[WhisperReader, WhisperReader], name: str) -> None:
    _, second = readers
    expected = own(second, name)
    found = confirmed(second, replace(expected, model="another", tokens=()), name)
    if found is None:  # it was unsure of a token, though it took it
        return
    assert (found.text, found.model) == (expected.text, second.name)
    speech, seconds = audio(name)
    assert found.words == second.align(second.encode(speech), expected, seconds)
    assert found.logprob == pytest.approx(expected.logprob, abs=0.1)


def test_readings_of_its_own_are_confirmed_but_where_it_was_unsure(
    readers: tuple[WhisperReader, WhisperReader],
) -> None:
    _, second = readers
    assert any(confirmed(second, own(second, name), name) for name in WORDS)


@pytest.mark.parametrize("name", WORDS)
def test_other_words_are_not_confirmed(readers: tuple[WhisperReader, WhisperReader], name: str) -> None:
    quick, second = readers
    reading = own(quick, name)
    begin = reading.text.split()[:-1]
    assert confirmed(second, replace(reading, text=" ".join([*begin, "banana."])), name) is None
    assert confirmed(second, replace(reading, text=" ".join(begin[: len(begin) // 2]) + "."), name) is None


@pytest.mark.parametrize("name", WORDS)
def test_a_reading_whose_second_opinion_was_begun_ahead_is_the_same(
    readers: tuple[WhisperReader, WhisperReader], name: str
) -> None:
    speech, _ = audio(name)
    engine = WhisperEngine(*readers, now_s=lambda: 0.0, free=lambda: True)
    plain, ahead = (list(engine.answer(Transcribe(speech, doubtful=doubtful)))[-1] for doubtful in (False, True))
    assert isinstance(plain, Transcribed)
    assert isinstance(ahead, Transcribed)
    assert (ahead.text, ahead.words) == (plain.text, plain.words)
