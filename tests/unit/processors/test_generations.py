"""Generations of engines in simulated time: who answers a turn, and when an old generation is let go."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from processors import choices
from processors.breaker import Breaker
from processors.choices import Choice, History, Kept, Watched
from processors.engine import EngineClient, Generate, Generated, Message, Reply, Request
from processors.generations import LOOK_S, Generations
from processors.ladder import Ladder, Rung
from processors.lane import Lane
from processors.rungs import MANNERS
from streams.settings import Settings
from tests.simulation.simulated import SimulatedClock, simulate

OWN, OTHER = Choice(0, "llama-cpp"), Choice(1, "llama-cpp", "other", scope="all", since_us=5)


class Engine:
    """Answers with the number of its generation, in two pieces a second apart."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.reachable = True
        self.closed = False

    async def reach(self) -> None:
        while not self.reachable:  # noqa: ASYNC110 - a test sets the attribute
            await asyncio.sleep(0.05)

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        for _ in range(2):
            yield Generated(f"answer of {self.generation}", str(self.generation))
            await asyncio.sleep(1.0)

    async def close(self) -> None:
        self.closed = True


class World:
    """A role whose choices are written by the test."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder)
        self.clock = SimulatedClock()
        self.engines: dict[int, Engine] = {}
        self.sessions: list[History] = []
        self.generations = Generations("llm", Watched(self.settings, "llm"), self._ladder, self.clock)

    def _ladder(self, choice: Choice) -> Ladder:
        engine = self.engines[choice.generation] = Engine(choice.generation)
        name = f"llm@{choice.generation}.0"
        return Ladder("llm", [Rung(Lane(name, engine, Breaker(name, self.clock)))], self.clock, MANNERS["llm"])

    def write(self, *listed: Choice) -> None:
        choices.write(self.settings, "llm", Kept(("llama-cpp", ""), listed, 1))

    def session(self, began_us: int) -> History:
        self.sessions.append(History(began_us))
        return self.sessions[-1]

    def connected(self) -> tuple[int, ...]:
        return self.generations.generations

    async def looked(self) -> None:
        await asyncio.sleep(2 * LOOK_S)


async def answered(client: EngineClient) -> str:
    return "".join({reply.model async for reply in client.ask(Generate((Message("user", "Hello"),)), 20.0)})  # type: ignore[union-attr]


def test_a_turn_keeps_its_generation_and_the_next_one_takes_the_new(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        session = world.session(1)
        world.generations.start(lambda: world.sessions)
        under_way = asyncio.create_task(answered(world.generations.for_turn(session, 1)))
        await asyncio.sleep(0.5)
        world.write(OWN, OTHER)
        await world.looked()
        assert await answered(world.generations.for_turn(session, 1)) == "0"
        assert await answered(world.generations.for_turn(session, 2)) == "1"
        assert await answered(world.generations.for_turn(session, 1)) == "0"
        assert await under_way == "0"
        assert await answered(world.generations) == "1"
        await world.generations.close()

    simulate(scenario())


def test_an_old_generation_is_let_go_when_no_session_needs_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        talks, waits = world.session(1), world.session(1)
        world.generations.start(lambda: world.sessions)
        await answered(world.generations.for_turn(talks, 1))
        await answered(world.generations.for_turn(waits, 1))
        world.write(OWN, OTHER)
        await answered(world.generations.for_turn(talks, 2))
        await world.looked()
        assert world.connected() == (0, 1), "a turn may go on"
        under_way = asyncio.create_task(answered(world.generations.for_turn(waits, 1)))
        await asyncio.sleep(0.1)
        world.sessions.remove(waits)
        await world.looked()
        assert world.connected() == (0, 1), "an ask is under way"
        assert await under_way == "0"
        await world.looked()
        assert world.connected() == (1,)
        assert (world.engines[0].closed, world.engines[1].closed) == (True, False)
        await world.generations.close()

    simulate(scenario())


def test_for_new_sessions_alone_the_old_generation_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        old = world.session(1)
        world.generations.start(lambda: world.sessions)
        world.write(OWN, Choice(1, "llama-cpp", "other", scope="new", since_us=5))
        new = world.session(5)
        assert await answered(world.generations.for_turn(old, 7)) == "0"
        assert await answered(world.generations.for_turn(new, 0)) == "1"
        await world.looked()
        assert world.connected() == (0, 1)
        world.sessions.remove(old)
        await world.looked()
        assert world.connected() == (1,)
        await world.generations.close()

    simulate(scenario())


def test_what_stands_by_is_connected_and_not_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        session = world.session(9)
        world.generations.start(lambda: world.sessions)
        world.write(OWN, Choice(1, "llama-cpp", "other", scope="standby", since_us=5))
        await world.looked()
        assert world.connected() == (0, 1)
        assert await answered(world.generations.for_turn(session, 1)) == "0"
        world.write(OWN)
        await world.looked()
        assert world.connected() == (0,), "the swap was given up"
        await world.generations.close()

    simulate(scenario())


def test_where_a_generation_is_gone_another_one_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        session = world.session(1)
        world.generations.start(lambda: world.sessions)
        await answered(world.generations.for_turn(session, 1))
        world.write(OWN, OTHER)
        await world.looked()
        world.engines[1].reachable = False
        assert await answered(world.generations.for_turn(session, 2)) == "0"
        world.engines[1].reachable = True
        assert await answered(world.generations.for_turn(session, 2)) == "1"
        world.write(OTHER)  # the time of the old one is over
        assert await answered(world.generations.for_turn(session, 1)) == "1"
        await world.generations.close()

    simulate(scenario())
