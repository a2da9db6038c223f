"""What every recogniser must do, on human speech, however well it hears.

A module that has the fixtures `client` and `host` runs all of it with `class TestSuite(SttSuite)`.
"""

import asyncio
import re
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from processors.engine import EngineError, Speak, Transcribe, Transcribed
from processors.engine_client import SocketEngine
from tests.support.engines import HostProcess, replies

RATE_HZ = 16_000
ASK_S = 300.0  # a busy machine fails no test
SPEECH = Path(__file__).parent.parent / "data" / "speech"
WORDS = {
    "librivox_0870": "and mister john dashwood had then leisure to consider how much there might be prudently in his "
    "power to do for them",
    "librivox_0880": "he was not an ill disposed young man",
    "librivox_0920": "had he married a more amiable woman he might have been made still more respectable than he was",
}
Samples = NDArray[np.float32]


def recorded(name: str) -> Samples:
    """One of the recordings, mono at `RATE_HZ`, from -1 to 1."""
    with wave.open(str(SPEECH / f"{name}.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(32768)


def pcm(samples: Samples) -> bytes:
    """As engines are asked to read it."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def silence(seconds: float) -> Samples:
    """Nothing at all."""
    return np.zeros(round(seconds * RATE_HZ), dtype=np.float32)


def words(text: str) -> list[str]:
    """In lower case, without punctuation."""
    return re.sub(r"[^a-z' ]", " ", text.lower().replace("mr", "mister").replace("-", " ")).split()


def errors(reference: str, text: str) -> int:
    """Word errors: the edit distance."""
    wanted, found = words(reference), words(text)
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, 1):
        previous, row = row, [number]
        for at, other in enumerate(found, 1):
            row.append(min(previous[at] + 1, row[at - 1] + 1, previous[at - 1] + (word != other)))
    return row[-1]


async def transcribe(client: SocketEngine, samples: Samples, **request: Any) -> Transcribed:
    """The reading of the audio that counts, after what was provisional; raises EngineError."""
    *before, reading = await replies(client, Transcribe(pcm(samples), **request), ASK_S)
    assert all(isinstance(one, Transcribed) and one.provisional for one in before)
    assert isinstance(reading, Transcribed)
    assert not reading.provisional
    return reading


async def until(holds: Callable[[], bool]) -> None:
    """Returns once it holds in another process; asks that in a thread."""
    async with asyncio.timeout(ASK_S):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


def full() -> Transcribe:
    """As much speech as can be read at once: what takes longest."""
    spoken = np.concatenate([recorded(name) for name in (*WORDS, *WORDS, *WORDS)])
    return Transcribe(pcm(spoken[: 30 * RATE_HZ]))


class SttSuite:
    """The client is of an engine in a process of its own, `host`, which gives the same reading of the same audio.

    A best reading may depend on how long the caller can be kept waiting; where readings are compared, quick ones are.
    """

    # What the first ask takes of memory: a model that has not run yet takes several times as much.
    FIRST_ASK_MIB_MAX: ClassVar[int] = 40

    async def test_it_says_what_it_is(self, client: SocketEngine) -> None:
        capabilities = await client.capabilities(ASK_S)
        assert (capabilities.role, capabilities.sample_rate_hz) == ("stt", RATE_HZ)
        assert capabilities.licence
        assert capabilities.concurrency == client.concurrency >= 1
        for language in capabilities.languages[:3]:
            assert (await transcribe(client, silence(1), language=language)).language == language

    async def test_readings_of_speech_that_goes_on_come_in_its_order(self, client: SocketEngine) -> None:
        """Rough ones while more follows, the best at its end: each is one reading, of the audio that it was given."""
        spoken = recorded("librivox_0920")
        heard = []
        for seconds in (0.3, 0.8, 1.5, 2.4, 3.7, 5.1):
            reading = await transcribe(client, spoken[: int(seconds * RATE_HZ)], partial=True)
            assert len(reading.text.split()) <= 6 * seconds + 2
            self._check_words(reading, seconds)
            heard.append(len(reading.words))
        final = await transcribe(client, spoken)
        self._check_words(final, len(spoken) / RATE_HZ)
        assert sorted(heard) == heard
        assert heard[0] < heard[-1] <= len(final.words) + 1

    async def test_words_have_times_and_confidence(self, client: SocketEngine) -> None:
        reading = await transcribe(client, recorded("librivox_0920"))
        assert reading.words[0].start_ms <= 500
        assert 5000 <= reading.words[-1].end_ms <= 6050
        assert 0 < reading.confidence <= 1
        assert reading.model
        assert reading.compute_ms > 0

    def _check_words(self, reading: Transcribed, seconds: float) -> None:
        """They are the text, one after another, inside the audio."""
        assert " ".join(word.word for word in reading.words) == reading.text
        assert sorted(reading.words, key=lambda word: word.start_ms) == list(reading.words)
        for word in reading.words:
            assert 0 <= word.start_ms <= word.end_ms <= 1000 * seconds + 50
            assert 0 < word.confidence <= 1

    async def test_the_same_audio_gives_the_same_text(self, client: SocketEngine) -> None:
        first, second = [await transcribe(client, recorded("librivox_0870"), quick=True) for _ in range(2)]
        assert (first.text, first.words, first.confidence) == (second.text, second.words, second.confidence)

    @pytest.mark.parametrize("samples", [0, 1, 160])
    async def test_empty_audio_holds_no_words(self, client: SocketEngine, samples: int) -> None:
        reading = await transcribe(client, np.zeros(samples, dtype=np.float32))
        assert (reading.text, reading.words, reading.confidence) == ("", (), 0.0)

    @pytest.mark.parametrize("level", [0.0, 0.0005, 0.01, 0.2])
    @pytest.mark.parametrize("seconds", [0.5, 3.0, 28.0])
    async def test_noise_holds_no_words(self, client: SocketEngine, level: float, seconds: float) -> None:
        noise = np.random.default_rng(5).normal(0, level, int(seconds * RATE_HZ)).astype(np.float32)
        reading = await transcribe(client, noise)
        assert (reading.text, reading.words, reading.confidence) == ("", (), 0.0)

    async def test_a_tone_holds_no_words(self, client: SocketEngine) -> None:
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE_HZ) / RATE_HZ)
        assert (await transcribe(client, tone.astype(np.float32))).text == ""

    async def test_what_it_cannot_read_is_refused_by_name(self, client: SocketEngine) -> None:
        known = ", ".join((await client.capabilities(ASK_S)).languages)
        for request, reason, detail in (
            (Transcribe(b"\0\0\0"), "invalid", "pcm: expected whole 16-bit samples, found an odd number of bytes"),
            (Transcribe(bytes(62 * RATE_HZ)), "invalid", "pcm: expected at most 30000 ms, found 31000"),
            (Transcribe(bytes(2 * RATE_HZ), language="xx"), "refused", f"language: expected one of {known}"),
            (Speak("Hi"), "invalid", "expected Transcribe, found Speak"),
        ):
            with pytest.raises(EngineError) as raised:
                await replies(client, request, ASK_S)
            assert (raised.value.reason, raised.value.detail) == (reason, detail)

    @pytest.mark.parametrize("name", WORDS)
    async def test_the_language_is_heard_where_it_may_be_one_of_several(self, client: SocketEngine, name: str) -> None:
        known = (await client.capabilities(ASK_S)).languages
        others = tuple(language for language in ("de", "fr") if language in known)
        if not others:
            pytest.skip("it knows English alone")
        languages = (*others, "en")
        heard = await transcribe(client, recorded(name), language=others[0], languages=languages, quick=True)
        assert heard.language == "en"
        assert errors(WORDS[name], heard.text) <= 0.2 * len(WORDS[name].split())

    async def test_audio_of_hours_is_refused_and_the_next_is_read(self, client: SocketEngine) -> None:
        with pytest.raises(EngineError, match="invalid: expected at most"):
            await replies(client, Transcribe(bytes(2 * RATE_HZ * 3600)), ASK_S)
        assert (await transcribe(client, recorded("librivox_0880"), quick=True)).text

    async def test_sessions_at_once_hear_their_own_words(self, client: SocketEngine) -> None:
        spoken = [recorded(name) for name in WORDS]
        alone = [(await transcribe(client, one, quick=True)).text for one in spoken]
        assert len(set(alone)) == len(WORDS)
        together = await asyncio.gather(*(transcribe(client, one, quick=True) for one in spoken))
        assert [reading.text for reading in together] == alone

    async def test_a_reading_is_cancelled_in_its_middle(self, client: SocketEngine, host: HostProcess) -> None:
        expected = (await transcribe(client, recorded("librivox_0880"), quick=True)).text
        before = ended(host, "cancelled"), ended(host, "answered")
        for _ in range(4):
            reading = asyncio.create_task(replies(client, full(), ASK_S))
            await until(lambda: working(host) >= 1)
            reading.cancel()
            await until(lambda: working(host) == 0)
        assert (ended(host, "cancelled"), ended(host, "answered")) == (before[0] + 4, before[1])
        assert (await transcribe(client, recorded("librivox_0880"), quick=True)).text == expected

    async def test_the_deadline_ends_a_reading(self, client: SocketEngine) -> None:
        expected = (await transcribe(client, recorded("librivox_0880"), quick=True)).text
        with pytest.raises(EngineError, match="timeout"):
            await replies(client, full(), 0.05)
        assert (await transcribe(client, recorded("librivox_0880"), quick=True)).text == expected

    async def test_a_process_that_is_killed_in_its_reading_is_followed_by_one_that_is_warm(
        self, client: SocketEngine, host: HostProcess
    ) -> None:
        expected = (await transcribe(client, recorded("librivox_0880"), quick=True)).text
        readings = [asyncio.create_task(replies(client, full(), ASK_S)) for _ in range(4)]
        await until(lambda: working(host) >= 1)
        host.process.kill()
        *_, last = await asyncio.gather(*readings, return_exceptions=True)
        assert isinstance(last, EngineError)
        assert last.reason == "crashed"
        await asyncio.to_thread(host.replace)
        before = host.memory_mib()
        assert (await transcribe(client, recorded("librivox_0880"), quick=True)).text == expected
        assert host.memory_mib() - before < self.FIRST_ASK_MIB_MAX


def working(host: HostProcess) -> float:
    """How many asks the engine is at work on."""
    return host.metric('trunkline_engine_working{role="stt"}')


def ended(host: HostProcess, outcome: str) -> float:
    """How many asks ended like that."""
    return host.metric(f'trunkline_engine_asks_total{{outcome="{outcome}",role="stt"}}')
