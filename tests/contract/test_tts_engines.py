"""One suite for every voice of this environment, on the real models: a real recogniser hears again what they say.

Coqui's is in tests/engines.
"""

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faster_whisper import WhisperModel

from processors import models
from processors.engine import EngineError, Speak
from processors.engine_client import SocketEngine
from processors.tts.engine import ENGINES, create
from streams.settings import Settings
from tests.support.engines import HostProcess, asking, replies, running_host, settings_in
from tests.support.tts_suite import HZ, TtsHostSuite, say

Hear = Callable[[bytes], list[str]]


@pytest.fixture(scope="module", params=sorted({*ENGINES} - {"coqui"}))
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(settings_in(tmp_path_factory.mktemp("tts"), tts=request.param), "tts") as host:
        yield host


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[SocketEngine]:
    async with asking(host, "tts") as client:
        yield client


@pytest.fixture(scope="module")
def hear() -> Hear:
    """Transcribes PCM16 with another model; returns lower-case words and numbers."""
    model = models.resolve(Settings(), "whisper-tiny-en")
    whisper = WhisperModel(str(model.directory), device="cpu", compute_type="int8", cpu_threads=1)

    def words(pcm: bytes) -> list[str]:
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
        segments, _ = whisper.transcribe(samples, language="en", beam_size=5, temperature=0.0)
        return re.findall(r"[a-z']+|\d+", "".join(segment.text for segment in segments).lower())

    return words


class TestSuite(TtsHostSuite):
    """What each of them must do."""


@pytest.mark.parametrize(
    "text", ["Your order is on its way and should arrive on Tuesday.", "You can return anything within a month."]
)
async def test_a_listener_hears_the_words(client: SocketEngine, hear: Hear, text: str) -> None:
    assert await asyncio.to_thread(hear, await say(client, text)) == text.lower().rstrip(".").split()


async def test_a_listener_hears_each_digit_of_an_order_number(client: SocketEngine, hear: Hear) -> None:
    heard = "".join(await asyncio.to_thread(hear, await say(client, "Your order number is 48213.")))
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for digit, name in enumerate(names):
        heard = heard.replace(name, str(digit))
    assert heard.endswith("48213")


async def test_speech_ends_soon_and_is_neither_faint_nor_clipped(client: SocketEngine) -> None:
    samples = np.frombuffer(await say(client, "Hello, this is Pine and Peak."), "<i2").astype(np.int32)
    loud = np.flatnonzero(np.abs(samples) > 0.03 * 32768)
    assert len(samples) - loud[-1] < 0.6 * HZ
    assert 0.1 < np.abs(samples).max() / 32768 < 0.99


async def test_a_voice_that_it_has_not_is_refused_by_name(client: SocketEngine) -> None:
    with pytest.raises(EngineError, match=r"invalid: voice: expected one of \w+.*; found 'nobody'"):
        await replies(client, Speak("Hi", voice="nobody"))


def test_an_unknown_engine_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="TRUNKLINE_ENGINES__TTS: expected hibari, coqui, found 'nothing'"):
        create(settings_in(tmp_path, tts="nothing"))


def test_coqui_without_its_environment_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    if importlib.util.find_spec("TTS") is not None:
        pytest.skip("Coqui is installed here")
    with pytest.raises(EngineError, match=r"an environment made from infra/locks/coqui.lock is expected"):
        create(settings_in(tmp_path, tts="coqui"))
