"""What every voice must do, whatever it sounds like.

A module that has a fixture `client` runs all of it with `class TestSuite(TtsSuite)`; where the engine has a process of
ours, a fixture `host` and `class TestSuite(TtsHostSuite)` run what concerns that, too.
"""

import asyncio
from contextlib import aclosing
from typing import ClassVar

import numpy as np
import pytest

from processors.engine import Embed, EngineClient, EngineError, Speak, Spoken
from processors.engine_client import SocketEngine
from processors.tts.trimmer import QUIET
from tests.support.engines import HostProcess, replies

HZ = 16_000
ASK_S = 300.0  # a busy machine fails no test
GREETING = "Hello, this is Pine and Peak. How can I help you today?"
LONG = "You can return anything within thirty days. " * 8
HUGE = (LONG * 15)[:5000]


async def speech(client: EngineClient, request: Speak, deadline_s: float = ASK_S) -> list[Spoken]:
    """The pieces of the speech; raises EngineError."""
    return [reply for reply in await replies(client, request, deadline_s) if isinstance(reply, Spoken)]


def pcm(pieces: list[Spoken]) -> bytes:
    """The whole speech."""
    return b"".join(piece.pcm for piece in pieces)


async def say(client: EngineClient, text: str) -> bytes:
    """PCM16 at 16,000 Hz; raises EngineError."""
    return pcm(await speech(client, Speak(text)))


class TtsSuite:
    """The client is of a voice that makes the same sound of the same text."""

    # A sentence of three seconds has more pieces than that.
    PIECES_MIN: ClassVar[int] = 3
    # Too short for the longest text, long enough for its beginning.
    DEADLINE_S: ClassVar[float] = 0.5

    async def test_speech_comes_in_pieces_of_whole_samples(self, client: EngineClient) -> None:
        pieces = await speech(client, Speak(GREETING))
        assert len(pieces) > self.PIECES_MIN
        assert all(piece.pcm and len(piece.pcm) % 2 == 0 and len(piece.pcm) <= HZ * 2 // 5 for piece in pieces)
        assert len({piece.model for piece in pieces}) == 1
        assert pieces[0].model
        # Each piece carries what it took; those that were made together are paid for with the first.
        assert pieces[0].compute_ms > 0
        assert all(piece.compute_ms >= 0 for piece in pieces)

    async def test_pieces_come_in_order_and_the_same_each_time(self, client: EngineClient) -> None:
        """What was cut short can go on at any sample of another time."""
        first, second = [await speech(client, Speak(GREETING)) for _ in range(2)]
        assert [piece.pcm for piece in first] == [piece.pcm for piece in second]

    async def test_speech_starts_at_once(self, client: EngineClient) -> None:
        samples = np.frombuffer(await say(client, GREETING), "<i2").astype(np.int32)
        assert np.flatnonzero(np.abs(samples) > QUIET * 32_768)[0] < 0.05 * HZ

    async def test_slower_speech_is_longer(self, client: EngineClient) -> None:
        slow, fast = [len(pcm(await speech(client, Speak("We are open.", speed=speed)))) for speed in (0.6, 1.8)]
        assert slow > 1.5 * fast

    @pytest.mark.parametrize("text", ["", "   ", "...", "🙂", "\n\t"])
    async def test_without_words_there_is_no_sound(self, client: EngineClient, text: str) -> None:
        assert await say(client, text) == b""

    @pytest.mark.parametrize(
        "text", ["ok", "Grüße aus Köln", "日本語", "a" * 300, "\u202e\x00x", "1" * 60, "?!" * 50 + "a"]
    )
    async def test_odd_text_never_breaks_the_voice(self, client: EngineClient, text: str) -> None:
        await say(client, text)
        assert await say(client, "Hello.")

    async def test_what_is_beyond_its_limits_is_refused_by_name(self, client: EngineClient) -> None:
        for request, expected in (
            (Speak("x" * 5001), "text: expected at most 5000 characters, found 5001"),
            (Speak("Hi", speed=9), "speed: expected 0.5 to 2.0, found 9"),
            (Speak("Hi", speed=float("nan")), "speed: expected 0.5 to 2.0, found nan"),
            (Embed(("Hi",)), "expected Speak, found Embed"),
        ):
            with pytest.raises(EngineError) as raised:
                await replies(client, request)
            assert (raised.value.reason, raised.value.detail) == ("invalid", expected)

    async def test_a_sentence_is_dropped_in_the_middle(self, client: EngineClient) -> None:
        expected = await say(client, "Hello.")
        for _ in range(4):
            async with aclosing(client.ask(Speak(LONG), ASK_S)) as stream:
                assert isinstance(await anext(stream), Spoken)
        assert await say(client, "Hello.") == expected

    async def test_the_deadline_ends_the_longest_text(self, client: EngineClient) -> None:
        expected = await say(client, "Hello.")
        with pytest.raises(EngineError, match="timeout"):
            await speech(client, Speak(HUGE), self.DEADLINE_S)
        assert await say(client, "Hello.") == expected

    async def test_sentences_of_several_sessions_do_not_mix(self, client: EngineClient) -> None:
        sentences = ["Hello there.", "Your order is on its way.", "We are open until six."]
        alone = [await say(client, sentence) for sentence in sentences]
        assert len(set(alone)) == len(sentences)
        assert await asyncio.gather(*(say(client, sentence) for sentence in sentences)) == alone


class TtsHostSuite(TtsSuite):
    """The engine has a process of its own, `host`."""

    async def test_it_says_what_it_is(self, client: SocketEngine) -> None:
        capabilities = await client.capabilities(ASK_S)
        assert (capabilities.role, capabilities.streaming, capabilities.sample_rate_hz) == ("tts", True, HZ)
        assert capabilities.licence
        assert capabilities.concurrency == client.concurrency >= 1
        assert client.description.model == capabilities.model == (await speech(client, Speak("Hi.")))[0].model

    async def test_a_language_that_it_has_not_is_refused_with_those_there_are(self, client: SocketEngine) -> None:
        known = (await client.capabilities(ASK_S)).languages
        for language in ("xx", ""):
            with pytest.raises(EngineError) as raised:
                await replies(client, Speak("Hi", language=language))
            expected = f"language: expected one of {', '.join(known)}; found {language!r}"
            assert (raised.value.reason, raised.value.detail) == ("invalid", expected)
        assert await speech(client, Speak("Hi.", language=f"{known[0].upper()}-XX"))

    async def test_no_words_are_logged(self, client: SocketEngine, host: HostProcess) -> None:
        for text in ("Qwyxt 漢字.", "qwyxt " * 100):
            async with aclosing(client.ask(Speak(text), ASK_S)) as stream:
                async for _ in stream:
                    break
        written = host.log.read_text().lower()
        assert "qwyxt" not in written
        assert "漢" not in written

    async def test_a_process_that_is_killed_in_its_speech_is_followed_by_one_that_is_warm(
        self, client: SocketEngine, host: HostProcess
    ) -> None:
        expected = await say(client, "Hello.")
        async with aclosing(client.ask(Speak(HUGE), ASK_S)) as stream:
            assert isinstance(await anext(stream), Spoken)
            host.process.kill()
            with pytest.raises(EngineError, match="crashed"):
                _ = [reply async for reply in stream]
        await asyncio.to_thread(host.replace)
        loaded = host.libraries()
        assert await say(client, "Hello.") == expected
        assert host.libraries() == loaded
