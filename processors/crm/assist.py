"""Hints for a person who follows a call: what the agent would say or do, what its documents say, and who calls."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import numpy as np
import structlog

from processors.agents import Agent
from processors.crm.call import Call
from processors.engine import Embed, Embedded, EngineClient, EngineError
from processors.llm.decide import Call as ToolCall
from processors.llm.decide import Say, decide
from processors.llm.knowledge import EmbedTexts, KnowledgeIndex, Vectors
from processors.llm.memory import Memory, introduce
from processors.stage import caused
from processors.templates import RenderError
from schemas.event import Event
from schemas.events import Intent, IntentKind, Response, ResponseKind, Suggestion, SuggestionKind
from streams.clock import Clock

log = structlog.get_logger(__name__)

PASSAGES_MAX = 2
SCORE_MIN = 0.35
EMBED_S = 2.0
# Who follows a call needs no hint about what was said long ago.
STALE_US = 60_000_000
_AGAIN_S = 60.0


class Assist:
    """Makes hints and gives them to `publish`; passages need the embedding engine, and do without it."""

    def __init__(
        self,
        agents: Mapping[str, Agent],
        embeddings: EngineClient,
        publish: Callable[[Suggestion], "asyncio.Future[Any]"],
        clock: Clock,
    ) -> None:
        self._agents = agents
        self._embeddings = embeddings
        self._publish = publish
        self._clock = clock
        self._knowledge: dict[str, KnowledgeIndex] = {}
        self._looking: set[asyncio.Task[None]] = set()

    async def learn(self, embed: EmbedTexts) -> None:
        """Embeds the agents' documents, and tries again until the engine is there."""
        while len(self._knowledge) < len(self._agents):
            try:
                for name, agent in self._agents.items():
                    self._knowledge[name] = await asyncio.to_thread(KnowledgeIndex.build, agent, embed)
            except EngineError as error:
                log.info("no passages are suggested", why=error.reason)
                await self._clock.sleep(_AGAIN_S)

    def take(self, call: Call, event: Event) -> None:
        """Suggests what an event of the call gives reason to."""
        agent = self._agents.get(event.agent_id)
        if agent is None or self._clock.now_us() - event.occurred_at > STALE_US:
            return
        match event:
            case Response(kind=ResponseKind.TOOL_RETURNED, turn=0, outcome="ok") if call.record:
                self._give(event, SuggestionKind.RECORD, title=event.tool, text=_listed(call.record))
            case Intent(kind=IntentKind.DETECTED, committed=True) if event.text.strip():
                for fields in _plan(agent, call, event):
                    self._give(event, intent=event.intent, score=event.confidence, **fields)
                task = asyncio.get_running_loop().create_task(self._look(agent, event))
                self._looking.add(task)
                task.add_done_callback(self._looking.discard)

    async def _look(self, agent: Agent, event: Intent) -> None:
        """Suggests the passages that come closest to what was said."""
        index = self._knowledge.get(agent.id)
        vector = await self._embedded(event.text) if index is not None else None
        if index is None or vector is None:
            return
        for number, hit in enumerate(index.search(vector, passages_max=PASSAGES_MAX)):
            if hit.score < SCORE_MIN:
                return
            self._give(
                event,
                SuggestionKind.PASSAGE,
                number,
                intent=event.intent,
                title=hit.passage.heading,
                text=" ".join(hit.quote()),
                document=hit.document,
                score=hit.score,
            )

    async def _embedded(self, text: str) -> Vectors | None:
        try:
            async with aclosing(self._embeddings.ask(Embed((text,)), EMBED_S)) as replies:
                async for reply in replies:
                    if isinstance(reply, Embedded):
                        return np.frombuffer(reply.vectors, dtype="<f4")
        except EngineError as error:
            log.debug("no passages were suggested", why=error.reason)
        return None

    def _give(self, cause: Event, kind: SuggestionKind, number: int = 0, **fields: Any) -> None:
        name = f"suggestion-{kind}-{number}"
        sent = self._publish(caused(cause, Suggestion, name, self._clock.now_us(), kind=kind, **fields))
        # A hint that is not written is missed by nobody; the log says elsewhere that it is away.
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())


def _plan(agent: Agent, call: Call, event: Intent) -> Iterator[dict[str, Any]]:
    """What the agent itself would do about it."""
    started = call.started
    caller = started.caller if started is not None else None
    memory = introduce(Memory(record=call.record), caller, started.context if started is not None else {})
    try:
        plan = decide(agent, memory, event)
    except RenderError:
        return
    match plan:
        case Say(text=text):
            yield {"kind": SuggestionKind.ANSWER, "text": text}
        case ToolCall(spec=spec, values=values):
            tool = agent.tool(spec.tool or "")
            said = " ".join(part for part in (tool.description, _listed(values)) if part)
            yield {"kind": SuggestionKind.ACTION, "title": tool.name, "text": said}


def _listed(fields: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in fields.items())
