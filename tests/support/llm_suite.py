"""What every language model that a stage can ask must do, whether of ours or behind an endpoint.

A module that has a fixture `client` runs all of it with `class TestSuite(LlmSuite)`.
"""

import asyncio
import json
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec
import pytest

from processors.engine import EngineClient, EngineError, Generate, Generated, Message, Offered, Transcribe
from tests.support.engines import replies

SYSTEM = Message("system", "You are a friendly shop assistant. Answer in one short sentence.")
STORY = Generate((Message("user", "Tell me a very long story."),), max_tokens=1900, temperature=0.0)  # takes a minute

_PARAMETERS = {
    "type": "object",
    "properties": {"order_number": {"type": "string", "description": "digits"}},
    "required": ["order_number"],
    "additionalProperties": False,
}
TOOLS = (Offered("get_order", "Looks up where an order is and when it arrives.", json.dumps(_PARAMETERS)),)


def chat(text: str, **options: Any) -> Generate:
    """A question to the shop assistant, answered the same each time, in 24 tokens at most."""
    return Generate((SYSTEM, Message("user", text)), **{"max_tokens": 24, "temperature": 0.0, **options})


async def pieces(client: EngineClient, request: Generate, deadline_s: float = 120) -> list[Generated]:
    """The whole answer; raises EngineError."""
    return [reply for reply in await replies(client, request, deadline_s) if isinstance(reply, Generated)]


class LlmSuite:
    """The client is of an engine with two slots, and a context of at least 2,000 tokens and less than 20,000."""

    # Takes the model longer than a third of a second.
    UNREAD: ClassVar[Generate] = chat("word " * 1700)

    async def test_an_answer_is_streamed_and_counted(self, client: EngineClient) -> None:
        answer = await pieces(client, chat("Do you like hiking?"))
        *words, last = answer
        assert len(words) > 3
        assert all(piece.text and not piece.tokens_out for piece in words)
        assert last.text == ""
        assert last.model
        assert last.tokens_in > 20
        assert 0 < last.tokens_out <= 24
        assert last.compute_ms > 0
        assert "".join(piece.text for piece in words).strip()

    async def test_the_same_question_at_temperature_zero_has_the_same_answer(self, client: EngineClient) -> None:
        first, second = [
            "".join(piece.text for piece in await pieces(client, chat("What is a tent?"))) for _ in range(2)
        ]
        assert first == second

    async def test_max_tokens_and_stop_end_an_answer(self, client: EngineClient) -> None:
        full = await pieces(client, chat("Count from one to ten in words.", max_tokens=30))
        words = "".join(piece.text for piece in full).split()
        assert len(full) - 1 > 5
        short = await pieces(client, chat("Count from one to ten in words.", max_tokens=5))
        assert short[-1].tokens_out <= 5
        stopped = await pieces(client, chat("Count from one to ten in words.", max_tokens=30, stop=(words[3],)))
        text = "".join(piece.text for piece in stopped)
        assert words[3] not in text
        assert text.split()[0] == words[0]

    async def test_an_answer_is_words_or_one_tool_with_arguments_of_its_schema(self, client: EngineClient) -> None:
        """How well it chooses is the model's; that a choice can be followed is the engine's."""
        chosen = []
        for question in ("Where is my order 1042?", "Please look up my order 1042.", "When does order 1042 arrive?"):
            answer = await pieces(client, chat(question, tools=TOOLS))
            assert answer[-1].tokens_out > 0
            assert answer[-1].model
            choices = [piece.chosen for piece in answer if piece.chosen is not None]
            assert bool("".join(piece.text for piece in answer)) is not bool(choices)
            for choice in choices:
                assert choice.tool == "get_order"
                assert list(json.loads(choice.arguments)) == ["order_number"]
            chosen += choices
        assert chosen
        choice = msgspec.structs.replace(chosen[0], id="abcdefghi")
        told = (Message("assistant", "", choice), Message("tool", '{"status": "shipped"}', choice))
        request = chat("Where is my order 1042?", tools=TOOLS, may_choose=False)
        request = msgspec.structs.replace(request, messages=(*request.messages, *told))
        assert "".join(piece.text for piece in await pieces(client, request))

    async def test_two_answers_at_once_do_not_mix(self, client: EngineClient) -> None:
        questions = [chat("What is a tent?"), chat("What is a boat?")]
        alone = ["".join(piece.text for piece in await pieces(client, question)) for question in questions]
        both = await asyncio.gather(*(pieces(client, question) for question in questions))
        for text, other in zip(["".join(piece.text for piece in answer) for answer in both], alone, strict=True):
            assert text.split()[:3] == other.split()[:3]

    async def test_closing_the_stream_frees_the_model_at_once(self, client: EngineClient) -> None:
        """Both slots are taken by answers that would run for minutes; closed, they make room for the next."""
        for _ in range(2):
            streams = [client.ask(STORY, 300) for _ in range(2)]
            for stream in streams:
                async with aclosing(stream):
                    assert isinstance(await anext(stream), Generated)
        assert (await pieces(client, chat("Hello?"), 20))[-1].tokens_out > 0

    async def test_an_ask_is_cancelled_while_its_prompt_is_read(self, client: EngineClient) -> None:
        """Read to the end, the prompts would keep both slots busy for longer than the last ask waits."""
        for _ in range(8):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await pieces(client, self.UNREAD)
        assert (await pieces(client, chat("Hello?"), 20))[-1].tokens_out > 0

    async def test_the_deadline_ends_an_answer_in_the_middle(self, client: EngineClient) -> None:
        with pytest.raises(EngineError) as raised:
            await pieces(client, STORY, 1.0)
        assert raised.value.reason == "timeout"
        assert (await pieces(client, chat("Hello?")))[-1].tokens_out > 0

    async def test_a_chat_too_long_for_the_model_is_refused(self, client: EngineClient) -> None:
        with pytest.raises(EngineError) as raised:
            await pieces(client, chat("word " * 20_000))
        assert raised.value.reason == "invalid"
        assert "word" not in raised.value.detail

    async def test_odd_input_is_answered_or_refused(self, client: EngineClient) -> None:
        assert (await pieces(client, chat("")))[-1].tokens_out > 0
        odd = "\x00\x07 <|im_start|>system <|im_end|> 🙂 \u202e ملاحظة"
        assert (await pieces(client, chat(odd)))[-1].tokens_out > 0
        for wrong in (Generate((Message("user", "\ud800"),)), Transcribe(b"")):
            with pytest.raises(EngineError) as raised:
                await replies(client, wrong)
            assert raised.value.reason == "invalid"
