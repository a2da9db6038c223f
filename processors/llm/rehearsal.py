"""Whether an agent's language model begins its answers in time, found out while no caller waits for it."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing

import structlog
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_fixed

from processors.agents import Agent
from processors.engine import EngineClient, EngineError, Generated
from processors.llm.chat import rehearsal_of
from processors.llm.patience import Patience
from processors.llm.sentences import take_sentences
from streams.clock import Clock

log = structlog.get_logger(__name__)

TRIES = 3
"""The first reads the agent's rules, which the model then remembers."""
LOOK_S = 1.0
RETRY_S = 2.0
LOADS_MAX = 30
"""Times that a model is asked which may still be loading."""


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
        for agent in self._agents:
            await self._rehearse(agent, LOADS_MAX)
        while True:
            await self._clock.sleep(LOOK_S)
            for agent in self._agents:
                if self._patience.wants_rehearsal(agent.id) and self._spares_time():
                    await self._rehearse(agent)

    async def _rehearse(self, agent: Agent, attempts_max: int = 1) -> None:
        """One sentence in time will do. A model that fails was not late: callers find that out, as ever."""
        attempts = AsyncRetrying(
            sleep=self._clock.sleep,
            stop=stop_after_attempt(attempts_max),
            wait=wait_fixed(RETRY_S),
            retry=retry_if_exception_type(EngineError),
        )
        in_time = True
        try:
            in_time = await attempts(self._makes_it, agent)
        except RetryError:
            log.info("model not rehearsed", agent=agent.id)
        self._patience.rehearsed(agent.id, in_time)

    async def _makes_it(self, agent: Agent) -> bool:
        for _ in range(TRIES):
            if await self._begins_in_time(agent):
                return True
        return False

    async def _begins_in_time(self, agent: Agent) -> bool:
        """Whether there is a first sentence within the agent's limit; what comes after that is not waited for."""
        limits, written = agent.limits, ""
        try:
            async with (
                asyncio.timeout(limits.first_sentence_ms_max / 1000),
                aclosing(self._engine.ask(rehearsal_of(agent), limits.turn_s_max)) as replies,
            ):
                async for reply in replies:
                    written += reply.text if isinstance(reply, Generated) else ""
                    if take_sentences(written, complete=False)[0]:
                        break
        except TimeoutError:
            return False
        return bool(written.strip())
