"""The engines of a role in generations: a new model is warmed beside the old one and takes over between two turns.

Each generation has a ladder of its own. A turn keeps the one it began with; when no session needs a generation any
more its connections are closed, by which the supervisor knows that its processes can go (`api/swaps.py`).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Protocol, runtime_checkable

import structlog

from processors.choices import Choice, History, Watched, current, needed, routed
from processors.engine import EngineClient, Reply, Request
from processors.ladder import Ladder
from streams.clock import Clock

log = structlog.get_logger(__name__)

LOOK_S = 0.25  # at the file, for what stands by and what is over; a turn that begins looks for itself

Histories = Callable[[], Iterable[History]]


@runtime_checkable
class ForTurns(Protocol):
    """A client that asks another engine depending on whose turn it is."""

    def for_turn(self, history: History, turn: int) -> EngineClient:
        """The client for that turn of that session; `history` remembers which engine it is."""
        ...


class Generations:
    """An `EngineClient` over the generations of a role, to be used from one event loop.

    `make` gives the ladder of a generation. Asks that belong to no session go to the current one.
    """

    def __init__(self, role: str, watched: Watched, make: Callable[[Choice], Ladder], clock: Clock) -> None:
        self.role = role
        self._watched = watched
        self._make = make
        self._clock = clock
        self._ladders: dict[int, Ladder] = {}
        self._open: dict[int, int] = {}
        self._histories: Histories | None = None
        self._tending: asyncio.Task[None] | None = None

    @property
    def generations(self) -> tuple[int, ...]:
        """Those that can be asked at once."""
        return tuple(self._ladders)

    def start(self, histories: Histories = tuple) -> None:
        """Begins to look after the engines; `histories` are those of the sessions in memory. Safe to repeat."""
        self._histories = histories
        if self._tending is None:
            self._tend_once()
            self._tending = asyncio.create_task(self._tend())

    async def reach(self) -> None:
        """Returns when an engine of the current generation can be asked."""
        await self._ladder(current(self._watched.choices()).generation).reach()

    def for_turn(self, history: History, turn: int) -> EngineClient:
        """See `ForTurns`. A change of the file counts from the next turn on that begins."""
        generation = routed(self._watched.choices(), history.began_us, history.turns, turn, history.agent_id)
        history.pin(turn, generation)
        return _Generation(self, generation)

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        generation = current(self._watched.choices()).generation
        async with aclosing(self.ask_generation(generation, request, deadline_s)) as replies:
            async for reply in replies:
                yield reply

    async def ask_generation(self, generation: int, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """An ask to that generation, which stays connected until it has ended.

        Where none of its engines is there, those of another one that are answer: better another voice than none.
        """
        ladder = self._ladder(generation)
        if not ladder.stands:
            others = (one for one in sorted(self._ladders, reverse=True) if self._ladders[one].stands)
            generation = next(others, generation)
            ladder = self._ladder(generation)
        self._open[generation] = self._open.get(generation, 0) + 1
        try:
            async with aclosing(ladder.ask(request, deadline_s)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            self._open[generation] -= 1

    async def close(self) -> None:
        """See `EngineClient`."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        for ladder in self._ladders.values():
            await ladder.close()

    def _ladder(self, generation: int) -> Ladder:
        """The generation's, or where it is gone the current one's."""
        found = self._ladders.get(generation)
        if found is None:
            choices = self._watched.choices()
            choice = next((one for one in choices if one.generation == generation), None)
            if choice is None:
                return self._ladder(current(choices).generation)
            found = self._ladders[generation] = self._make(choice)
            log.info("generation_asked", role=self.role, generation=generation, model=choice.name)
        return found

    async def _tend(self) -> None:
        while True:
            for generation in self._tend_once():
                if self._open.get(generation):  # asked while another one was retired
                    continue
                ladder = self._ladders.pop(generation)
                log.info("generation_left", role=self.role, generation=generation)
                await ladder.retire()
            await self._clock.sleep(LOOK_S)

    def _tend_once(self) -> list[int]:
        """Connects to what is needed; returns the generations that nobody needs any more."""
        choices = self._watched.choices()
        # Of one alone it is known without asking every session.
        histories = list(self._histories()) if self._histories is not None and len(choices) > 1 else []
        wanted = needed(choices, histories)
        for generation in wanted:
            self._ladder(generation).start()
        return [one for one in self._ladders if one not in wanted and not self._open.get(one)]


class _Generation:
    """An `EngineClient` for one generation."""

    def __init__(self, generations: Generations, generation: int) -> None:
        self._generations = generations
        self._generation = generation

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        async with aclosing(self._generations.ask_generation(self._generation, request, deadline_s)) as replies:
            async for reply in replies:
                yield reply

    async def close(self) -> None:
        """The generation outlives whoever asks it."""
