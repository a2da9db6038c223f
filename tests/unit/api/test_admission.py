"""Who may call now: by measured capacity, newcomers counted before they can be heard."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.admission import (
    COST,
    COST_RANGE,
    QUIET_REPLIES_MIN,
    REPLIES_MIN,
    REPLIES_S,
    RESERVED_S,
    RETRY_S_MAX,
    RETRY_S_MIN,
    SETTLED_S,
    SILENT_MAX,
    SLOWER_MAX,
    Admission,
    Newcomers,
    Replies,
)
from processors.load import EXPIRE_S, REPEAT_S, Level, Sample
from schemas.events import Health, HealthKind

COSTS = {"stt": 0.1, "tts": 0.02}


def admission(sessions_max: int = 100, sockets_max: int = 300, reply_s_max: float = 2.0) -> Admission:
    """A gateway's, with costs that are easy to reckon with."""
    return Admission(sessions_max, sockets_max, reply_s_max, 0.65, random.Random(1), COSTS)


def health(kind: HealthKind, component: str, **fields: object) -> Health:
    """What a worker says."""
    return Health(
        event_id="e",
        session_id=component,
        tenant_id="demo",
        agent_id="",
        turn=0,
        seq=1,
        occurred_at=0,
        kind=kind,
        component=component,
        **fields,  # type: ignore[arg-type]
    )


def measured(door: Admission, now_s: float, utilisation: float, calls: int, component: str = "stt") -> None:
    """The stage says how busy it is."""
    door.heard(health(HealthKind.LOAD_MEASURED, component, utilisation=utilisation, calls=calls), now_s)


def reason(door: Admission, now_s: float, calls: int, sockets: int = 0) -> str:
    """Why not, or nothing."""
    refusal = door.refusal(now_s, calls, sockets)
    return refusal.reason if refusal else ""


def test_a_burst_is_let_in_only_as_far_as_it_can_be_carried() -> None:
    door, taken = admission(), 0
    while not reason(door, 0.0, taken) and taken < 50:
        door.taken(0.0)
        taken += 1
    assert taken == 6  # six times a tenth is within 65 %, the seventh is not; none of it shows in any measurement yet
    assert reason(door, 0.0, taken) == "expected"


def test_newcomers_of_other_gateways_are_counted_by_the_stage() -> None:
    door = admission()
    measured(door, 0.0, utilisation=0.0, calls=6)
    assert reason(door, 0.1, 2) == "expected"
    measured(door, SETTLED_S, utilisation=0.12, calls=6)
    assert reason(door, SETTLED_S, 2) == ""  # they came to show, as little


def test_the_cost_of_a_call_is_learned_in_both_directions() -> None:
    for share in (0.05, 0.2):
        door = admission()
        for tick in range(60):
            measured(door, SETTLED_S + tick * REPEAT_S, utilisation=4 * share, calls=4)
        assert door.costs()["stt"] == pytest.approx(share, rel=0.05)
        assert door.costs()["tts"] == COSTS["tts"]


def test_so_many_more_calls_are_free_as_are_let_in() -> None:
    door, taken = admission(), 0
    free = door.calls_free(0.0)
    while not reason(door, 0.0, taken):
        door.taken(0.0)
        taken += 1
        assert door.calls_free(0.0)["stt"] == free["stt"] - taken
    assert min(free.values()) == taken == 6


def test_of_several_workers_together_a_call_takes_less() -> None:
    door, workers = admission(), 16
    share = COSTS["stt"] / workers
    for tick in range(60):
        for worker in range(workers):
            said = replace(
                health(HealthKind.LOAD_MEASURED, "stt", utilisation=10 * share, calls=1), session_id=f"stt.{worker}"
            )
            door.heard(said, SETTLED_S + tick * REPEAT_S)
    now_s = SETTLED_S + 60 * REPEAT_S
    assert door.costs()["stt"] < COSTS["stt"] / COST_RANGE
    assert door.calls_free(now_s)["stt"] > 0


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 200)), max_size=60))
def test_a_cost_stays_within_reason(said: list[tuple[float, int]]) -> None:
    door = admission()
    for tick, (utilisation, calls) in enumerate(said):
        measured(door, tick * REPEAT_S, utilisation, calls)
        most = max(calls for _, calls in said[: tick + 1])
        least = COSTS["stt"] / COST_RANGE / max(1.0, most / SILENT_MAX)
        assert least <= door.costs()["stt"] <= COSTS["stt"] * COST_RANGE


