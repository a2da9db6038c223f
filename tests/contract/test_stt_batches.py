"""Readings of several calls in one call of the real model: each gets its own words, as it would alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from processors.engine import Transcribe, Transcribed
from processors.stt.engine import create
from processors.stt.whisper import WhisperEngine
from streams.settings import EngineSettings, Settings
from tests.support.stt_suite import WORDS, errors, pcm, recorded

TOGETHER = 4


@pytest.fixture(scope="module")
def engine() -> WhisperEngine:
    engine = create(Settings(engines=EngineSettings(batch_max=TOGETHER)))
    assert isinstance(engine, WhisperEngine)
    engine.warm()
    return engine


def reading(engine: WhisperEngine, audio: bytes, **request: object) -> Transcribed:
    *_, reply = engine.answer(Transcribe(audio, quick=True, **request))  # type: ignore[arg-type]
    assert isinstance(reply, Transcribed)
    return reply


def test_it_takes_as_many_at_once_as_it_says(engine: WhisperEngine) -> None:
    assert engine.capabilities.concurrency == TOGETHER


def test_each_reading_of_a_batch_is_its_own(engine: WhisperEngine) -> None:
    audio = {name: pcm(recorded(name)) for name in WORDS}
    audio["nothing"] = pcm(np.zeros(16_000, dtype=np.float32))
    alone = {name: reading(engine, speech) for name, speech in audio.items()}
    with ThreadPoolExecutor(TOGETHER) as pool:
        together = dict(zip(audio, pool.map(lambda speech: reading(engine, speech), audio.values()), strict=True))
    assert together["nothing"].text == ""
    for name, words in WORDS.items():
        assert errors(words, together[name].text) <= errors(words, alone[name].text) + 1
        assert [word.word for word in together[name].words] == together[name].text.split()
        assert together[name].words[-1].end_ms == pytest.approx(alone[name].words[-1].end_ms, abs=200)


def test_a_withdrawn_reading_of_a_batch_ends_and_the_others_go_on(engine: WhisperEngine) -> None:
    audio = [pcm(recorded(name)) for name in WORDS]
    answers = [engine.answer(Transcribe(speech, quick=True)) for speech in audio]
    with ThreadPoolExecutor(TOGETHER) as pool:
        asked = [pool.submit(list, answer) for answer in answers]
        answers[1].cancel()
        replies = [one.result() for one in asked]
    assert [len(several) for several in replies] == [2, 0, 2]
