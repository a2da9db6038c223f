"""The demo agent in words: the real embedding model, both cores and the real ERP; only speech is left out."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from processors.agents import load_agents
from processors.engine import CallTool, Embed, Embedded
from processors.intent.core import create_core as create_intent_core
from processors.intent.engine import create as create_embeddings
from processors.llm.knowledge import Vectors
from processors.llm.stage import create_core
from processors.llm.tools import HttpTools
from processors.stage import Answered, Ask, Emit, Outcome, Position, Received
from schemas.events import Intent, Response, ResponseKind, Session, SessionKind, Transcript, TranscriptKind
from streams.settings import REPOSITORY, Settings

SESSION = "5b0e6dc3-34f6-4dd4-9a35-6a3d6dd2c002"
NOW_US = 1_764_000_000_000_000


@pytest.fixture(scope="module")
def erp_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("erp") / "erp.sqlite"
    command = [sys.executable, "-m", "infra.erp", "--port", "0", "--data", str(data)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


class Talk:
    """A conversation in text: what the caller says goes through the intent core into the conversation."""

    def __init__(self, settings: Settings) -> None:
        agents = load_agents(settings.agents_dir)
        self.embeddings = create_embeddings(settings)
        self.intents = create_intent_core(agents, self.embed)
        self.core = create_core(settings, agents, self.embed)
        self.turn = 0

    def begin(self) -> None:
        """A new call."""
        self.turn = 0
        self.state = self.core.start(SESSION)

    def embedded(self, texts: tuple[str, ...]) -> Embedded:
        (reply,) = self.embeddings.answer(Embed(texts))
        assert isinstance(reply, Embedded)
        return reply

    def embed(self, texts: tuple[str, ...]) -> Vectors:
        reply = self.embedded(texts)
        return np.frombuffer(reply.vectors, dtype="<f4").reshape(-1, reply.dimensions)

    def envelope(self, name: str) -> dict[str, Any]:
        return {
            "event_id": f"{name}-{self.turn}",
            "session_id": SESSION,
            "tenant_id": "demo",
            "agent_id": "shop",
            "turn": self.turn,
            "seq": 0,
            "occurred_at": NOW_US,
        }

    async def start(self) -> list[Response]:
        self.begin()
        return await self.apply(Session(**self.envelope("session"), kind=SessionKind.STARTED))

    async def say(self, text: str) -> list[Response]:
        """What the agent answers, as events."""
        self.turn += 1
        final = Transcript(
            **self.envelope("final"), kind=TranscriptKind.FINAL, utterance=self.turn, text=text, confidence=0.9
        )
        step = self.intents.apply(self.intents.start(SESSION), Received(final, Position(final.TOPIC, 0, 1)), NOW_US)
        (ask,) = step.outcomes
        assert isinstance(ask, Ask)
        answered = Answered(ask.ask_id, self.embedded(ask.request.texts), last=True)
        (emit,) = self.intents.apply(step.state, answered, NOW_US).outcomes
        assert isinstance(emit, Emit)
        assert isinstance(emit.event, Intent)
        return await self.apply(emit.event)

    async def apply(self, event: Session | Intent) -> list[Response]:
        said: list[Response] = []
        step = self.core.apply(self.state, Received(event, Position(event.TOPIC, 0, self.turn)), NOW_US)
        todo: list[Outcome] = list(step.outcomes)
        self.state = step.state
        while todo:
            outcome = todo.pop(0)
            if isinstance(outcome, Emit):
                assert isinstance(outcome.event, Response)
                said.append(outcome.event)
            elif isinstance(outcome, Ask):
                reply = await self.answer(outcome)
                step = self.core.apply(self.state, Answered(outcome.ask_id, reply, last=True), NOW_US)
                todo, self.state = [*todo, *step.outcomes], step.state
        return said

    async def answer(self, ask: Ask) -> Any:
        """The language model is not asked here: it ends without a word, and the agent says that it does not know."""
        if isinstance(ask.request, Embed):
            return self.embedded(ask.request.texts)
        if not isinstance(ask.request, CallTool):
            return None
        tools = HttpTools()
        try:
            async with aclosing(tools.ask(ask.request, ask.deadline_s)) as replies:
                return await anext(replies)
        finally:
            await tools.close()


@pytest.fixture(scope="module")
def talk(erp_url: str, tmp_path_factory: pytest.TempPathFactory) -> Talk:
    return Talk(Settings(data_dir=tmp_path_factory.mktemp("data"), erp_url=erp_url, agents_dir=AGENTS_DIR))


AGENTS_DIR: Path = REPOSITORY / "infra" / "agents"


def words(events: list[Response]) -> str:
    return " ".join(event.text for event in events if event.kind is ResponseKind.SENTENCE)


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("Hi, can you tell me where my order one zero four two is?", "template", "on its way with UPS"),
        ("My order number is 1042, where's my stuff?", "template", "on its way with UPS"),
        ("Hi there. Where is my order?", "clarification", "What is your order number?"),
        ("What's happening with order 3305?", "template", "is delayed"),
        ("What time do you open tomorrow?", "knowledge", "Monday to Friday from 9"),
        ("Where are you located?", "knowledge", "12 Mill Road"),
        ("How many days do I have to send an item back?", "knowledge", "30 days"),
        ("How long does it take until I get my refund?", "knowledge", "five working days"),
        ("Do you have any tents left?", "template", "7 of our Ridge Two tent in stock, at 249 dollars and 50 cents"),
        ("I need a new rain jacket, have you got any?", "template", "5 of our Cloudburst rain jacket"),
        ("Do you have backpacks?", "template", "sold out"),
        ("How long does shipping to Canada take?", "knowledge", "five to ten working days"),
        ("How much does a zipper repair cost?", "knowledge", "25 dollars"),
        ("How should I wash a waterproof jacket?", "knowledge", "30 degrees"),
        ("Let me speak to your supervisor.", "escalation", "putting you through"),
        ("Thank you! Do you also repair tents?", "knowledge", "We repair tents"),
        ("Great, thanks!", "template", "anything else"),
        ("No, that's everything. Thank you. Bye bye.", "template", "Goodbye"),
        ("Who won the football game last night?", "clarification", "do not know"),
    ],
)
async def test_the_first_thing_a_caller_says(talk: Talk, text: str, source: str, expected: str) -> None:
    await talk.start()
    answer = await talk.say(text)
    assert expected in words(answer) or (source == "clarification" and "cannot answer" in words(answer))
    assert answer[-1].kind is ResponseKind.COMPLETED
    assert answer[-1].source == source


async def test_a_call_with_effects(talk: Talk, erp_url: str) -> None:
    greeting = await talk.start()
    assert words(greeting).startswith("Hello, this is Ridgeline Outdoor.")
    assert "order number" in words(await talk.say("I'd like to know where my order is."))
    assert "on its way" in words(await talk.say("It's one zero four two."))
    assert "being packed" in words(await talk.say("And what about two one one seven?"))
    returned = await talk.say("I'd like to return order 1187.")
    assert [event.kind for event in returned][:2] == [ResponseKind.TOOL_CALLED, ResponseKind.TOOL_RETURNED]
    assert "registered the return of order 1 1 8 7" in words(returned)
    assert "what is wrong" in words(await talk.say("Please open a ticket for me."))
    assert "ticket 7 0 0 1" in words(await talk.say("The pole of my tent snapped on the first night."))
    assert "could not find" in words(await talk.say("Where is order 9999?"))
    assert "delayed" in words(await talk.say("Sorry, 3305."))
    bye = await talk.say("That's all, goodbye.")
    assert (bye[-1].outcome, bye[-1].action) == ("ended", "hang_up")
    async with httpx.AsyncClient(base_url=erp_url) as client:
        tickets = (await client.get("/tickets")).json()
        returns = (await client.get("/returns")).json()
    assert [ticket["problem"] for ticket in tickets] == ["The pole of my tent snapped on the first night."]
    assert [one["order_number"] for one in returns] == ["1187"]
