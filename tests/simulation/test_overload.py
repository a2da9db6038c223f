"""A burst of callers against a toy of the platform, in simulated time: the real meter, ladder and admission.

The toy is one stage whose engines answer two asks at a time. A caller asks every few seconds, first after some, so that
a newcomer's load cannot be seen when the next one is let in.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from api.admission import COST, Admission
from processors.load import LIMITS, REPEAT_S, STEPS, Level, LoadLadder, Meter, Sample
from schemas.events import Health, HealthKind

ENGINES = 2
SERVICE_S = 0.3
SPREAD = 0.3  # of the service time, either way
ELSE_S = 0.4  # the pause that ends a turn, and the other stages
ALONE_S = ELSE_S + (1 + SPREAD) * SERVICE_S  # the slowest reply without any load
FIRST_ASK_S = 8.0
BETWEEN_ASKS_S = 5.0
CALL_S = 60.0
SAMPLE_S = 0.5
BURST_S = 120.0


@dataclass
class Outcome:
    """What a run showed."""

    replies_s: list[float] = field(default_factory=list)
    admitted: int = 0
    refused: int = 0
    most: int = 0
    levels: list[tuple[float, Level]] = field(default_factory=list)

    def p95_s(self) -> float:
        """Of the time from the end of a caller's speech to the reply."""
        return sorted(self.replies_s)[int(0.95 * len(self.replies_s))]


class Toy:
    """One stage, one gateway, and callers who come back when they were told to."""

    def __init__(self, seed: int, callers: int, open_door: bool = False) -> None:
        self.now_s = 0.0
        self.outcome = Outcome()
        self._rng = random.Random(seed)
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._meter = Meter({"stt": ENGINES}, 0.0)
        self._ladder = LoadLadder(STEPS["stt"])
        self._door = Admission(1000, 3000, 2.0, 0.65, random.Random(seed))
        self._open_door = open_door
        self._told_s = 0.0
        self._waiting: list[tuple[float, int, float]] = []
        self._working = 0
        self._calls = 0
        for _ in range(callers):
            self.at(self._rng.uniform(0, 2.0), self._arrive)
        self.at(SAMPLE_S, self._sample)

    def at(self, after_s: float, action: Callable[[], None]) -> None:
        """Does it so much later."""
        heapq.heappush(self._agenda, (self.now_s + after_s, next(self._order), action))

    def run(self, until_s: float) -> Outcome:
        """Everything that is due by then."""
        while self._agenda and self._agenda[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._agenda)
            action()
        self.now_s = until_s
        return self.outcome

    def door_is_open(self) -> bool:
        """For one more caller now."""
        return self._door.refusal(self.now_s, self._calls) is None

    def _arrive(self) -> None:
        if self.now_s > BURST_S:
            return
        refusal = None if self._open_door else self._door.refusal(self.now_s, self._calls)
        if refusal is not None:
            self._door.refused(self.now_s)
            self.outcome.refused += 1
            self.at(refusal.retry_after_s, self._arrive)
            return
        self._door.taken(self.now_s)
        self._calls += 1
        self.outcome.admitted += 1
        self.outcome.most = max(self.outcome.most, self._calls)
        ends_s = self.now_s + CALL_S
        self.at(FIRST_ASK_S * self._rng.uniform(0.5, 1.0), lambda: self._ask(ends_s))
        self.at(CALL_S, self._leave)

    def _leave(self) -> None:
        self._calls -= 1
        self.at(1.0, self._arrive)

    def _ask(self, ends_s: float) -> None:
        if self.now_s >= ends_s:
            return
        number = self._meter.asked("stt", self.now_s)
        self._waiting.append((self.now_s, number, SERVICE_S * self._rng.uniform(1 - SPREAD, 1 + SPREAD)))
        self._dispatch()
        self.at(BETWEEN_ASKS_S * self._rng.uniform(0.6, 1.4), lambda: self._ask(ends_s))

    def _dispatch(self) -> None:
        while self._waiting and self._working < ENGINES:
            asked_s, number, service_s = self._waiting.pop(0)
            self._working += 1
            self.at(service_s, lambda a=asked_s, n=number, s=service_s: self._answer(a, n, s))  # type: ignore[misc]

    def _answer(self, asked_s: float, number: int, service_s: float) -> None:
        self._working -= 1
        self._meter.answered("stt", number, self.now_s, service_s)
        reply_s = ELSE_S + self.now_s - asked_s
        self.outcome.replies_s.append(reply_s)
        self._door.replied(reply_s, self.now_s, self._calls)
        self._dispatch()

    def _sample(self) -> None:
        depth = len(self._waiting) + self._working
        sample = self._meter.sample(self.now_s, round(1e6 * self.now_s), depth)
        self._door.observe(self.now_s, Sample())
        before = self._ladder.level
        level = self._ladder.observe(self.now_s, sample.pressure(LIMITS), sample.strain(LIMITS))
        if level != before:
            self.outcome.levels.append((self.now_s, level))
        if level != before or self.now_s - self._told_s >= REPEAT_S:
            self._told_s = self.now_s
            self._door.heard(self._said(level, sample.utilisation), self.now_s)
        self.at(SAMPLE_S, self._sample)

    def _said(self, level: Level, utilisation: float) -> Health:
        return Health(
            event_id="e",
            session_id="stt.0",
            tenant_id="demo",
            agent_id="",
            turn=0,
            seq=1,
            occurred_at=0,
            kind=HealthKind.LOAD_MEASURED,
            component="stt",
            level=int(level),
            utilisation=utilisation,
            calls=self._calls,
        )


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(seed=st.integers(0, 2**32), callers=st.integers(30, 150))
def test_a_burst_does_not_hurt_who_was_let_in(seed: int, callers: int) -> None:
    toy = Toy(seed, callers)
    outcome = toy.run(BURST_S)
    assert outcome.refused > 0
    assert outcome.p95_s() <= 1.5 * ALONE_S
    assert all(level <= Level.REFUSING for _, level in outcome.levels)
    assert outcome.most * SERVICE_S / BETWEEN_ASKS_S / ENGINES >= 0.15  # nor is the platform left idle
    toy.run(BURST_S + 2 * CALL_S)
    assert toy.door_is_open()


@pytest.mark.parametrize("seed", range(3))
def test_without_a_door_they_would_be_hurt_and_the_stage_gives_things_up_in_order(seed: int) -> None:
    toy = Toy(seed, callers=60, open_door=True)
    outcome = toy.run(BURST_S)
    assert outcome.p95_s() > 1.5 * ALONE_S
    raised = [level for _, level in outcome.levels]
    assert raised[:3] == list(STEPS["stt"])
    toy.run(BURST_S + 3 * CALL_S)
    assert outcome.levels[-1][1] is Level.ORDINARY
    assert toy.door_is_open()


@settings(max_examples=10, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(seed=st.integers(0, 2**32))
def test_the_first_seconds_of_a_burst_admit_no_more_than_the_default_cost_allows(seed: int) -> None:
    outcome = Toy(seed, callers=100).run(2.5)
    # The first to come is let in whatever is expected: nobody is there to suffer.
    assert outcome.admitted <= 1 + 0.65 / COST["stt"]
