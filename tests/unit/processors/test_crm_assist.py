"""Hints: what the agent would say or do, which passages come closest, who calls."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from bench.recovery import embed
from processors.agents import load_agents
from processors.crm.assist import Assist
from processors.crm.call import Call
from processors.engine import Embed, Embedded, EngineError, Reply, Request
from processors.llm.knowledge import Vectors
from schemas.event import Event
from schemas.events import Entity, Intent, IntentKind, Response, ResponseKind, Suggestion
from streams.clock import SystemClock
from streams.settings import REPOSITORY

SESSION = "0b5e7c1a-3d51-4b7e-9d1c-5f0a4a8c2e11"
AGENTS = load_agents(REPOSITORY / "infra" / "agents")
SAID = "I want my money back"


class Embeddings:
    """Gives the vector of the passage that it is asked about, or nothing at all."""

    def __init__(self, away: bool = False) -> None:
        self.away = away

    def all(self, texts: tuple[str, ...]) -> Vectors:
        """Of documents: nothing has anything in common, but for one passage and what is said."""
        if self.away:
            raise EngineError("crashed", "away")
        return np.array([embed((SAID,))[0] if "30 days" in text else embed((text,))[0] for text in texts], np.float32)

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        assert isinstance(request, Embed)
        if self.away:
            raise EngineError("crashed", "away")
        yield Embedded(embed(request.texts).astype("<f4").tobytes(), 64, "scripted", 0.0)

    async def close(self) -> None:
        """See `EngineClient`."""


class Desk:
    """Hints for one call."""

    def __init__(self, embeddings: Embeddings) -> None:
        self.given: list[Suggestion] = []
        self.assist = Assist(AGENTS, embeddings, self._publish, SystemClock())
        self.call = Call(SESSION, b"key")

    def _publish(self, event: Suggestion) -> "asyncio.Future[Any]":
        self.given.append(event)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def take(self, event: Event) -> None:
        """The event arrives; returns when all hints are given."""
        self.call.take(event)
        self.assist.take(self.call, event)
        while self.assist._looking:
            await asyncio.gather(*self.assist._looking)


def envelope(turn: int, age_s: float = 0.0) -> dict[str, Any]:
    return {
        "event_id": f"00000000-0000-0000-0000-{turn:012d}",
        "session_id": SESSION,
        "tenant_id": "demo",
        "agent_id": "shop",
        "turn": turn,
        "seq": 0,
        "occurred_at": SystemClock().now_us() - int(age_s * 1_000_000),
    }


def intent(name: str, text: str, age_s: float = 0.0, committed: bool = True, **values: str) -> Intent:
    entities = tuple(Entity(entity, value, value, 0, 0) for entity, value in values.items())
    return Intent(
        **envelope(1, age_s),
        kind=IntentKind.DETECTED,
        intent=name,
        confidence=0.9,
        text=text,
        entities=entities,
        committed=committed,
    )


async def test_what_the_agent_would_say() -> None:
    desk = Desk(Embeddings(away=True))
    await desk.take(intent("goodbye", "bye"))
    (hint,) = desk.given
    assert (hint.kind, hint.text, hint.intent, hint.turn) == (
        "answer",
        "Thank you for calling Ridgeline Outdoor. Goodbye!",
        "goodbye",
        1,
    )
    await desk.take(intent("order_status", "where is my order"))
    assert desk.given[-1].text == "Sure, I can look that up. What is your order number?"


async def test_what_the_agent_would_do() -> None:
    desk = Desk(Embeddings(away=True))
    await desk.take(intent("order_status", "where is 1042", order_number="1042"))
    (hint,) = desk.given
    assert (hint.kind, hint.title, hint.text) == ("action", "get_order", "Looks an order up. order_number: 1042")


async def test_what_the_documents_say() -> None:
    embeddings = Embeddings()
    desk = Desk(embeddings)
    await desk.assist.learn(embeddings.all)
    await desk.take(intent("return_policy", SAID))
    hint = desk.given[0]
    assert (hint.kind, hint.document) == ("passage", "shop/returns")
    assert "30 days" in hint.text
    assert hint.score > 0.9


async def test_who_calls() -> None:
    desk = Desk(Embeddings())
    record = {"result": '{"name": "Ada", "tier": "gold"}', "outcome": "ok", "tool": "sap.find_customer"}
    await desk.take(Response(**envelope(0), kind=ResponseKind.TOOL_RETURNED, **record))  # type: ignore[arg-type]
    (hint,) = desk.given
    assert (hint.kind, hint.title, hint.text) == ("record", "sap.find_customer", "name: Ada; tier: gold")


@pytest.mark.parametrize(
    "event",
    [intent("goodbye", "bye", age_s=120), intent("goodbye", "bye", committed=False), intent("none", " ")],
    ids=["said long ago", "not committed", "nothing"],
)
async def test_what_wants_no_hint(event: Intent) -> None:
    desk = Desk(Embeddings())
    await desk.take(event)
    assert desk.given == []


async def test_hints_of_one_cause_have_ids_of_their_own_that_stay_the_same() -> None:
    ids = []
    for _ in range(2):
        embeddings = Embeddings()
        desk = Desk(embeddings)
        await desk.assist.learn(embeddings.all)
        await desk.take(intent("order_status", SAID, order_number="1042"))
        ids.append([hint.event_id for hint in desk.given])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0]) > 1