@pytest.mark.parametrize(("calls", "believed"), [(4, False), (40, True)])
def test_many_calls_that_cost_little_are_believed_few_may_be_silent(calls: int, believed: bool) -> None:
    door, share = admission(), COSTS["stt"] / COST_RANGE / 2
    for tick in range(100):
        measured(door, tick * REPEAT_S, utilisation=calls * share, calls=calls)
    assert (door.costs()["stt"] == pytest.approx(share, rel=0.1)) is believed
    assert (door.costs()["stt"] >= COSTS["stt"] / COST_RANGE) is not believed


@given(st.lists(st.floats(0, 30), max_size=30), st.floats(0, 60))
def test_each_newcomer_counts_until_it_has_come_to_show(at_s: list[float], later_s: float) -> None:
    newcomers = Newcomers()
    for one in sorted(at_s):
        newcomers.add(one)
    now_s = max(at_s, default=0.0) + later_s
    assert newcomers.count(now_s) == sum(now_s - one < SETTLED_S for one in at_s)


def test_a_moment_in_which_few_speak_is_no_room() -> None:
    door = admission()
    for tick in range(30):
        measured(door, tick * REPEAT_S, utilisation=0.72, calls=6)
    measured(door, 30 * REPEAT_S, utilisation=0.05, calls=6)
    assert reason(door, 30 * REPEAT_S, 6) == "expected"


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0, 0.6))
def test_more_newcomers_never_open_the_door(few: int, more: int, utilisation: float) -> None:
    doors = admission(), admission()
    for door, count in zip(doors, (few, few + more), strict=True):
        measured(door, 0.0, utilisation, calls=0)
        for _ in range(count):
            door.taken(0.0)
    first, second = (bool(reason(door, 0.0, 5)) for door in doors)
    assert second or not first


def test_a_stage_that_gives_something_up_closes_the_door_until_it_says_otherwise_or_is_gone() -> None:
    door = admission()
    door.heard(health(HealthKind.LOAD_RAISED, "tts", level=1, reason="depth 130"), 0.0)
    assert reason(door, 0.0, 0) == ""  # nobody is there to suffer
    refusal = door.refusal(0.0, 1)
    assert refusal is not None
    assert (refusal.code, refusal.reason, refusal.detail) == ("overloaded", "level", "tts: depth 130")
    door.heard(health(HealthKind.LOAD_LOWERED, "tts", level=0), 1.0)
    assert reason(door, 1.0, 1) == ""
    door.heard(health(HealthKind.LOAD_RAISED, "tts", level=2), 2.0)
    assert reason(door, 2.0 + EXPIRE_S - 0.1, 1) == "level"
    assert reason(door, 2.0 + EXPIRE_S, 1) == ""


def test_another_gateways_level_is_its_own_affair() -> None:
    door = admission()
    door.heard(health(HealthKind.LOAD_RAISED, "api", level=1), 0.0)
    assert reason(door, 0.0, 1) == ""


def test_a_busy_machine_closes_the_door_whatever_keeps_it_busy() -> None:
    door = admission()
    for tick in range(40):
        door.machine(tick / 2, 0.3, calls=0)
    assert reason(door, 20.0, 1) == ""
    for tick in range(40, 80):
        door.machine(tick / 2, 0.9, calls=1)
    refusal = door.refusal(40.0, 1)
    assert refusal is not None
    assert (refusal.reason, refusal.detail.split(":")[0]) == ("expected", "machine")
    assert reason(door, 40.0, 0) == ""


def test_what_the_machine_does_without_calls_is_nobodys_cost() -> None:
    door = admission()
    for tick in range(60):
        door.machine(tick / 2, 0.4, calls=0)
    for tick in range(60, 400):
        door.machine(tick / 2, 0.6, calls=4)
    assert door.costs()["machine"] == pytest.approx(0.05, rel=0.1)


def test_load_refuses_nobody_where_the_operator_says_so() -> None:
    door = Admission(3, 300, 2.0, 0.65, random.Random(1), COSTS, by_load=False)
    measured(door, 0.0, utilisation=1.0, calls=50)
    door.heard(health(HealthKind.LOAD_RAISED, "tts", level=4), 0.0)
    assert reason(door, 0.0, 2) == ""
    assert reason(door, 0.0, 3) == "sessions"


