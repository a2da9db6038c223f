"""Our client against the real vLLM: its stream, its metrics, its limits, and its death.

Nothing here is timed: the server has all the time that a busy machine may need.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from pydantic import SecretStr

from processors.agents import load_agents
from processors.breaker import State
from processors.engine import EngineClient, EngineError, Generate, Generated, Message, Reply
from processors.ladder import Ladder
from processors.lane import Queue
from processors.llm.openai_compatible import OpenAICompatible
from processors.rungs import ladder
from streams.clock import SystemClock
from streams.settings import Settings
from tests.engines.conftest import KEY
from tests.engines.tiny_llm import ANSWER, CHOSEN, STORY, TOLD
from tests.support.engines import settings_in
from tests.support.llama_server import LlamaServer
from tests.support.llm_suite import STORY as SUITE_STORY
from tests.support.llm_suite import TOOLS, LlmSuite, chat, pieces
from tests.support.vllm_server import CONTEXT_TOKENS, MODEL, SLOTS, VllmServer

LONG_S = 240.0
BLOCK_TOKENS_MAX = 128  # of vLLM's cache, on whatever device
WHOLE = " ".join(ANSWER)
# As long as the context allows, so that it lasts for seconds on any machine.
ASK_FOR_STORY = msgspec.structs.replace(SUITE_STORY, max_tokens=CONTEXT_TOKENS - 100)
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


def settings(folder: Path, *servers: VllmServer | LlamaServer, **engines: Any) -> Settings:
    urls = tuple(server.url for server in servers)
    patient = {"llm_first_token_s": LONG_S, "llm_between_tokens_s": LONG_S}
    return settings_in(folder, llm="openai", llm_base_urls=urls, llm_key=SecretStr(KEY), **(patient | engines))


@pytest.fixture
async def client(vllm: VllmServer, tmp_path: Path) -> AsyncIterator[EngineClient]:
    client = OpenAICompatible(settings(tmp_path, vllm))
    yield client
    await client.close()


class TestSuite(LlmSuite):
    """What every language model must do."""

    # A prompt of characters is read at once: the answer to it takes long instead.
    UNREAD = ASK_FOR_STORY


async def text(client: EngineClient, request: Generate) -> str:
    return "".join(piece.text for piece in await pieces(client, request, LONG_S))


def whole(words: str = "What is it like in the mountains?") -> Generate:
    return chat(words, max_tokens=2000)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LONG_S):
        while not await holds():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.1)


@asynccontextmanager
async def crawling(vllm: VllmServer) -> AsyncIterator[None]:
    """The server works for a tenth of the time, so that its answers last until they were looked at."""
    looked = asyncio.Event()
    crawl = asyncio.create_task(vllm.crawl(looked.is_set))
    try:
        yield
    finally:
        looked.set()
        await crawl
        vllm.go_on()


async def begun(stack: AsyncExitStack, stream: AsyncGenerator[Reply, None]) -> AsyncGenerator[Reply, None]:
    """The stream after its first piece; it is closed with the stack."""
    await stack.enter_async_context(cast("Any", aclosing(stream)))
    assert isinstance(await anext(stream), Generated)
    return stream


async def test_the_pieces_are_the_answer_in_its_order(client: EngineClient) -> None:
    answer = await pieces(client, whole(), LONG_S)
    assert len(answer) > len(ANSWER)
    assert "".join(piece.text for piece in answer) == WHOLE
    assert answer[-1].model == MODEL
    assert answer[-1].tokens_out == len(WHOLE) + 1  # a token for each character, and the end


async def test_an_answer_that_broke_off_is_gone_on_with(client: EngineClient) -> None:
    asked = whole().messages
    for count in (1, 3, len(ANSWER) - 1):
        said = " ".join(ANSWER[:count])
        rest = await text(client, Generate((*asked, Message("assistant", said)), 2000, 0.0))
        assert said + rest == WHOLE


@pytest.mark.parametrize("way", ["protocol", "schema"])
async def test_the_model_chooses_a_tool_and_says_what_it_told(vllm: VllmServer, tmp_path: Path, way: str) -> None:
    """By vLLM's parser of calls, and by its structured output; both hold the arguments to the schema."""
    client = OpenAICompatible(settings(tmp_path, vllm, llm_tools=way))
    asked = Generate((Message("user", f"Where is my order {CHOSEN}?"),), 200, 0.0, tools=TOOLS)
    *before, choice, counts = await pieces(client, asked, LONG_S)
    assert {piece.choosing for piece in before} == {True}
    assert not any(piece.text for piece in (*before, choice, counts))
    assert choice.chosen is not None
    assert (choice.chosen.tool, json.loads(choice.chosen.arguments)) == ("get_order", {"order_number": CHOSEN})
    assert counts.tokens_out > 5

    chosen = msgspec.structs.replace(choice.chosen, id="abcdefghi")
    answered = (Message("assistant", "", chosen), Message("tool", '{"status": "shipped"}', chosen))
    after = Generate((*asked.messages, *answered), 200, 0.0, tools=TOOLS)
    assert await text(client, after) == " ".join(TOLD)
    assert await text(client, msgspec.structs.replace(after, may_choose=False)) == " ".join(TOLD)
    words = msgspec.structs.replace(asked, messages=(Message("user", "What is it like?"),), max_tokens=2000)
    assert await text(client, words) == WHOLE
    await client.close()


