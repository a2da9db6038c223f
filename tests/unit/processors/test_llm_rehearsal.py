"""Rehearsals of a language model, in simulated time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from processors.agents import load_agents
from processors.engine import EngineError, Generate, Generated, Reply, Request
from processors.llm.patience import REHEARSED_EACH, REHEARSED_EACH_MAX, Patience
from processors.llm.rehearsal import LOADS_MAX, LOOK_S, TRIES, Rehearsal
from tests.simulation.simulated import SimulatedClock, simulate

SHOP = load_agents(Path("infra/agents"))["shop"]
LIMIT_S = SHOP.limits.first_sentence_ms_max / 1000


class Model:
    """Begins after so long, the n-th time that it is asked; None where it fails."""

    def __init__(self, begins_s: Callable[[int], float | None]) -> None:
        self._begins_s = begins_s
        self.asked: list[Generate] = []
        self.stopped = 0

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        assert isinstance(request, Generate)
        assert deadline_s > LIMIT_S, "to be late is no failure of an engine"
        self.asked.append(request)
        begins_s = self._begins_s(len(self.asked))
        if begins_s is None:
            raise EngineError("crashed")
        try:
            yield Generated("Our ")
            await asyncio.sleep(begins_s)
            yield Generated("tents are blue. ")
            await asyncio.sleep(60)
            yield Generated("They are big.")
        finally:
            self.stopped += 1

    async def close(self) -> None: ...


def rehearsed(model: Model, patience: Patience, seconds: float = 10.0, spares_time: bool = True) -> None:
    async def run() -> None:
        rehearsal = Rehearsal([SHOP], patience, model, SimulatedClock(), lambda: spares_time)
        task = asyncio.create_task(rehearsal.run())
        await asyncio.sleep(seconds)
        task.cancel()

    simulate(run())


@pytest.mark.parametrize(
    ("begins_s", "asks", "worth"),
    [
        (lambda number: LIMIT_S / 2, 1, True),
        (lambda number: 2 * LIMIT_S if number == 1 else LIMIT_S / 2, 2, True),
        (lambda number: 2 * LIMIT_S, TRIES, False),
    ],
    ids=["in time", "in time once it has read the rules", "late"],
)
def test_nobody_waits_for_a_model_that_was_late_in_its_rehearsal(
    begins_s: Callable[[int], float], asks: int, worth: bool
) -> None:
    model, patience = Model(begins_s), Patience()
    rehearsed(model, patience)
    assert len(model.asked) == model.stopped == asks, "what comes after the first sentence is not waited for"
    assert patience.is_worth("shop") == worth
    assert model.asked[0].messages[0].content.startswith(SHOP.persona)


def test_a_model_that_is_still_loaded_is_rehearsed_afterwards() -> None:
    model, patience = Model(lambda number: None if number <= 3 else 2 * LIMIT_S), Patience()
    rehearsed(model, patience)
    assert len(model.asked) == 3 + TRIES
    assert not patience.is_worth("shop")


def test_a_model_that_is_gone_is_for_callers_to_find_out() -> None:
    model, patience = Model(lambda number: None), Patience()
    rehearsed(model, patience, seconds=600)
    assert len(model.asked) == LOADS_MAX
    assert patience.is_worth("shop")


def turned_away(patience: Patience) -> int:
    """How many answers are made without a model that is late, until it is time for a rehearsal."""
    count = 0
    while not patience.wants_rehearsal("shop"):
        assert not patience.is_worth("shop")
        count += 1
    return count


def test_a_late_model_is_rehearsed_ever_more_rarely() -> None:
    patience = Patience()
    patience.rehearsed("shop", in_time=False)
    for count in (REHEARSED_EACH, 2 * REHEARSED_EACH, REHEARSED_EACH_MAX, REHEARSED_EACH_MAX):
        assert turned_away(patience) == count
        patience.rehearsed("shop", in_time=False)


def test_a_model_that_has_become_quick_is_found_out_when_there_is_time() -> None:
    model, patience = Model(lambda number: 2 * LIMIT_S if number <= TRIES else LIMIT_S / 2), Patience()
    busy = True

    async def run() -> None:
        nonlocal busy
        task = asyncio.create_task(Rehearsal([SHOP], patience, model, SimulatedClock(), lambda: not busy).run())
        await asyncio.sleep(5 * LOOK_S)
        turned_away(patience)
        await asyncio.sleep(5 * LOOK_S)
        assert len(model.asked) == TRIES
        busy = False
        await asyncio.sleep(5 * LOOK_S)
        task.cancel()

    simulate(run())
    assert len(model.asked) == TRIES + 1
    assert patience.is_worth("shop")