def test_slow_replies_close_the_door_before_callers_would_notice() -> None:
    door = admission()
    for second in range(QUIET_REPLIES_MIN):
        door.replied(0.6, second, calls=1)
    now_s = REPLIES_S + QUIET_REPLIES_MIN
    assert door.replies.limit_s == pytest.approx(0.6 * SLOWER_MAX)
    for tick in range(REPLIES_MIN):
        door.replied(0.6 * SLOWER_MAX + 0.05, now_s + tick / 10, calls=8)
    levels = [door.observe(now_s + 1 + tick / 2, Sample()) for tick in range(4)]
    assert levels[-1] is Level.REFUSING
    assert reason(door, now_s + 3, 8) == "replies"
    assert reason(door, now_s + 3, 0) == ""  # the last call has ended: nobody suffers
    for tick in range(100):
        door.observe(now_s + 3 + tick / 2, Sample())
    assert reason(door, now_s + 53, 8) == ""


def test_replies_as_fast_as_when_it_is_quiet_lower_the_level_again() -> None:
    replies = Replies(limit_s=2.0)
    for second in range(QUIET_REPLIES_MIN):
        replies.add(0.6, second, quiet=True)
    assert replies.pressure(QUIET_REPLIES_MIN) < 0.7


def test_too_few_replies_say_nothing_and_the_operators_limit_always_holds() -> None:
    replies = Replies(limit_s=0.5)
    for tick in range(REPLIES_MIN - 1):
        replies.add(9.0, tick, quiet=True)
    assert replies.p95_s(REPLIES_MIN) == 0.0
    for tick in range(20):
        replies.add(0.9, tick, quiet=True)
    assert replies.limit_s == 0.5
    assert replies.pressure(20) > 1


def test_the_gateways_own_queue_and_event_loop_count() -> None:
    for sample in (Sample(depth=120), Sample(lag_s=1.0)):
        door = admission()
        for tick in range(4):
            door.observe(tick / 2, sample)
        assert reason(door, 2.0, 3) == "gateway"


def test_the_numbers_of_calls_and_connections_are_bounded() -> None:
    door = admission(sessions_max=3, sockets_max=9)
    assert reason(door, 0.0, 2, sockets=8) == ""
    assert reason(door, 0.0, 3, sockets=8) == "sessions"
    assert reason(door, 0.0, 0, sockets=9) == "sockets"
    door.closing = True
    refusal = door.refusal(0.0, 0)
    assert refusal is not None
    assert refusal.code == "shutting_down"


def test_a_promised_place_is_kept_for_a_while_and_given_once() -> None:
    door = admission(sessions_max=1)
    door.reserve("CA1", 0.0)
    assert reason(door, 0.0, 0) == "sessions"
    assert not door.claim("CA2", 0.0)
    assert door.claim("CA1", 1.0)
    assert not door.claim("CA1", 1.0)
    door.reserve("CA3", 2.0)
    assert reason(door, 2.0 + RESERVED_S, 0) == ""
    assert not door.claim("CA3", 2.0 + RESERVED_S)


def test_a_promised_place_is_expected_load() -> None:
    door = admission()
    for number in range(6):
        door.reserve(f"CA{number}", 0.0)
    assert reason(door, 0.0, 1) == "expected"


@given(st.integers(0, 500), st.integers(1, 50), st.integers(0, 2**32))
def test_who_is_refused_is_told_when_to_come_back(refused: int, calls: int, seed: int) -> None:
    door = Admission(1, 300, 2.0, 0.65, random.Random(seed), COSTS)
    for _ in range(refused):
        door.refused(0.0)
    refusal = door.refusal(0.0, calls)
    assert refusal is not None
    assert RETRY_S_MIN <= refusal.retry_after_s <= RETRY_S_MAX
    assert str(refusal.retry_after_s) in refusal.hint


def test_many_who_are_refused_stay_away_longer() -> None:
    door = admission(sessions_max=1)
    before = [door.refusal(0.0, 1).retry_after_s for _ in range(50)]  # type: ignore[union-attr]
    for _ in range(10):
        door.refused(0.0)
    after = [door.refusal(0.0, 1).retry_after_s for _ in range(50)]  # type: ignore[union-attr]
    assert min(after) > max(before)
    assert len(set(before)) > 1  # and not all at once


def test_default_costs_are_of_stages_that_measure_themselves() -> None:
    assert set(COST) == {"stt", "intent", "llm", "tts"}
