"""One suite for every language model a stage can ask: llama.cpp in its own process, and OpenAI-compatible over HTTP."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from processors.engine import EngineClient, EngineError, Generate, Generated, Message
from processors.engine_client import SocketEngine, engine_client
from processors.hosted import hosted_roles
from processors.llm.openai_compatible import OpenAICompatible
from streams.settings import Settings
from tests.support.engines import HostProcess, replies, running_host, settings_in
from tests.support.llama_server import running_llama_server
from tests.support.llm_suite import STORY, LlmSuite, chat, pieces

KEY = "a-key-of-the-test"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(settings_in(tmp_path_factory.mktemp("llm"), threads=1), "llm") as host:
        yield host


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A real OpenAI-compatible server, behind a key."""
    with running_llama_server(KEY) as address:
        yield address


def remote(tmp_path: Path, address: str, key: str = KEY, model: str = "", **engines: Any) -> Settings:
    return settings_in(tmp_path, llm="openai", llm_base_url=address, llm_key=SecretStr(key), llm_model=model, **engines)


@pytest.fixture(params=["llama-cpp", "openai"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineClient]:
    if request.param == "openai":
        # The model behind it knows no tools, and its server takes no notice of them.
        settings = remote(tmp_path, request.getfixturevalue("endpoint"), llm_tools="schema")
    else:
        settings = request.getfixturevalue("host").settings
    client = engine_client(settings, "llm")
    yield client
    await client.close()


class TestSuite(LlmSuite):
    """What each of them must do."""


async def test_a_chat_without_messages_is_refused_by_our_own_engine(host: HostProcess) -> None:
    client = SocketEngine(host.settings, "llm")
    with pytest.raises(EngineError, match="invalid: expected at least one message"):
        await replies(client, Generate(()))
    await client.close()


async def test_the_real_model_killed_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, threads=1)
    client = SocketEngine(settings, "llm")
    with running_host(settings, "llm") as first:
        stream = client.ask(STORY, 300)
        await anext(stream)
        first.process.send_signal(signal.SIGKILL)
        with pytest.raises(EngineError, match="crashed"):
            assert [reply async for reply in stream] == []
    with running_host(settings, "llm"):
        assert (await pieces(client, chat("Hello?")))[-1].tokens_out > 0
    await client.close()


# What only an endpoint can do wrong.


async def test_a_wrong_key_is_said_to_be_wrong(endpoint: str, tmp_path: Path) -> None:
    client = OpenAICompatible(remote(tmp_path, endpoint, key="not-the-key", model="any"))
    with pytest.raises(EngineError, match=r"invalid: the endpoint answered 401: check TRUNKLINE_ENGINES__LLM_KEY"):
        await pieces(client, chat("Hello?"))
    await client.close()


async def test_a_wrong_path_is_said_to_be_wrong(endpoint: str, tmp_path: Path) -> None:
    client = OpenAICompatible(remote(tmp_path, endpoint + "/nowhere", model="any"))
    with pytest.raises(EngineError, match=r"invalid: the endpoint answered 404"):
        await pieces(client, chat("Hello?"))
    await client.close()


async def test_an_absent_endpoint_counts_as_crashed(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{one.getsockname()[1]}/v1"
    client = OpenAICompatible(remote(tmp_path, address))
    with pytest.raises(EngineError, match="crashed: the language model's endpoint: ConnectError"):
        await pieces(client, chat("Hello?"))
    await client.close()


def test_an_endpoint_must_be_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TRUNKLINE_ENGINES__LLM_BASE_URL: expected the address"):
        engine_client(remote(tmp_path, ""), "llm")
    assert "llm" not in hosted_roles(remote(tmp_path, ""))
    assert "llm" in hosted_roles(settings_in(tmp_path))


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
WORD = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'


@pytest.mark.parametrize(
    ("answer", "texts", "error"),
    [
        (HEAD + b": still here\n\n" + WORD + b"data: [DONE]\n\n", ["Hi", ""], None),
        (HEAD + b'event: x\ndata:{}\n\ndata: {"choices": null}\n\n' + WORD + b"data: [DONE]\n\n", ["Hi", ""], None),
        (HEAD + WORD, ["Hi"], "crashed: the endpoint ended its answer early"),
        (HEAD + WORD + b"data: {]\n\n", ["Hi"], "invalid: the endpoint sent what is no JSON object"),
        (HEAD + WORD + b'data: {"error": {"code": 500, "message": "words"}}\n\n', ["Hi"], "crashed: the endpoint answ"),
        (HEAD + WORD + b'data: {"error": "words"}\n\n', ["Hi"], "crashed: the endpoint reported an error"),
        (b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n", [], "refused: the endpoint answered 429"),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 5\r\n\r\nwords", [], "refused: the endpoint answered 503"),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 5\r\n\r\nwords", [], "crashed: the endpoint answered 500"),
        (b"SSH-2.0-x\r\n", [], "crashed: the language model's endpoint: RemoteProtocolError"),
        (b"", [], "crashed: the language model's endpoint: RemoteProtocolError"),
    ],
)
async def test_what_endpoints_say_becomes_replies_or_a_reason(
    tmp_path: Path, answer: bytes, texts: list[str], error: str | None
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = OpenAICompatible(remote(tmp_path, f"http://127.0.0.1:{port}/v1", model="m"))
        found: list[str] = []
        failed = ""
        try:
            async with aclosing(client.ask(chat("Hello?"), 10)) as stream:
                async for reply in stream:
                    assert isinstance(reply, Generated)
                    found.append(reply.text)
        except EngineError as raised:
            failed = str(raised)
        await client.close()
    assert found == texts
    assert failed.startswith(error) if error else not failed
    assert "words" not in failed


@pytest.mark.parametrize(("owner", "told"), [("vllm", True), ("llamacpp", False), (None, False)])
@pytest.mark.parametrize("model", ["", "m"])
async def test_vllm_is_told_to_go_on_with_an_answer_that_broke_off(
    tmp_path: Path, owner: str | None, told: bool, model: str
) -> None:
    asked: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if head.startswith("get"):
            listing = json.dumps({"data": [{"id": "m", "owned_by": owner}]})
            writer.write(f"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{listing}".encode())
        else:
            length = int(head.partition("content-length:")[2].split()[0])
            asked.append(json.loads(await reader.readexactly(length)))
            writer.write(HEAD + WORD + b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = OpenAICompatible(remote(tmp_path, f"http://127.0.0.1:{port}/v1", model=model))
        await client.reach()
        question = Message("user", "Hello?")
        for messages in ((question,), (question, Message("assistant", "Well, hello."))):
            await pieces(client, Generate(messages))
        await client.close()
    new = {"continue_final_message": True, "add_generation_prompt": False}
    warming, first, second = asked
    assert (warming["model"], warming["max_tokens"]) == ("m", 1)
    assert not first.keys() & new.keys()
    assert {name: second[name] for name in second.keys() & new.keys()} == (new if told else {})