async def test_closed_streams_leave_the_server_nothing_to_do(client: EngineClient, vllm: VllmServer) -> None:
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(begun(stack, client.ask(ASK_FOR_STORY, LONG_S)) for _ in range(SLOTS)))
        async with crawling(vllm):
            await until(lambda: has(vllm, RUNNING, SLOTS))
    await until(lambda: has(vllm, RUNNING, 0))


async def has(vllm: VllmServer, metric: str, value: float) -> bool:
    return await asyncio.to_thread(vllm.metric, metric) == value


async def test_sessions_at_once_get_their_own_answers_and_wait_for_room(
    client: OpenAICompatible, vllm: VllmServer
) -> None:
    asks = [chat("The story, please.", max_tokens=300), chat("What is it like?", max_tokens=300)] * SLOTS
    expected = ["".join(STORY * 2)[:300], WHOLE[:300]] * SLOTS
    assert await asyncio.gather(*(text(client, one) for one in asks)) == expected


async def test_the_queue_is_read_from_the_metrics(client: OpenAICompatible, vllm: VllmServer) -> None:
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(begun(stack, client.ask(ASK_FOR_STORY, LONG_S)) for _ in range(SLOTS)))
        further = asyncio.create_task(text(client, chat("And now?")))

        async def told(queue: Queue) -> bool:
            return await client.queue() == queue

        async with crawling(vllm):
            await until(lambda: told(Queue(1, SLOTS)))
            further.cancel()
            await asyncio.wait({further})
            await until(lambda: told(Queue(0, SLOTS)))
    await until(lambda: told(Queue(0, 0)))


async def test_what_a_conversation_always_begins_with_is_cached(client: EngineClient, vllm: VllmServer) -> None:
    agent = load_agents(Settings().agents_dir)["shop"]
    fixed = "\n".join([agent.persona, *agent.rules])

    def asked(facts: str, question: str) -> Generate:
        return Generate((Message("system", f"{fixed}\nWhat you know: {facts}"), Message("user", question)), 16, 0.0)

    await text(client, asked("Boots are to be dried slowly.", "How do I dry my boots?"))
    before = await asyncio.to_thread(vllm.metric, "vllm:prefix_cache_hits_total")
    await text(client, asked("Ropes wear out.", "When do I need another rope?"))
    hits = await asyncio.to_thread(vllm.metric, "vllm:prefix_cache_hits_total") - before
    assert len(fixed) - BLOCK_TOKENS_MAX <= hits <= len(fixed) + BLOCK_TOKENS_MAX


