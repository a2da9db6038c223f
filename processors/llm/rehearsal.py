"""Whether an agent's language model begins its answers in time, found out while no caller waits for it."""

from collections.abc import Callable, Iterable
from contextlib import aclosing

import structlog

from processors.agents import Agent
from processors.choices import History
from processors.engine import EngineClient, EngineError, Generated
from processors.generations import ForTurns
from processors.llm.chat import rehearsal_of
from processors.llm.patience import Patience
from processors.llm.sentences import take_sentences
from streams.clock import Clock

log = structlog.get_logger(__name__)

TRIES = 3
"""The first reads the agent's rules, which the model then remembers."""
LOOK_S = 1.0
LOADS_MAX = 30
"""Looks for which a model may still be loading."""


class Rehearsal:
    """Asks the model of each agent something once, and again whenever `Patience` wants to know; tells it."""

    def __init__(
        self,
        agents: Iterable[Agent],
        patience: Patience,
        engine: EngineClient,
        clock: Clock,
        spares_time: Callable[[], bool] = lambda: True,
    ) -> None:
        """`spares_time` says whether there is time for what no caller asked for."""
        self._agents = tuple(agents)
        self._patience = patience
        self._engine = engine
        self._clock = clock
        self._spares_time = spares_time

    async def run(self) -> None:
        """Never ends by itself."""
        loading = {agent.id: LOADS_MAX for agent in self._agents}
        while True:
            for agent in self._agents:
                left = loading.get(agent.id, 0)
                if (left or self._patience.wants_rehearsal(agent.id)) and self._spares_time():
                    in_time = await self._makes_it(agent)
                    loading[agent.id] = left - 1 if left and in_time is None else 0
                    self._patience.rehearsed(agent.id, in_time)
            await self._clock.sleep(LOOK_S)

    async def _makes_it(self, agent: Agent) -> bool | None:
        """Whether one of some first sentences is there in time; None where the model does not answer."""
        limit_s = agent.limits.first_sentence_ms_max / 1000
        try:
            for number in range(TRIES):
                if not self._spares_time():
                    return None
                if await self._first_sentence_s(agent, number) <= limit_s:
                    return True
        except EngineError as error:
            log.info("model not rehearsed", agent=agent.id, reason=error.reason)
            return None
        log.info("model is late", agent=agent.id, limit_s=limit_s)
        return False

    async def _first_sentence_s(self, agent: Agent, number: int) -> float:
        """How long it takes. It is waited for however late it is: an engine is blamed for what is withdrawn early."""
        engine, written = self._engine, ""
        if isinstance(engine, ForTurns):  # the agent may have a model of its own
            engine = engine.for_turn(History(self._clock.now_us(), agent_id=agent.id), 1)
        began_s = self._clock.monotonic_s()
        async with aclosing(engine.ask(rehearsal_of(agent, number), agent.limits.turn_s_max)) as replies:
            async for reply in replies:
                written += reply.text if isinstance(reply, Generated) else ""
                if take_sentences(written, complete=False)[0]:
                    break
        if not written.strip():
            raise EngineError("invalid", "no words")
        return self._clock.monotonic_s() - began_s
