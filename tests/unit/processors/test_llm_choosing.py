"""How choices travel: in OpenAI's protocol, and by schema where a server or a model does not know that."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from processors.engine import Chosen, EngineError, Generate, Generated, Message, Offered
from processors.llm import choosing
from processors.llm.openai_compatible import OpenAICompatible
from tests.support.engines import replies, settings_in

ORDER = {
    "type": "object",
    "properties": {"order_number": {"type": "string"}},
    "required": ["order_number"],
    "additionalProperties": False,
}
TOOLS = (Offered("get_order", "Looks an order up.", json.dumps(ORDER)),)
QUESTION = Message("user", "Where is order 1042?")
CHOICE = Chosen("get_order", '{"order_number": "1042"}', "abcdefghi")
ASK = Generate((Message("system", "Be brief."), QUESTION), tools=TOOLS)
AFTER = Generate(
    (*ASK.messages, Message("assistant", "", CHOICE), Message("tool", '{"outcome": "ok"}', CHOICE)),
    tools=TOOLS,
    may_choose=False,
)


def test_a_chat_with_a_choice_in_the_protocol() -> None:
    *_, choice, answer = [choosing.as_message(message) for message in AFTER.messages]
    assert choice == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "abcdefghi",
                "type": "function",
                "function": {"name": "get_order", "arguments": '{"order_number": "1042"}'},
            }
        ],
    }
    assert answer == {"role": "tool", "content": '{"outcome": "ok"}', "tool_call_id": "abcdefghi"}
    offered = choosing.as_tools(ASK)
    assert offered["tools"][0]["function"]["parameters"] == ORDER
    assert (offered["tool_choice"], choosing.as_tools(AFTER)["tool_choice"]) == ("auto", "none")
    assert choosing.as_tools(Generate((QUESTION,))) == {}


@pytest.mark.parametrize("written", ["{", "[1]", "null", ""])
def test_arguments_that_are_no_object_are_none_to_a_server(written: str) -> None:
    message = choosing.as_message(Message("assistant", "", Chosen("get_order", written, "x")))
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_a_chat_with_a_choice_for_a_model_that_knows_no_tools() -> None:
    assert choosing.without_tools(AFTER).messages == (
        Message("system", "Be brief."),
        Message("user", 'Where is order 1042?\n(get_order answered: {"outcome": "ok"})'),
    )
    asked = choosing.choice_of(ASK)
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert all(part in asked.messages[0].content for part in ("Be brief.", "get_order", "Looks an order up."))
    assert choosing.choice_of(Generate((QUESTION,), tools=TOOLS)).messages[0].role == "system"


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ('{"choice": {"tool": "get_order", "arguments": {"order_number": "1042"}}}', CHOICE),
        ('{"choice": {"tool": "get_order"}}', Chosen("get_order", "{}")),
        ('{"choice": {"tool": null}}', None),
        ('{"choice": {"tool": ""}}', None),
        ('{"choice": {"tool": 7}}', None),
        ('{"choice": null}', None),
        ("[]", None),
        ("[" * 100_000, None),
        ('{"choice": {"tool": "get_order", "argum', None),
        ("", None),
    ],
)
def test_what_was_written_by_schema_is_a_choice_or_none(written: str, found: Chosen | None) -> None:
    choice = choosing.choice_in(written)
    assert (choice and (choice.tool, choice.arguments)) == (found and (found.tool, found.arguments))


# ---- over HTTP


def streamed(*deltas: dict[str, Any]) -> bytes:
    """A streamed answer with counts."""
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": delta}]} for delta in deltas]
    chunks.append({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 3}})
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    return f"{head}{lines}data: [DONE]\n\n".encode()


def refused(status: int) -> bytes:
    return f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()


def call_pieces(*pieces: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"tool_calls": [{"index": 0, "function": piece} | more]} for piece in pieces]


def written(choice: dict[str, Any]) -> bytes:
    return streamed(*({"content": part} for part in re.findall(".{1,9}", json.dumps({"choice": choice}))))


@asynccontextmanager
async def endpoint(
    tmp_path: Path, *answers: bytes, **engines: Any
) -> AsyncIterator[tuple[OpenAICompatible, list[Any]]]:
    """A client of a server with these answers in turn, and what it was asked."""
    asked: list[Any] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        asked.append(json.loads(await reader.readexactly(length)))
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        client = OpenAICompatible(settings_in(tmp_path, llm="openai", llm_base_url=address, llm_model="m", **engines))
        yield client, asked
        await client.close()


async def answer_of(client: OpenAICompatible, request: Generate = ASK) -> tuple[str, Chosen | None, int]:
    """Its words, its choice, and the tokens it read."""
    made = [reply for reply in await replies(client, request) if isinstance(reply, Generated)]
    chosen = [reply.chosen for reply in made if reply.chosen is not None]
    assert len(chosen) <= 1
    return "".join(reply.text for reply in made), chosen[0] if chosen else None, made[-1].tokens_in


async def test_a_choice_that_comes_in_pieces_is_one(tmp_path: Path) -> None:
    pieces = call_pieces({"name": "get_order"}, {"arguments": '{"order_'}, {"arguments": 'number": "1042"}'})
    second = call_pieces({"name": "get_order", "arguments": "{}"}, index=1)
    odd: list[dict[str, Any]] = [{"tool_calls": None}, {"tool_calls": [3]}, {"tool_calls": [{"function": None}]}]
    async with endpoint(tmp_path, streamed({"content": "Let me look."}, *odd, *pieces, *second)) as (client, asked):
        made = [reply for reply in await replies(client, ASK) if isinstance(reply, Generated)]
    assert made[0].text == "Let me look."
    *writing, chosen, _ = made[1:]
    assert all(piece.choosing for piece in writing)
    assert chosen.chosen == Chosen("get_order", '{"order_number": "1042"}')
    assert asked[0]["tools"] == choosing.as_tools(ASK)["tools"]


async def test_a_tool_without_arguments_is_chosen_without_any(tmp_path: Path) -> None:
    async with endpoint(tmp_path, streamed(*call_pieces({"name": "get_order"}))) as (client, _):
        assert await answer_of(client) == ("", Chosen("get_order", "{}"), 10)


@pytest.mark.parametrize("status", [400, 422, 500])
async def test_an_endpoint_that_refuses_tools_is_asked_by_schema_from_then_on(tmp_path: Path, status: int) -> None:
    choice = written({"tool": "get_order", "arguments": {"order_number": "1042"}})
    none, words = written({"tool": None}), streamed({"content": "Hello."})
    async with endpoint(tmp_path, refused(status), choice, none, words, words) as (client, asked):
        assert await answer_of(client) == ("", Chosen("get_order", '{"order_number": "1042"}'), 10)
        assert await answer_of(client) == ("Hello.", None, 20)
        assert await answer_of(client, AFTER) == ("Hello.", None, 10)
    first, second, third, fourth, fifth = asked
    assert "tools" in first
    assert not any("tools" in one for one in asked[1:])
    schema = second["response_format"]["json_schema"]["schema"]
    tool, none = schema["properties"]["choice"]["anyOf"]
    assert tool["properties"] == {"tool": {"type": "string", "const": "get_order"}, "arguments": ORDER}
    assert none["properties"] == {"tool": {"type": "null"}}
    assert third["response_format"] == second["response_format"]
    assert "response_format" not in fourth
    assert "response_format" not in fifth
    assert fifth["messages"][-1]["content"].endswith('(get_order answered: {"outcome": "ok"})')


async def test_an_endpoint_may_be_asked_by_schema_from_the_beginning(tmp_path: Path) -> None:
    choice = written({"tool": "get_order", "arguments": {"order_number": "1042"}})
    async with endpoint(tmp_path, choice, llm_tools="schema") as (client, asked):
        assert (await answer_of(client))[1] == Chosen("get_order", '{"order_number": "1042"}')
    assert "tools" not in asked[0]


async def test_what_an_endpoint_refuses_for_another_reason_is_told(tmp_path: Path) -> None:
    """The first time it may be the tools: it is asked in every way."""
    answers = (refused(400), refused(422), refused(500), streamed({"content": "Hi."}), refused(400))
    async with endpoint(tmp_path, *answers) as (client, asked):
        with pytest.raises(EngineError, match="invalid: the endpoint answered 400"):
            await replies(client, ASK)
        assert (await answer_of(client))[0] == "Hi."
        with pytest.raises(EngineError, match="invalid: the endpoint answered 400"):
            await replies(client, ASK)
    assert ["tools" in one for one in asked] == [True, False, False, True, True]
    assert ["response_format" in one for one in asked] == [False, True, False, False, False]


async def test_an_endpoint_that_knows_neither_answers_with_words(tmp_path: Path) -> None:
    hello = streamed({"content": "Hello."})
    async with endpoint(tmp_path, refused(400), refused(400), hello, hello) as (client, asked):
        for _ in range(2):
            assert (await answer_of(client))[0] == "Hello."
    assert len(asked) == 4
    assert asked[2] == asked[3]
    assert not {"tools", "response_format"} & asked[3].keys()


async def test_other_tools_may_be_taken_in_another_way(tmp_path: Path) -> None:
    """What one agent offers tells nothing of another one's."""
    choice = written({"tool": None})
    hello = streamed({"content": "Hello."})
    async with endpoint(tmp_path, refused(400), choice, hello, hello) as (client, asked):
        await answer_of(client)
        other = Offered("weather", "Tells the weather.", TOOLS[0].parameters)
        await answer_of(client, Generate(ASK.messages, tools=(other,)))
    assert ["tools" in one for one in asked] == [True, False, False, True]


