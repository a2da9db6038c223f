from pathlib import Path

import pytest

from processors.engine import Speak
from processors.rungs import ladder
from streams.clock import SystemClock
from tests.support.engines import settings_in


@pytest.mark.parametrize(
    ("model", "asked", "instead"),
    [
        ("", "", "emma"),
        ("", "heart", "emma"),
        ("", "emma", "heart"),
        ("hibari-emma", "", "heart"),
        ("hibari-emma", "heart", "emma"),
    ],
)
def test_what_stands_in_for_a_voice_is_another_one(tmp_path: Path, model: str, asked: str, instead: str) -> None:
    settings = settings_in(tmp_path, tts="hibari", tts_model=model, tts_fallback="")
    other = ladder(settings, "tts", SystemClock()).rungs[-1]
    found = other.adapt(Speak("Hello.", asked))
    assert isinstance(found, Speak)
    assert (other.rank, found.voice) == (1, instead)
