"""The runner's promises under crashes at any moment, in simulated time: one seed, one history.

A failing seed is printed by Hypothesis; put it into `@example` to keep it.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from processors.engine import Generate, Generated, Message, Reply, Request
from processors.pipeline import STAGES
from processors.runner import ENDED_KEPT_S
from processors.stage import (
    Answered,
    Ask,
    Emit,
    End,
    Failed,
    Happening,
    Hold,
    Outcome,
    Received,
    Refuse,
    Release,
    Step,
    caused,
)
from schemas.events import DeadLetter, Intent, IntentKind, Response, ResponseKind, Session, SessionKind
from streams.keys import mint_session_id, partition_of
from tests.simulation.simulated import EPOCH_US, LIMITS, MemoryLog, ScriptedEngine, SimulatedClock, Worker, simulate

LLM = STAGES["llm"]
# Shrinking a seed only finds another history.
SEEDS = (Phase.explicit, Phase.reuse, Phase.generate)


@dataclass(frozen=True)
class TellerState:
    turns: int = 0
    held: tuple[int, ...] = ()
    open: tuple[tuple[str, Intent, int], ...] = ()


class Teller:
    """A core that answers each intent with three streamed sentences and holds every second one a while."""

    def start(self, session_id: str) -> TellerState:
        return TellerState()

    def apply(self, state: TellerState, happening: Happening, now_us: int) -> Step[TellerState]:
        match happening:
            case Received(Intent() as intent, position, recorded):
                if intent.intent == "bad":
                    return Step(state, (Refuse("invalid_field", "intent: bad"),))
                turn = state.turns + 1
                said_before = [event for event in recorded if isinstance(event, Response)]
                if any(event.kind is ResponseKind.COMPLETED for event in said_before):
                    return Step(replace(state, turns=turn))
                said = sum(event.kind is ResponseKind.SENTENCE for event in said_before)
                ask_id = f"ask-{turn}"
                outcomes: list[Outcome] = [
                    Ask(ask_id, "llm", Generate((Message("user", f"{turn}"),)), 1.0),
                ]
                held = state.held
                if turn % 2:
                    outcomes.append(Hold())
                    held = (*held, position.offset)
                entry = (ask_id, intent, said)
                return Step(replace(state, turns=turn, held=held, open=(*state.open, entry)), tuple(outcomes))
            case Received(Session(kind=SessionKind.ENDED)):
                return Step(state, (End(),))
            case Answered(ask_id, None, _) | Failed(ask_id):
                return self._complete(state, ask_id, now_us)
            case Answered(ask_id, reply, _):
                return self._say(state, ask_id, reply, now_us)
            case _:
                return Step(state)

    def _say(self, state: TellerState, ask_id: str, reply: Generated, now_us: int) -> Step[TellerState]:
        _, intent, _ = next(entry for entry in state.open if entry[0] == ask_id)
        sentence = int(reply.text)
        event = caused(intent, Response, f"sentence-{sentence}", now_us, kind=ResponseKind.SENTENCE, sentence=sentence)
        return Step(state, (Emit(event),))

    def _complete(self, state: TellerState, ask_id: str, now_us: int) -> Step[TellerState]:
        number, intent, _ = next(entry for entry in state.open if entry[0] == ask_id)
        remaining = tuple(entry for entry in state.open if entry[0] != ask_id)
        event = caused(intent, Response, "completed", now_us, kind=ResponseKind.COMPLETED, text=number)
        release: tuple[Outcome, ...] = ()
        if not remaining and state.held:
            release = (Release(Intent.TOPIC, state.held[-1] + 1),)
            state = replace(state, held=())
        return Step(replace(state, open=remaining), (Emit(event), *release))

    def save(self, state: TellerState) -> bytes:
        return msgspec.msgpack.encode(state.turns - len(state.held))

    def load(self, session_id: str, data: bytes) -> TellerState:
        return TellerState(turns=msgspec.msgpack.decode(data))


def three_sentences(request: Request) -> list[Reply]:
    return [Generated(str(index)) for index in range(3)]


def an_intent(session_id: str, turn: int, **fields: Any) -> Intent:
    return Intent(
        event_id=f"{session_id}-{turn}",
        session_id=session_id,
        tenant_id="demo",
        agent_id="shop",
        turn=turn,
        seq=turn,
        occurred_at=EPOCH_US,
        **{"kind": IntentKind.DETECTED, "intent": "order_status", "confidence": 1.0, **fields},
    )


def the_end(session_id: str) -> Session:
    return Session(
        event_id=f"{session_id}-end",
        session_id=session_id,
        tenant_id="demo",
        agent_id="shop",
        turn=0,
        seq=99,
        occurred_at=EPOCH_US,
        kind=SessionKind.ENDED,
    )


async def history(seed: int, crashes: int, sessions: int, turns: int) -> tuple[MemoryLog, list[str], Worker]:
    """Plays all intents while workers crash and are replaced; returns when everything is committed."""
    log, clock = MemoryLog(seed), SimulatedClock()
    ids = [mint_session_id(log.partitions, range(log.partitions)) for _ in range(sessions)]
    engine = ScriptedEngine(log, three_sentences)

    def new_worker() -> Worker:
        worker = Worker(log, LLM, Teller(), {"llm": engine}, clock)
        worker.start()
        return worker

    async def callers() -> None:
        for turn in range(1, turns + 1):
            for session_id in ids:
                log.append(an_intent(session_id, turn))
                await asyncio.sleep(log.random.uniform(0, 0.05))

    calling = asyncio.get_running_loop().create_task(callers())
    worker = new_worker()
    for _ in range(crashes):
        await asyncio.sleep(log.random.uniform(0, 0.4))
        worker.crash()
        await asyncio.sleep(log.random.uniform(0, 0.1))
        worker = new_worker()
    await calling
    for _ in range(10_000):
        await asyncio.sleep(0.01)
        if worker.behind == 0:
            break
    return log, ids, worker


@settings(max_examples=60, deadline=None, phases=SEEDS)
@given(seed=st.integers(0, 2**32), crashes=st.integers(0, 6))
def test_no_record_is_lost_and_every_effect_is_there_once(seed: int, crashes: int) -> None:
    log, ids, worker = simulate(history(seed, crashes, sessions=3, turns=4))
    assert worker.behind == 0
    assert worker.bugs == []
    for session_id in ids:
        said = log.truth(Response, session_id)
        for turn in range(1, 5):
            mine = [event for event in said if event.turn == turn]
            assert [event.sentence for event in mine if event.kind is ResponseKind.SENTENCE] == [0, 1, 2]
            completed = [event for event in mine if event.kind is ResponseKind.COMPLETED]
            assert [event.text for event in completed] == [f"ask-{turn}"], "the count of turns survives"


@settings(max_examples=30, deadline=None, phases=SEEDS)
@given(seed=st.integers(0, 2**32), crashes=st.integers(0, 6))
def test_sequence_numbers_grow_across_crashes(seed: int, crashes: int) -> None:
    log, ids, _ = simulate(history(seed, crashes, sessions=2, turns=3))
    for session_id in ids:
        numbers = [event.seq for event in log.truth(Response, session_id)]
        assert numbers == sorted(set(numbers))


async def ended(seed: int) -> tuple[MemoryLog, Worker]:
    log, clock = MemoryLog(seed), SimulatedClock()
    session_id = mint_session_id(log.partitions, range(log.partitions))
    worker = Worker(log, LLM, Teller(), {"llm": ScriptedEngine(log, three_sentences)}, clock)
    worker.start()
    log.append(an_intent(session_id, 1))
    await asyncio.sleep(1)
    log.append(the_end(session_id))
    log.append(an_intent(session_id, 2))
    await asyncio.sleep(1 + ENDED_KEPT_S)
    return log, worker


def test_an_ended_session_leaves_nothing_behind() -> None:
    log, worker = simulate(ended(7))
    assert worker.runner.sessions == 0
    assert all(not table for table in log.state.values())
    assert worker.behind == 0


async def taken_over() -> list[list[str]]:
    """Whose sessions a worker has, and the one that takes over when it is killed."""
    log, clock, found = MemoryLog(7), SimulatedClock(), []
    for agent_id in ("clinic", "shop"):
        session_id = mint_session_id(log.partitions, range(log.partitions))
        log.append(replace(an_intent(session_id, 2), agent_id=agent_id))
    for _ in range(2):
        worker = Worker(log, LLM, Teller(), {"llm": ScriptedEngine(log, three_sentences)}, clock)
        worker.start()
        await asyncio.sleep(5)
        found.append(sorted(history.agent_id for history in worker.runner.histories("llm")))
        worker.crash()
    return found


def test_whose_a_session_is_survives_with_it() -> None:
    assert simulate(taken_over()) == [["clinic", "shop"]] * 2


async def snapshots(apart_s: float) -> tuple[list[float], int]:
    """When snapshots of a session are written that is asked four things, so far apart; and what is not done then."""
    log, clock, at_s = MemoryLog(3, delay_ms_max=0.0), SimulatedClock(), list[float]()
    session_id = mint_session_id(log.partitions, range(log.partitions))

    class Watched(dict[str, bytes]):
        def __setitem__(self, key: str, value: bytes) -> None:
            at_s.append(clock.monotonic_s() - began_s)
            super().__setitem__(key, value)

    log.state["llm", partition_of(session_id, log.partitions)] = Watched()
    engines = {"llm": ScriptedEngine(log, three_sentences)}
    worker = Worker(log, LLM, Teller(), engines, clock, replace(LIMITS, snapshot_interval_s=8.0))
    worker.start()
    await asyncio.sleep(1)
    began_s = clock.monotonic_s()
    for turn in (2, 4, 6, 8):  # none of them is held
        log.append(an_intent(session_id, turn))
        await asyncio.sleep(apart_s)
    await asyncio.sleep(20)
    return at_s, worker.behind


@pytest.mark.parametrize(("apart_s", "written"), [(0.1, 1), (3.0, 2), (20.0, 4)])
def test_what_follows_at_once_is_in_the_same_snapshot_and_there_are_few(apart_s: float, written: int) -> None:
    at_s, behind = simulate(snapshots(apart_s))
    assert behind == 0
    assert len(at_s) == written
    assert 1.0 <= at_s[0] < 2.0
    assert all(after - before > 7.0 for before, after in itertools.pairwise(at_s))


KEPT = replace(LIMITS, session_silent_s=100.0, session_kept_s=1000.0)


class Clinging(Teller):
    """Holds an intent of that name for ever."""

    def apply(self, state: TellerState, happening: Happening, now_us: int) -> Step[TellerState]:
        match happening:
            case Received(Intent(intent="hold")):
                return Step(state, (Hold(),))
            case _:
                return super().apply(state, happening, now_us)


async def silent() -> tuple[MemoryLog, list[str], Worker]:
    """Of three sessions one goes on, one falls silent, and so does one that holds a record."""
    log, clock = MemoryLog(7), SimulatedClock()
    going_on, fallen_silent, holding = (mint_session_id(log.partitions, range(log.partitions)) for _ in range(3))
    worker = Worker(log, LLM, Clinging(), {"llm": ScriptedEngine(log, three_sentences)}, clock, KEPT)
    worker.start()
    for turn in (1, 2):
        log.append(an_intent(going_on, turn))
        log.append(an_intent(fallen_silent, turn))
    log.append(an_intent(holding, 1, intent="hold"))
    for turn in range(3, 7):
        await asyncio.sleep(600)
        log.append(an_intent(going_on, turn))
    await asyncio.sleep(1)
    return log, [going_on, fallen_silent, holding], worker


def test_a_session_that_is_silent_and_not_ended_is_let_go_unless_it_holds_a_record() -> None:
    log, (going_on, _, holding), worker = simulate(silent())
    assert {session_id for table in log.state.values() for session_id in table} == {going_on}
    assert worker.runner.knows(going_on)
    assert worker.runner.knows(holding)
    assert worker.runner.sessions == 2


async def silent_then_back(outage_s: float) -> tuple[MemoryLog, Worker]:
    """One worker after another takes a silent session over, the first of them after a while without any."""
    log, clock = MemoryLog(7), SimulatedClock()
    session_id = mint_session_id(log.partitions, range(log.partitions))
    engine = ScriptedEngine(log, three_sentences)
    worker = Worker(log, LLM, Teller(), {"llm": engine}, clock, KEPT)
    worker.start()
    log.append(an_intent(session_id, 2))
    await asyncio.sleep(1)
    worker.crash()
    await asyncio.sleep(outage_s)
    for _ in range(3):
        worker = Worker(log, LLM, Teller(), {"llm": engine}, clock, KEPT)
        worker.start()
        await asyncio.sleep(KEPT.session_silent_s / 2)
        assert worker.runner.knows(session_id), "its caller may come back now"
        worker.crash()
    worker = Worker(log, LLM, Teller(), {"llm": engine}, clock, KEPT)
    worker.start()
    await asyncio.sleep(max(2 * KEPT.session_silent_s, KEPT.session_kept_s - outage_s))
    assert not worker.runner.knows(session_id), "restarts do not keep it for ever"
    log.append(an_intent(session_id, 3))
    await asyncio.sleep(2)
    return log, worker


@pytest.mark.parametrize("outage_s", [0.0, 500.0, 5000.0])
def test_a_session_that_was_let_go_may_begin_anew(outage_s: float) -> None:
    log, worker = simulate(silent_then_back(outage_s))
    assert worker.behind == 0
    assert sum(event.kind is ResponseKind.COMPLETED for event in log.events(Response)) == 2
    assert sum(len(table) for table in log.state.values()) == 1


async def ended_then_redone() -> tuple[MemoryLog, ScriptedEngine, Worker]:
    """The process dies when the end of the session is committed, and what came before it is not."""
    log, clock = MemoryLog(7), SimulatedClock()
    session_id = mint_session_id(log.partitions, range(log.partitions))
    engine = ScriptedEngine(log, three_sentences)
    first = Worker(log, LLM, Teller(), {"llm": engine}, clock)
    first.start()
    log.append(an_intent(session_id, 1))
    await asyncio.sleep(1)
    log.append(the_end(session_id))
    await asyncio.sleep(1)
    first.crash()
    for where in [where for where in log.committed if where[1] == Intent.TOPIC]:
        log.committed[where] = 0
    log.records[Response.TOPIC, partition_of(session_id, log.partitions)].clear()
    second = Worker(log, LLM, Teller(), {"llm": engine}, clock)
    second.start()
    await asyncio.sleep(1)
    assert second.behind == 0
    await asyncio.sleep(ENDED_KEPT_S)
    return log, engine, second


def test_records_of_an_ended_session_that_come_again_do_not_begin_it_anew() -> None:
    log, engine, worker = simulate(ended_then_redone())
    assert len(engine.asked) == 1
    assert worker.runner.sessions == 0
    assert all(not table for table in log.state.values())


async def refused() -> tuple[MemoryLog, Worker]:
    log, clock = MemoryLog(3), SimulatedClock()
    session_id = mint_session_id(log.partitions, range(log.partitions))
    worker = Worker(log, LLM, Teller(), {"llm": ScriptedEngine(log, three_sentences)}, clock)
    worker.start()
    log.append(an_intent(session_id, 1, intent="bad"))
    log.append(an_intent(session_id, 2))
    await asyncio.sleep(2)
    return log, worker


def test_bad_input_becomes_a_dead_letter_and_the_next_record_is_answered() -> None:
    log, worker = simulate(refused())
    (letter,) = log.events(DeadLetter)
    assert (letter.reason, letter.source_topic, letter.source_offset) == ("invalid_field", Intent.TOPIC, 0)
    assert sum(event.kind is ResponseKind.COMPLETED for event in log.events(Response)) == 1
    assert worker.behind == 0


class Stumbler(Teller):
    """Cannot take one intent, or no answer."""

    def __init__(self, over: type[Happening], stumbles: list[bool]) -> None:
        self._over = over
        self._stumbles = stumbles

    def apply(self, state: TellerState, happening: Happening, now_us: int) -> Step[TellerState]:
        second = state.turns == (1 if self._over is Received else 2)
        if self._stumbles[0] and second and isinstance(happening, self._over):
            raise KeyError("a bug")
        return super().apply(state, happening, now_us)


async def stumbled(over: type[Happening]) -> tuple[MemoryLog, list[int], Worker]:
    log, clock = MemoryLog(7), SimulatedClock()
    session_id = mint_session_id(log.partitions, range(log.partitions))
    stumbles = [True]
    engine = ScriptedEngine(log, three_sentences)
    first = Worker(log, LLM, Stumbler(over, stumbles), {"llm": engine}, clock)
    first.start()
    for turn in (1, 2, 3):
        log.append(an_intent(session_id, turn))
        await asyncio.sleep(5)
    assert first.bugs
    committed = [offset for (_, topic, _), offset in log.committed.items() if topic == Intent.TOPIC and offset]
    await first.runner.drain(1.0)
    first.crash()
    stumbles[0] = False
    second = Worker(log, LLM, Stumbler(over, stumbles), {"llm": engine}, clock)
    second.start()
    await asyncio.sleep(5)
    return log, committed, second


@pytest.mark.parametrize("over", [Received, Answered])
def test_a_record_over_which_a_core_stumbles_comes_again(over: type[Happening]) -> None:
    log, committed, second = simulate(stumbled(over))
    assert committed in ([], [1])
    completed = [event for event in log.events(Response) if event.kind is ResponseKind.COMPLETED]
    assert sorted(event.turn for event in completed) == [1, 2, 3]
    assert second.behind == 0


async def too_much_refused() -> tuple[MemoryLog, int]:
    log, clock = MemoryLog(3), SimulatedClock()
    session_id = mint_session_id(log.partitions, range(log.partitions))
    engines = {"llm": ScriptedEngine(log, three_sentences)}
    first = Worker(log, LLM, Teller(), engines, clock, dead_letters_max=0)
    first.start()
    for turn in (1, 2, 3):
        log.append(an_intent(session_id, turn, intent="bad" if turn == 3 else "order_status"))
    await asyncio.sleep(2)
    assert first.bugs
    await first.runner.drain(1.0)
    first.crash()
    second = Worker(log, LLM, Teller(), engines, clock)
    second.start()
    await asyncio.sleep(10)
    return log, second.behind


def test_a_record_beyond_the_ceiling_of_dead_letters_has_one_once_somebody_has_looked() -> None:
    log, behind = simulate(too_much_refused())
    assert [letter.reason for letter in log.events(DeadLetter)] == ["invalid_field"]
    assert behind == 0


class Failing:
    """An engine client with a bug of its own: what it raises is nobody's bad input."""

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        raise KeyError("a bug")
        yield

    async def close(self) -> None:
        return None