async def test_tools_that_may_not_be_chosen_tell_nothing_of_the_way(tmp_path: Path) -> None:
    """vLLM without a parser takes them, and refuses those that may be."""
    hello = streamed({"content": "Hello."})
    async with endpoint(tmp_path, hello, refused(400), written({"tool": None}), hello) as (client, asked):
        await answer_of(client, AFTER)
        await answer_of(client)
    assert ["tools" in one for one in asked] == [True, True, False, False]


@pytest.mark.parametrize("status", [401, 404, 429, 502])
async def test_what_says_nothing_of_tools_is_not_tried_in_another_way(tmp_path: Path, status: int) -> None:
    async with endpoint(tmp_path, refused(status)) as (client, asked):
        with pytest.raises(EngineError, match=f"the endpoint answered {status}"):
            await replies(client, ASK)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "pieces",
    [
        call_pieces({"name": "get_order"}, {"name": "get_order", "arguments": "{}"}),
        call_pieces(
            {"name": "get_order", "arguments": "{}"}, {"name": "weather", "arguments": "{}"}, {"arguments": "x"}
        ),
        call_pieces({"name": "get_order", "arguments": "{}"}, index=None),
    ],
)
async def test_servers_have_their_own_ways_of_numbering_calls(tmp_path: Path, pieces: list[dict[str, Any]]) -> None:
    async with endpoint(tmp_path, streamed(*pieces)) as (client, _):
        assert (await answer_of(client))[1] == Chosen("get_order", "{}")


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": None}, 0),
        ({"prompt_tokens": "many", "completion_tokens": -1}, 0),
        ({"prompt_tokens": 10**12}, 0),
        ({"prompt_tokens": float("inf")}, 0),
        ([10], 0),
        ("10", 0),
        ({"prompt_tokens": 10, "completion_tokens": None}, 10),
    ],
)
async def test_odd_counts_cost_no_answer(tmp_path: Path, usage: Any, tokens: int) -> None:
    plain = streamed({"content": "Hello."}).replace(
        b'{"prompt_tokens": 10, "completion_tokens": 3}', json.dumps(usage).encode()
    )
    async with endpoint(tmp_path, plain) as (client, _):
        assert await answer_of(client) == ("Hello.", None, tokens)


@pytest.mark.parametrize("odd", ["[" * 50_000, "[1]", '{"error": [[]]}', "null", '{"a": ' * 40_000])
async def test_what_is_no_answer_is_an_engine_error(tmp_path: Path, odd: str) -> None:
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    async with endpoint(tmp_path, f"{head}data: {odd}\n\n".encode()) as (client, _):
        with pytest.raises(EngineError):
            await replies(client, ASK)


async def test_halves_of_characters_reach_nobody(tmp_path: Path) -> None:
    half = [{"content": "\ud83d"}, *call_pieces({"name": "get_order", "arguments": '"\ud83d"'})]
    async with endpoint(tmp_path, streamed(*half)) as (client, _):
        assert await answer_of(client) == ("?", Chosen("get_order", '"?"'), 10)
