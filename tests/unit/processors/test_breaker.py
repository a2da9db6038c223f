"""A breaker opens, rests, is tried and closes; time is simulated."""

import pytest

from processors.breaker import Breaker, State


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now_us(self) -> int:
        return round(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def changes() -> list[tuple[State, str]]:
    return []


@pytest.fixture
def breaker(clock: Clock, changes: list[tuple[State, str]]) -> Breaker:
    return Breaker("stt.0", clock, lambda one, reason: changes.append((one.state, reason)))


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed("timeout")


def test_it_opens_after_three_failures_in_a_row(breaker: Breaker, changes: list[tuple[State, str]]) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.closed
    fail(breaker, 1)
    assert changes == [(State.OPEN, "timeout")]


def test_an_engine_that_is_gone_is_not_asked_again(breaker: Breaker) -> None:
    breaker.failed("crashed", gone=True)
    assert breaker.state is State.OPEN


def test_a_trial_is_due_after_its_rest_and_there_is_one_only(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    assert not breaker.trial()
    clock.now_s += breaker.rest_left_s
    assert breaker.trial()
    assert not breaker.trial()


def test_a_trial_that_succeeds_closes_it(breaker: Breaker, clock: Clock, changes: list[tuple[State, str]]) -> None:
    fail(breaker, 3)
    clock.now_s += breaker.rest_left_s
    breaker.trial()
    breaker.succeeded()
    assert breaker.closed
    assert [state for state, _ in changes] == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_each_failed_trial_doubles_the_rest_up_to_a_bound(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    rests = [breaker.rest_left_s]
    for _ in range(7):
        clock.now_s += breaker.rest_left_s
        assert breaker.trial()
        breaker.failed("invalid")
        rests.append(breaker.rest_left_s)
    assert rests == pytest.approx([0.5, 1, 2, 4, 8, 10, 10, 10])


def test_after_a_success_rests_are_short_again(breaker: Breaker, clock: Clock) -> None:
    for _ in range(3):
        breaker.failed("crashed", gone=True)
        clock.now_s += breaker.rest_left_s
        breaker.trial()
    breaker.succeeded()
    breaker.failed("crashed", gone=True)
    assert breaker.rest_left_s == pytest.approx(0.5)


def test_an_answer_to_an_ask_from_before_changes_nothing(breaker: Breaker, clock: Clock) -> None:
    breaker.failed("crashed", gone=True)
    breaker.succeeded()
    assert breaker.state is State.OPEN
    clock.now_s += breaker.rest_left_s
    breaker.trial()
    breaker.failed("crashed")
    assert breaker.rest_left_s == pytest.approx(1.0)


def test_a_trial_without_an_outcome_may_be_repeated(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now_s += breaker.rest_left_s
    breaker.trial()
    breaker.released()
    assert breaker.trial()