@pytest.fixture
async def one(vllm: VllmServer, tmp_path: Path) -> AsyncIterator[Ladder]:
    """The stage's way to that server alone, with deadlines that a stopped server misses."""
    deadlines = {"llm_first_token_s": 10.0, "llm_between_tokens_s": 10.0}
    one = ladder(settings(tmp_path, vllm, **deadlines), "llm", SystemClock())
    one.start()
    await one.reach()
    yield one
    vllm.go_on()
    await one.close()


async def answers_again(one: Ladder) -> None:
    """Whatever its breaker did, it is tried until it is well, and answers."""

    async def answered() -> bool:
        try:
            return await text(one, whole()) == WHOLE
        except EngineError:
            return False

    await until(answered)
    assert one.lanes[0].breaker.closed


async def test_the_model_is_known_before_it_is_asked(one: Ladder, vllm: VllmServer) -> None:
    found = cast("OpenAICompatible", one.lanes[0].client).description
    assert (found.model, found.device, found.address) == (MODEL, "remote", vllm.url)
    assert await text(one, whole()) == WHOLE


async def test_a_server_that_does_not_begin_has_failed(one: Ladder, vllm: VllmServer) -> None:
    vllm.pause()
    with pytest.raises(EngineError, match=r"timeout: llm.0 had not begun to answer after 10.0 s"):
        await text(one, whole())
    vllm.go_on()
    await answers_again(one)


async def test_a_server_that_stops_in_its_answer_has_failed(one: Ladder, vllm: VllmServer) -> None:
    async with AsyncExitStack() as stack:
        stream = await begun(stack, one.ask(ASK_FOR_STORY, LONG_S))
        vllm.pause()
        with pytest.raises(EngineError, match=r"timeout: llm.0 paused in its answer for 10.0 s"):
            _ = [reply async for reply in stream]
    vllm.go_on()
    await answers_again(one)
    await until(lambda: has(vllm, RUNNING, 0))


async def test_a_chat_beyond_the_context_is_refused_and_blames_nobody(one: Ladder) -> None:
    with pytest.raises(EngineError, match=r"invalid: the endpoint answered 400: .*context") as raised:
        await text(one, chat("mountain " * CONTEXT_TOKENS))
    assert "mountain" not in raised.value.detail
    assert one.lanes[0].breaker.closed
    assert await text(one, whole()) == WHOLE


@pytest.fixture
def llama() -> Iterator[LlamaServer]:
    server = LlamaServer(KEY)
    try:
        server.start()
        yield server
    finally:
        server.kill()


async def test_a_server_killed_in_its_answer_is_left_out_and_taken_back(
    vllm: VllmServer, llama: LlamaServer, tmp_path: Path
) -> None:
    changes: list[tuple[str, State]] = []
    pair = ladder(
        settings(tmp_path, vllm, llama), "llm", SystemClock(), lambda it, _: changes.append((it.name, it.state))
    )
    pair.start()
    first = pair.lanes[0]

    async def idle() -> bool:
        return all(lane.reachable and lane.told == Queue(0, 0) for lane in pair.lanes)

    async def closed() -> bool:
        return first.breaker.closed

    await until(idle)
    async with AsyncExitStack() as stack:
        stream = await begun(stack, pair.ask(ASK_FOR_STORY, LONG_S))
        assert first.open == 1
        vllm.kill()
        with pytest.raises(EngineError, match="crashed"):
            _ = [reply async for reply in stream]
    # The other one goes on, as the stage has it do for the rest of an answer.
    assert await text(pair, chat("What is it like?")) not in ("", WHOLE)
    assert changes == [("llm.0", State.OPEN)]
    await asyncio.to_thread(vllm.ensure)
    await until(idle)
    await until(closed)
    assert changes[-2:] == [("llm.0", State.HALF_OPEN), ("llm.0", State.CLOSED)]
    assert await text(pair, whole()) == WHOLE
    await pair.close()
