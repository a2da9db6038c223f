"""Real calls on the whole platform over vLLM.

In one the model chooses a tool, and says what it told. In the other there are two servers, of which one is killed in
the middle of its answer; the second one goes on: what was said must not be said again, and nothing may be missing.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from api.client import CallEvent, TurnSummary, load_turns, place_call
from bench.faults.checks import check_heard, check_sentences, check_turns, counted, distinct
from schemas.events import Response, ResponseKind, Transcript, TranscriptKind
from streams.settings import REPOSITORY
from tests.engines.conftest import KEY
from tests.engines.mountain import APOLOGY, LONG_S, PATIENCE, QUESTIONS, environment
from tests.engines.tiny_llm import ANSWER, CHOSEN, TOLD
from tests.support.calls import events_of
from tests.support.platform import Platform, running_platform
from tests.support.vllm_server import MODEL, VllmServer

SAID_BEFORE = 3  # what is left fits into the seconds that the rest of an answer may take


@pytest.fixture
async def second(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmServer]:
    """Another server. It is stopped, so that nobody asks it before it is let go on."""
    server = VllmServer(tmp_path_factory.mktemp("second"), KEY)
    try:
        await asyncio.to_thread(server.start)
        server.pause()
        yield server
    finally:
        server.kill()


@pytest.fixture
def platform(vllm: VllmServer, second: VllmServer, tmp_path: Path) -> Iterator[Platform]:
    with running_platform(**environment(tmp_path, vllm.url, second.url)) as running:
        yield running


class FirstAnswer:
    """The answer to the caller's first question, held in its middle: the server crawls, and then stands still."""

    def __init__(self, server: VllmServer, enough: int) -> None:
        """It stands still once the caller knows that many sentences."""
        self._server = server
        self._enough = enough
        self._asked = asyncio.Event()
        self.said = 0

    def on_event(self, event: CallEvent) -> None:
        """Follows what the caller learns of the first turn."""
        match event.type, event.message.get("turn"):
            case "final", 1:
                self._asked.set()
            case "sentence", 1:
                self.said += 1

    async def hold(self) -> None:
        """Returns when the server stands still."""
        async with asyncio.timeout(LONG_S):
            await self._asked.wait()
            await self._server.crawl(lambda: self.said >= self._enough)


class Fate:
    """What happens to the servers during the call."""

    def __init__(self, platform: Platform, first: VllmServer, second: VllmServer) -> None:
        self._platform = platform
        self._first, self._second = first, second
        self.answer = FirstAnswer(first, SAID_BEFORE)
        self.said_before = 0

    def on_turn(self, turn: TurnSummary) -> None:
        """Once the reply was heard, the second one dies, too."""
        self._second.kill()

    async def strike(self) -> None:
        """Stops the first server in its answer, and kills it once the second one, let go on, is reachable."""
        await self.answer.hold()
        async with asyncio.timeout(LONG_S):
            self._second.go_on()
            while (await self._engine("llm.1"))["health"] != "reachable":  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.5)
        self.said_before = self.answer.said
        self._first.kill()

    async def _engine(self, name: str) -> dict[str, object]:
        rows = await asyncio.to_thread(self._platform.rows, "engines")
        return next(row for row in rows if row.get("engine") == name)


async def test_the_model_chooses_a_tool_in_a_call_and_says_what_it_told(vllm: VllmServer, tmp_path: Path) -> None:
    """The caller names an order where the agent has no intent for it: the demo's ERP is asked all the same."""
    with running_platform(**environment(tmp_path, vllm.url)) as platform:
        files = [REPOSITORY / "infra" / "demo" / "2_number.wav", QUESTIONS[0]]
        result = await place_call(platform.url, load_turns(files), agent="mountain", patience=PATIENCE)
        events = counted(distinct(await events_of(platform, result.session_id)))
    assert [*check_turns(result, events), *check_sentences(events), *check_heard(result, events)] == []
    responses = [event for event in events if isinstance(event, Response) and event.turn == 1]
    called, returned, *sentences, end = responses
    assert (called.kind, called.tool, called.source) == (ResponseKind.TOOL_CALLED, "get_order", "model")
    assert json.loads(called.arguments) == {"order_number": CHOSEN}
    assert (returned.kind, returned.outcome, returned.tool_call_id) == (
        ResponseKind.TOOL_RETURNED,
        "ok",
        called.tool_call_id,
    )
    assert json.loads(returned.result)["number"] == CHOSEN
    assert [(event.kind, event.source, event.text) for event in sentences] == [
        (ResponseKind.SENTENCE, "model", text) for text in TOLD
    ]
    assert (end.kind, end.outcome, end.model) == (ResponseKind.COMPLETED, "answered", MODEL)
    assert [turn.reply for turn in result.turns] == [" ".join(TOLD), " ".join(ANSWER)]


async def test_a_server_killed_in_its_answer_is_followed_by_the_next_one_without_a_word_lost_or_said_twice(
    platform: Platform, vllm: VllmServer, second: VllmServer
) -> None:
    fate = Fate(platform, vllm, second)
    striking = asyncio.create_task(fate.strike())
    result = await place_call(
        platform.url,
        load_turns(QUESTIONS),
        agent="mountain",
        on_event=fate.answer.on_event,
        on_turn=fate.on_turn,
        patience=PATIENCE,
    )
    await striking
    assert 0 < fate.said_before < len(ANSWER)

    events = counted(distinct(await events_of(platform, result.session_id)))
    findings = [*check_turns(result, events), *check_sentences(events), *check_heard(result, events)]
    assert findings == []
    responses = [event for event in events if isinstance(event, Response)]
    finals = [e.turn for e in events if isinstance(e, Transcript) and e.kind is TranscriptKind.FINAL]
    assert finals == [1, 2]
    said = [e.text for e in responses if e.kind is ResponseKind.SENTENCE and e.turn == 1]
    assert said == list(ANSWER)
    ends = {e.turn: e for e in responses if e.kind is ResponseKind.COMPLETED}
    assert (ends[1].outcome, ends[1].source, ends[1].text) == ("answered", "model", " ".join(ANSWER))
    assert result.turns[0].reply == " ".join(ANSWER)
    # With nobody left to ask, the caller is told so, and the call goes on to its end.
    assert (ends[2].outcome, ends[2].source) == ("failed", "apology")
    assert result.turns[1].reply == APOLOGY
    assert result.ended == "hung_up"

    rows = {row["engine"]: row for row in await asyncio.to_thread(platform.rows, "engines") if row.get("engine")}
    # It broke off, and may have been asked for the rest before it was known to refuse connections.
    assert rows["llm.0"]["failed"].get("crashed") in (1, 2)
    assert rows["llm.1"]["answered"] == 1
