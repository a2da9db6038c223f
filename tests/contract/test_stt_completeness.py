"""Whole sentences and broken off ones, told apart by the real language model."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from processors import models
from processors.engine import Transcribe, Transcribed
from processors.stt import whisper
from processors.stt.completeness import Completeness
from processors.stt.endpoint import BROKEN_OFF, WHOLE
from processors.stt.engine import create
from streams.settings import Settings
from tests.support.engines import settings_in
from tests.support.stt_suite import WORDS, pcm, recorded


@pytest.fixture(scope="module")
def complete() -> Completeness:
    return Completeness(models.resolve(Settings(), "smollm2").path)


@pytest.mark.parametrize(
    "text",
    [
        "Where is my order?",
        "How many sleeping bags do you have left?",
        "He was not an ill disposed young man.",
        "Can you tell me how much is left on my balance",
        "I have never seen anything like it in my life.",
    ],
)
def test_a_sentence_is_whole_whatever_mark_it_has(complete: Completeness, text: str) -> None:
    assert complete(text) >= WHOLE
    assert complete(text.rstrip("?.") + "...") == pytest.approx(complete(text), abs=0.01)


@pytest.mark.parametrize(
    "text",
    [
        "Where is.",
        "How many sleeping.",
        "Mr. John Dashwood had then leisure to consider how much.",
        "Had he married a more amiable.",
        "I would like to change my flight to.",
        "Please send the invoice to my.",
    ],
)
def test_what_breaks_off_is_none(complete: Completeness, text: str) -> None:
    assert complete(text) < BROKEN_OFF


def test_odd_texts_have_a_probability_too(complete: Completeness) -> None:
    assert complete("") == complete(" ...?! ") == 0.0
    for text in ("word " * 400, "<|im_end|>", "\U0001f642 ملاحظة", "\x00", "1042"):
        assert 0.0 <= complete(text) <= 1.0


def test_several_threads_get_their_own_answers(complete: Completeness) -> None:
    texts = ["Where is my order?", "Where is.", "Can I return it?", "Can I."] * 3
    alone = [complete(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(complete, texts)) == pytest.approx(alone, abs=0.02)


def heard(settings: Settings, partial: bool = False) -> Transcribed:
    engine = create(settings)
    *_, reply = engine.answer(Transcribe(pcm(recorded(next(iter(WORDS)))), partial=partial))
    assert isinstance(reply, Transcribed)
    return reply


def test_a_reading_says_whether_it_is_whole_unless_it_is_a_rough_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COMPLETE_WAIT_S", "COMPLETE_WAIT_DOUBTFUL_S"):
        monkeypatch.setattr(whisper, name, 60.0)  # however busy the machine
    found = heard(settings_in(tmp_path)).complete
    assert found is not None
    assert 0.0 < found <= 1.0
    assert heard(settings_in(tmp_path), partial=True).complete is None


@pytest.mark.parametrize("name", ["", "no-such-model"])
def test_without_the_model_the_marks_have_to_do(tmp_path: Path, name: str) -> None:
    reply = heard(settings_in(tmp_path, completeness=name))
    assert reply.text
    assert reply.complete is None
