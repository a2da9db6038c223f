"""Several OpenAI-compatible servers behind one ladder: balanced, one killed for real, and taken back.

Nothing here is timed: a server has all the time that a busy machine may need.
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from processors.breaker import Breaker, State
from processors.engine import EngineError, Generate, Generated, Message, Reply
from processors.ladder import Ladder
from processors.lane import Queue
from processors.llm.openai_compatible import OpenAICompatible
from processors.rungs import ladder
from streams.clock import SystemClock
from streams.settings import Settings
from tests.support.engines import replies, settings_in
from tests.support.llama_server import LlamaServer

KEY = "a-key-of-the-test"
LONG_S = 240.0
CHAT = Generate((Message("user", "Hello?"),), max_tokens=4, temperature=0.0)
STORY = Generate((Message("user", "Tell me a very long story."),), max_tokens=1900, temperature=0.0)  # takes a minute


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[LlamaServer, LlamaServer]]:
    pair = LlamaServer(KEY), LlamaServer(KEY)
    try:
        for server in pair:
            server.start()
        yield pair
    finally:
        for server in pair:
            server.kill()


def both(tmp_path: Path, servers: tuple[LlamaServer, LlamaServer]) -> Settings:
    urls = tuple(server.url for server in servers)
    deadlines = {"llm_first_token_s": LONG_S, "llm_between_tokens_s": LONG_S}
    return settings_in(tmp_path, llm="openai", llm_base_urls=urls, llm_key=SecretStr(KEY), **deadlines)


class Changes(list[tuple[str, State]]):
    """What the breakers did."""

    def note(self, breaker: Breaker, reason: str) -> None:
        self.append((breaker.name, breaker.state))


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
async def one(tmp_path: Path, servers: tuple[LlamaServer, LlamaServer], changes: Changes) -> AsyncIterator[Ladder]:
    one = ladder(both(tmp_path, servers), "llm", SystemClock(), changes.note)
    # Who is asked shall depend on the servers' work alone, not on how slow the machine is.
    one.manner = dataclasses.replace(one.manner, hedge_min_s=LONG_S, hedge_first_s=LONG_S, hedge_max_s=LONG_S)
    one.start()
    await until(lambda: all(lane.reachable and lane.told == Queue(0, 0) for lane in one.lanes))
    yield one
    await one.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.05)


async def begun(stack: AsyncExitStack, stream: AsyncGenerator[Reply, None]) -> AsyncGenerator[Reply, None]:
    """The story's stream after its first piece; it is closed with the stack."""
    await stack.enter_async_context(cast("Any", aclosing(stream)))
    assert isinstance(await anext(stream), Generated)
    return stream


async def test_what_an_endpoint_is_is_known_before_it_is_asked(
    one: Ladder, servers: tuple[LlamaServer, LlamaServer]
) -> None:
    found = [cast("OpenAICompatible", lane.client).description for lane in one.lanes]
    assert [what.address for what in found] == [server.url for server in servers]
    assert all(what.model and what.device == "remote" for what in found)


async def test_two_answers_at_once_are_made_by_two_servers(one: Ladder) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await begun(stack, one.ask(STORY, LONG_S))
        assert [lane.open for lane in one.lanes] == [1, 1]
        await until(lambda: all(lane.told == Queue(0, 1) for lane in one.lanes))
    await until(lambda: all(lane.told == Queue(0, 0) for lane in one.lanes))  # closed, they free their slots


async def test_what_others_ask_of_a_server_counts(
    one: Ladder, tmp_path: Path, servers: tuple[LlamaServer, LlamaServer]
) -> None:
    other = OpenAICompatible(both(tmp_path, servers), number=0)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await begun(stack, other.ask(STORY, LONG_S))
        await until(lambda: one.lanes[0].load == (0, 2))
        for _ in range(3):
            stream = await begun(stack, one.ask(CHAT, LONG_S))
            assert [lane.open for lane in one.lanes] == [0, 1]
            await stream.aclose()
    await other.close()


async def test_a_killed_server_is_left_out_and_taken_back(
    one: Ladder, servers: tuple[LlamaServer, LlamaServer], changes: Changes
) -> None:
    first = one.lanes[0]
    async with AsyncExitStack() as stack:
        stream = await begun(stack, one.ask(STORY, LONG_S))
        assert first.open == 1
        servers[0].kill()
        with pytest.raises(EngineError, match="crashed"):
            _ = [reply async for reply in stream]
    for _ in range(3):
        answer = await replies(one, CHAT, LONG_S)
        assert isinstance(answer[-1], Generated)
        assert answer[-1].tokens_out > 0
    assert changes == [("llm.0", State.OPEN)]
    assert not first.reachable
    await asyncio.to_thread(servers[0].start)
    await until(lambda: first.breaker.closed and all(lane.told == Queue(0, 0) for lane in one.lanes))
    assert changes[-2:] == [("llm.0", State.HALF_OPEN), ("llm.0", State.CLOSED)]
    assert all(name == "llm.0" for name, _ in changes)
    asked_s = first.answered_s
    await replies(one, CHAT, LONG_S)
    assert first.answered_s > asked_s
