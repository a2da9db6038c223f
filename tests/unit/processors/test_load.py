"""Load, measured and answered: levels rise and fall with hysteresis, and never flap."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.load import (
    CALM_S,
    EXPIRE_S,
    LIMITS,
    RAISE_S,
    STEP_S,
    STEPS,
    USED_S,
    WINDOW_S,
    Board,
    Busy,
    Level,
    LoadLadder,
    Meter,
    Sample,
    Waits,
    limits_of,
)
from schemas.events import Health, HealthKind
from streams.settings import LoadSettings, Settings

TICK_S = 0.5
ALL = (Level.REFUSING, Level.RARE_PARTIALS, Level.SMALL_MODELS, Level.SHORT_ANSWERS)
PRESSURES = st.lists(st.sampled_from([0.0, 0.5, 0.69, 0.71, 0.9, 1.0, 1.5, 3.0]), max_size=120)


def climb(
    pressures: Iterable[float], strains: Iterable[float] | None = None, ladder: LoadLadder | None = None
) -> list[int]:
    """The level at each tick."""
    pressures = list(pressures)
    ladder = ladder or LoadLadder(ALL)
    strains = list(strains) if strains is not None else [0.0] * len(pressures)
    pairs = enumerate(zip(pressures, strains, strict=True))
    return [int(ladder.observe(TICK_S * tick, pressure, strain)) for tick, (pressure, strain) in pairs]


def event(kind: HealthKind, component: str = "stt", worker: str = "0", level: int = 0, **fields: object) -> Health:
    """What a process says."""
    return Health(
        event_id="e",
        session_id=f"{component}.{worker}",
        tenant_id="demo",
        agent_id="",
        turn=0,
        seq=1,
        occurred_at=0,
        kind=kind,
        component=component,
        level=level,
        **fields,  # type: ignore[arg-type]
    )


def test_refusing_comes_first_and_each_further_step_only_when_it_was_not_enough() -> None:
    reached = climb([1.2] * 40)
    at_s = [TICK_S * reached.index(level) for level in (1, 2, 3, 4)]
    assert at_s == [RAISE_S, RAISE_S + STEP_S, RAISE_S + 2 * STEP_S, RAISE_S + 3 * STEP_S]


def test_steps_are_given_back_one_by_one_after_calm() -> None:
    high = [1.2] * 40
    lowered = climb([*high, *[0.2] * 60])[len(high) :]
    assert lowered[0] == 4
    assert lowered[-1] == 0
    assert lowered.count(3) == lowered.count(2) == lowered.count(1) == int(CALM_S / TICK_S)


def test_in_between_nothing_moves() -> None:
    assert set(climb([*[1.2] * 5, *[0.8] * 200])[5:]) == {1}
    assert set(climb([0.99] * 200)) == {0}


def test_a_peak_shorter_than_the_patience_is_no_overload() -> None:
    peaks = ([5.0] * int(RAISE_S / TICK_S) + [0.1]) * 30
    assert set(climb(peaks)) == {0}


def test_strain_alone_refuses_and_takes_nothing_from_running_calls() -> None:
    assert set(climb([0.0] * 100, [1.1] * 100)[10:]) == {1}
    # Callers felt it, and do not any more, but the engines have no time left: newcomers stay out.
    after = climb([*[1.2] * 20, *[0.1] * 100], [1.1] * 120)
    assert max(after) > 1
    assert after[-1] == 1


@given(PRESSURES, st.lists(st.floats(0, 2), min_size=120, max_size=120))
def test_more_pressure_never_gives_up_less(pressures: list[float], more: list[float]) -> None:
    lower = climb(pressures)
    higher = climb([pressure + extra for pressure, extra in zip(pressures, more, strict=False)])
    assert all(high >= low for high, low in zip(higher, lower, strict=True))


@given(PRESSURES)
def test_levels_change_by_one_and_never_flap(pressures: list[float]) -> None:
    levels = [0, *climb(pressures)]
    changes = [
        (tick, after - before) for tick, (before, after) in enumerate(itertools.pairwise(levels)) if after != before
    ]
    assert all(abs(by) == 1 for _, by in changes)
    for (tick, by), (later, then) in itertools.pairwise(changes):
        least_s = CALM_S if then < 0 else (STEP_S if by > 0 else RAISE_S)
        assert TICK_S * (later - tick) >= least_s


@given(PRESSURES)
def test_calm_ends_every_level(pressures: list[float]) -> None:
    assert climb([*pressures, *[0.0] * (1 + int(4 * CALM_S / TICK_S) + 1)])[-1] == 0


@pytest.mark.parametrize("component", STEPS)
def test_every_stage_refuses_before_it_takes_from_running_calls(component: str) -> None:
    assert STEPS[component][0] is Level.REFUSING
    assert list(STEPS[component]) == sorted(STEPS[component])


@pytest.mark.parametrize(
    ("sample", "pressure"),
    [
        (Sample(), 0.0),
        (Sample(depth=100), 1.0),
        (Sample(depth=50, oldest_s=2.0), 2.0),
        (Sample(waiting_s=0.6), 1.0),
        (Sample(lag_s=0.5), 1.0),
        (Sample(utilisation=1.0), 0.0),
    ],
)
def test_pressure_is_the_worst_of_what_callers_feel(sample: Sample, pressure: float) -> None:
    assert sample.pressure(LIMITS) == pytest.approx(pressure)


def test_limits_are_the_operators() -> None:
    settings = Settings(load=LoadSettings(depth_max=7, oldest_ms_max=250, waiting_ms_max=90))
    limits = limits_of(settings)
    assert (limits.depth, limits.oldest_s, limits.waiting_s) == (7, 0.25, 0.09)


def test_utilisation_is_of_the_window_and_of_all_engines() -> None:
    busy = Busy(capacity=2, now_s=0.0)
    busy.change(1, 0.0)
    assert busy.share(2.0) == pytest.approx(0.5)
    for _ in range(5):
        busy.change(1, 2.0)  # four of the six wait: two engines cannot be more than in use
    assert busy.share(4.0) == pytest.approx(0.75)
    for _ in range(6):
        busy.change(-1, 4.0)
    assert [round(busy.share(at_s), 2) for at_s in (6.0, 9.0, 11.5)] == [0.5, 0.0, 0.0]
    assert busy.share(4.0 + 3 * WINDOW_S) == 0.0


def test_waiting_is_what_the_engine_did_not_spend_on_it() -> None:
    waits = Waits()
    waits.begin(1, 0.0)
    waits.end(1, 0.5, compute_s=0.2)
    assert waits.mean_s(0.5) == pytest.approx(0.3)
    waits.begin(2, 1.0)
    assert waits.mean_s(1.2) == pytest.approx(0.3)
    assert waits.mean_s(3.0) == pytest.approx(2.0 - 2 * 0.2)  # still unanswered, and longer than it should take
    waits.end(2, 3.0, None)
    assert waits.mean_s(3.0) == pytest.approx((0.3 + 1.8) / 2)
    assert waits.mean_s(3.0 + WINDOW_S) == 0.0


def test_an_answer_that_goes_on_is_no_waiting() -> None:
    waits = Waits()
    waits.begin(1, 0.0)
    waits.end(1, 0.2, compute_s=0.2)
    waits.begin(2, 1.0)
    assert waits.mean_s(3.0) == pytest.approx(2.0 - 2 * 0.2)
    waits.begun(2)
    assert waits.mean_s(3.0) == 0.0
    waits.end(2, 9.0, compute_s=7.9)
    assert waits.mean_s(9.0) == pytest.approx(0.1)


def test_a_withdrawn_ask_and_one_that_can_be_shed_are_no_waiting() -> None:
    meter = Meter({"stt": 1}, 0.0)
    withdrawn = meter.asked("stt", 0.0)
    meter.answered("stt", withdrawn, 9.0, None, withdrawn=True)
    shed = meter.asked("stt", 9.0, sheddable=True)
    assert meter.sample(20.0, 0, depth=0).waiting_s == 0.0
    meter.answered("stt", shed, 20.0, 0.1)
    assert meter.sample(20.0, 0, depth=0).waiting_s == 0.0


def test_the_deadline_that_is_nearest_to_be_missed_counts_while_it_waits_and_a_while_after() -> None:
    meter = Meter({"stt": 1, "embeddings": 1}, 0.0)

    def used(now_s: float) -> float:
        return meter.sample(now_s, 0, depth=0).deadline_used

    assert used(0.0) == 0.0
    patient = meter.asked("stt", 0.0, deadline_s=10.0)
    urgent = meter.asked("embeddings", 0.0, deadline_s=2.0)
    assert used(1.0) == pytest.approx(0.5)
    meter.begun("embeddings", urgent, 1.0)
    meter.begun("embeddings", urgent, 1.9)  # the rest of its answer
    meter.answered("embeddings", urgent, 2.0, 0.1)
    assert used(4.0) == pytest.approx(0.5)
    assert used(6.0) == pytest.approx(0.6)
    meter.answered("stt", patient, 11.0, None)
    assert used(11.0 + USED_S - 0.1) == pytest.approx(1.1)
    assert used(11.0 + USED_S) == 0.0


def test_asks_that_were_withdrawn_or_may_be_shed_or_have_no_deadline_miss_none() -> None:
    meter = Meter({"stt": 1}, 0.0)
    withdrawn = meter.asked("stt", 0.0, deadline_s=1.0)
    meter.asked("stt", 0.0, sheddable=True, deadline_s=1.0)
    meter.asked("stt", 0.0)
    meter.asked("tools", 0.0, deadline_s=1.0)
    meter.answered("stt", withdrawn, 0.5, None, withdrawn=True)
    assert meter.sample(5.0, 0, depth=0).deadline_used == 0.0


def test_roles_that_are_not_ours_are_not_measured() -> None:
    meter = Meter({"llm": 1}, 0.0)
    number = meter.asked("tools", 0.0)
    meter.answered("tools", number, 50.0, 0.1)
    assert meter.sample(50.0, 0, depth=3) == Sample(depth=3)


def test_the_oldest_record_counts_while_it_waits_and_a_moment_after() -> None:
    meter = Meter({}, 0.0)
    meter.waiting(written_us=1_000_000)
    assert meter.sample(0.0, 4_000_000, depth=0).oldest_s == pytest.approx(3.0)
    meter.taken(0.0, 4_000_000)
    assert meter.sample(0.5, 4_500_000, depth=0).oldest_s == pytest.approx(3.0)
    assert meter.sample(1.5, 5_500_000, depth=0).oldest_s == 0.0
    meter.waiting(written_us=9_000_000)
    meter.taken(2.0, 8_000_000)  # a clock that runs ahead makes no negative ages
    assert meter.sample(2.0, 8_000_000, depth=0).oldest_s == 0.0


def test_the_board_knows_the_worst_until_it_is_silent() -> None:
    board = Board()
    board.heard(event(HealthKind.LOAD_RAISED, level=1, reason="depth 120"), 0.0)
    board.heard(event(HealthKind.LOAD_RAISED, "tts", level=4, reason="waiting 900 ms"), 1.0)
    worst = board.worst(2.0)
    assert worst is not None
    assert (worst.component, worst.level, worst.reason) == ("tts", Level.SHORT_ANSWERS, "waiting 900 ms")
    without = board.worst(2.0, besides="tts")
    assert without is not None
    assert without.component == "stt"
    board.heard(event(HealthKind.LOAD_LOWERED, "tts", level=0), 3.0)
    remaining = board.worst(3.0)
    assert remaining is not None
    assert remaining.component == "stt"
    assert board.worst(EXPIRE_S) is None  # its worker is gone


def test_the_board_adds_workers_up_and_ignores_breakers() -> None:
    board = Board()
    board.heard(event(HealthKind.LOAD_MEASURED, worker="0", utilisation=0.4, calls=3), 0.0)
    board.heard(event(HealthKind.LOAD_MEASURED, worker="1", utilisation=0.2, calls=2), 0.0)
    board.heard(event(HealthKind.LOAD_RAISED, worker="1", level=1), 0.5)  # says nothing of calls: the last word holds
    board.heard(event(HealthKind.BREAKER_OPENED, "llm", engine="llm.0"), 0.5)
    stages = board.stages(1.0)
    assert list(stages) == ["stt"]
    assert stages["stt"].utilisation == pytest.approx(0.3)
    assert stages["stt"].calls == 5


@given(st.integers(-5, 50))
def test_a_level_of_another_version_is_understood_as_well_as_can_be(level: int) -> None:
    board = Board()
    board.heard(event(HealthKind.LOAD_RAISED, level=level), 0.0)
    worst = board.worst(0.0)
    assert (worst.level if worst else 0) == min(max(level, 0), 4)
