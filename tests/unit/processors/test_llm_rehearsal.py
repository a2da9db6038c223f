"""Rehearsals of a language model, in simulated time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from processors.agents import load_agents
from processors.choices import History
from processors.engine import EngineClient, EngineError, Generate, Generated, Reply, Request
from processors.llm.patience import MISSES_MAX, REHEARSED_EACH, REHEARSED_EACH_MAX, Patience
from processors.llm.rehearsal import LOADS_MAX, LOOK_S, TRIES, Rehearsal
from tests.simulation.simulated import SimulatedClock, simulate

SHOP = load_agents(Path("infra/agents"))["shop"]
LIMIT_S = SHOP.limits.first_sentence_ms_max / 1000


class Model:
    """Has a sentence after so long, the n-th time that it is asked; fails where that is None."""

    def __init__(self, begins_s: Callable[[int], float | None]) -> None:
        self._begins_s = begins_s
        self.asked: list[Generate] = []
        self.withdrawn = 0

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        assert isinstance(request, Generate)
        self.asked.append(request)
        begins_s = self._begins_s(len(self.asked))
        if begins_s is None:
            raise EngineError("crashed")
        began = False
        try:
            yield Generated("Our ")
            await asyncio.sleep(begins_s)
            began = True
            yield Generated("tents are blue. ")
            await asyncio.sleep(60)
            yield Generated("They are big.")
        finally:
            self.withdrawn += not began

    async def close(self) -> None: ...


class Own:
    """Two models: one for all agents, and one that an agent's file names."""

    def __init__(self, all_: Model, own: Model) -> None:
        self.all = all_
        self.own = own

    def for_turn(self, history: History, turn: int) -> EngineClient:
        return self.own if history.agent_id == SHOP.id else self.all

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        async for reply in self.all.ask(request, deadline_s):
            yield reply

    async def close(self) -> None: ...


def rehearsed(
    engine: EngineClient, patience: Patience, seconds: float = 10.0, spares_time: Callable[[], bool] = lambda: True
) -> None:
    async def run() -> None:
        rehearsal = Rehearsal([SHOP], patience, engine, SimulatedClock(), spares_time)
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
    assert len(model.asked) == asks, "what comes after the first sentence is not waited for"
    assert model.withdrawn == 0, "an engine is blamed for what is withdrawn before it began"
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


def test_an_agent_with_a_model_of_its_own_is_rehearsed_with_that() -> None:
    engine, patience = Own(Model(lambda number: 2 * LIMIT_S), Model(lambda number: LIMIT_S / 2)), Patience()
    rehearsed(engine, patience)
    assert (len(engine.all.asked), len(engine.own.asked)) == (0, 1)
    assert patience.is_worth("shop")


def test_nobody_rehearses_while_callers_wait() -> None:
    model = Model(lambda number: LIMIT_S / 2)
    rehearsed(model, Patience(), spares_time=lambda: False)
    assert model.asked == []


def test_what_a_caller_was_answered_in_time_counts_for_more() -> None:
    patience = Patience()
    patience.began("shop")
    patience.rehearsed("shop", in_time=False)
    assert patience.is_worth("shop")


def test_a_late_model_that_fails_in_its_rehearsal_is_late_still() -> None:
    patience = Patience()
    patience.rehearsed("shop", in_time=False)
    turned_away(patience)
    patience.rehearsed("shop", in_time=None)
    assert not patience.wants_rehearsal("shop")
    assert not patience.is_worth("shop")


def turned_away(patience: Patience) -> int:
    """How many answers are made without a model that is late, until it is time for a rehearsal."""
    count = 0
    while not patience.wants_rehearsal("shop"):
        assert not patience.is_worth("shop")
        count += 1
    return count


def test_a_model_that_callers_have_to_wait_for_all_the_same_is_late_after_one_of_them() -> None:
    patience = Patience()
    patience.began("shop")
    for _ in range(MISSES_MAX):
        patience.missed("shop")
    patience.rehearsed("shop", in_time=True)
    assert patience.is_worth("shop")
    patience.missed("shop")
    assert not patience.is_worth("shop")


def test_no_question_is_asked_twice() -> None:
    model = Model(lambda number: 2 * LIMIT_S)
    rehearsed(model, Patience())
    assert len({request.messages[-1].content for request in model.asked}) == TRIES
    assert len({request.messages[0] for request in model.asked}) == 1


def test_a_late_model_is_rehearsed_ever_more_rarely() -> None:
    patience = Patience()
    patience.rehearsed("shop", in_time=False)
    for count in (REHEARSED_EACH, 2 * REHEARSED_EACH, REHEARSED_EACH_MAX, REHEARSED_EACH_MAX):
        assert turned_away(patience) == count
        patience.rehearsed("shop", in_time=False)


def test_a_model_that_has_become_quick_is_found_out() -> None:
    model, patience = Model(lambda number: 2 * LIMIT_S if number <= TRIES else LIMIT_S / 2), Patience()

    async def run() -> None:
        task = asyncio.create_task(Rehearsal([SHOP], patience, model, SimulatedClock()).run())
        await asyncio.sleep(5 * LOOK_S)
        turned_away(patience)
        await asyncio.sleep(5 * LOOK_S)
        task.cancel()

    simulate(run())
    assert len(model.asked) == TRIES + 1
    assert patience.is_worth("shop")
