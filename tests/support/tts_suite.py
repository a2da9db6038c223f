"""What every voice must do, whatever it sounds like.

A module that has a fixture `client` runs all of it with `class TestSuite(TtsSuite)`.
"""

import asyncio
from contextlib import aclosing
from typing import ClassVar

import pytest

from processors.engine import Capabilities, Speak, Spoken
from processors.engine_client import SocketEngine
from tests.support.engines import replies

HZ = 16000
LONG = "You can return anything within thirty days. " * 8


async def speech(client: SocketEngine, request: Speak, deadline_s: float = 60) -> list[Spoken]:
    """The pieces of the speech; raises EngineError."""
    return [reply for reply in await replies(client, request, deadline_s) if isinstance(reply, Spoken)]


async def say(client: SocketEngine, text: str) -> bytes:
    """PCM16 at 16,000 Hz; raises EngineError."""
    return b"".join(piece.pcm for piece in await speech(client, Speak(text)))


class TtsSuite:
    """The client is of an engine in a process of its own, whose voice makes the same sound of the same text."""

    # A sentence of three seconds has more pieces than that.
    PIECES_MIN: ClassVar[int] = 3

    async def test_it_says_what_it_is(self, client: SocketEngine) -> None:
        capabilities: Capabilities = await client.capabilities(30)
        assert (capabilities.role, capabilities.streaming, capabilities.sample_rate_hz) == ("tts", True, HZ)
        assert capabilities.licence

    async def test_speech_comes_in_pieces_of_whole_samples(self, client: SocketEngine) -> None:
        pieces = await speech(client, Speak("Hello, this is Pine and Peak. How can I help you today?"))
        assert len(pieces) > self.PIECES_MIN
        assert all(piece.pcm and len(piece.pcm) % 2 == 0 and len(piece.pcm) <= HZ * 2 for piece in pieces)
        assert all(piece.model for piece in pieces)
        # Each piece carries what it took; those that were made together are paid for with the first.
        assert pieces[0].compute_ms > 0
        assert all(piece.compute_ms >= 0 for piece in pieces)

    async def test_the_same_sentence_is_the_same_sound(self, client: SocketEngine) -> None:
        assert await say(client, "Hello there.") == await say(client, "Hello there.")

    @pytest.mark.parametrize("text", ["", "   ", "...", "🙂", "\n\t"])
    async def test_without_words_there_is_no_sound(self, client: SocketEngine, text: str) -> None:
        assert await say(client, text) == b""

    @pytest.mark.parametrize(
        "text", ["ok", "Grüße aus Köln", "日本語", "a" * 300, "\u202e\x00x", "1" * 60, "?!" * 50 + "a"]
    )
    async def test_odd_text_never_breaks_the_voice(self, client: SocketEngine, text: str) -> None:
        await say(client, text)
        assert await say(client, "Hello.")

    async def test_a_sentence_is_dropped_in_the_middle(self, client: SocketEngine) -> None:
        for _ in range(4):
            async with aclosing(client.ask(Speak(LONG), 60)) as stream:
                assert isinstance(await anext(stream), Spoken)
        assert await say(client, "Hello.")

    async def test_several_sentences_at_once_do_not_mix(self, client: SocketEngine) -> None:
        sentences = ["Hello there.", "Your order is on its way.", "We are open until six."]
        alone = [await say(client, sentence) for sentence in sentences]
        assert await asyncio.gather(*(say(client, sentence) for sentence in sentences)) == alone