async def client_failed() -> tuple[MemoryLog, Worker]:
    log, clock = MemoryLog(9), SimulatedClock()
    session_id = mint_session_id(log.partitions, range(log.partitions))
    worker = Worker(log, LLM, Teller(), {"llm": Failing()}, clock)
    worker.start()
    log.append(an_intent(session_id, 1))
    await asyncio.sleep(10)
    return log, worker


def test_a_record_over_which_an_engines_client_stumbles_is_not_done() -> None:
    log, worker = simulate(client_failed())
    assert worker.bugs
    assert worker.behind == 1
    assert not log.state["llm", 0]


async def redone() -> tuple[MemoryLog, ScriptedEngine]:
    log, clock = MemoryLog(5), SimulatedClock()
    session_id = mint_session_id(log.partitions, range(log.partitions))
    engine = ScriptedEngine(log, three_sentences)
    first = Worker(log, LLM, Teller(), {"llm": engine}, clock)
    first.start()
    log.append(an_intent(session_id, 1))
    await asyncio.sleep(2)
    first.crash()
    log.committed.clear()
    log.state.clear()
    second = Worker(log, LLM, Teller(), {"llm": engine}, clock)
    second.start()
    await asyncio.sleep(2)
    assert second.behind == 0
    return log, engine


def test_recorded_answers_are_neither_asked_nor_published_again() -> None:
    log, engine = simulate(redone())
    assert len(engine.asked) == 1
    assert len(log.events(Response)) == 4
