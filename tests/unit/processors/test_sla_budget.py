"""Error budgets: known answers, and what holds for all numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.sla.budget import (
    BAD_MIN,
    KEPT_S,
    MINUTE_S,
    WINDOWS,
    Budgets,
    Counts,
    attainment,
    burn_rate,
    is_met,
)
from processors.sla.objectives import Objective
from processors.sla.report import number

SUCCESS = Objective("session_success", 0.005)
NOW_S = 1_790_000_040 // MINUTE_S * MINUTE_S

counted = st.integers(0, 10_000).flatmap(lambda events: st.builds(Counts, st.just(events), st.integers(0, events)))
allowed_shares = st.sampled_from([0.5, 0.05, 0.01, 0.005, 0.001, 0.0001])


def test_known_answers() -> None:
    assert attainment(Counts(1000, 5)) == 0.995
    assert burn_rate(Counts(1000, 5), 0.005) == pytest.approx(1.0)
    assert burn_rate(Counts(1000, 72), 0.005) == pytest.approx(14.4)
    assert is_met(Counts(1000, 5), 0.005) is True
    assert is_met(Counts(1000, 6), 0.005) is False
    assert is_met(Counts(9999, 1), 0.0001) is False
    assert is_met(Counts(10_000, 1), 0.0001) is True
    assert (attainment(Counts()), burn_rate(Counts(), 0.005), is_met(Counts(), 0.005)) == (None, None, None)


@given(counted, allowed_shares)
def test_an_objective_is_met_exactly_while_its_budget_lasts(counts: Counts, allowed: float) -> None:
    if counts.events:
        rate = burn_rate(counts, allowed)
        assert rate is not None
        assert is_met(counts, allowed) == (rate <= 1 + 1e-9)


@given(st.lists(st.floats(0, 10_000, width=32), min_size=1, max_size=300), st.sampled_from([50, 95, 99]), st.data())
def test_a_percentile_by_nearest_rank_and_a_share_of_events_say_the_same(
    values: list[float], percent: int, data: st.DataObject
) -> None:
    """That p95 is at most x is that at least 95 % are at most x: so an objective on a percentile has a budget."""
    limit = data.draw(st.sampled_from(values) | st.floats(0, 10_000, width=32))
    rank = (percent * len(values) + 99) // 100
    percentile = sorted(values)[rank - 1]
    bad = sum(value > limit for value in values)
    assert is_met(Counts(len(values), bad), round((100 - percent) / 100, 12)) == (percentile <= limit)


def budgets(minutes: dict[int, Counts], objective: Objective = SUCCESS) -> Budgets:
    """With those counts, keyed by how many minutes ago they were."""
    made = Budgets((objective,))
    counts = {(objective.name, NOW_S - MINUTE_S * ago): found for ago, found in minutes.items()}
    made.put(counts, NOW_S - KEPT_S, NOW_S)
    return made


def level(minutes: dict[int, Counts]) -> int:
    return budgets(minutes).burn(SUCCESS, NOW_S).level


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        ({}, 0),
        ({1: Counts(100, 0)}, 0),
        ({1: Counts(100, 10)}, 2),  # 20 times too fast, now and over the hour
        ({30: Counts(100, 10), 1: Counts(20, 0)}, 2),  # over within the last minutes; of six hours it is still too much
        ({30: Counts(100, 10), 1: Counts(900, 0)}, 1),  # diluted to 2 times: the day's work
        ({600: Counts(100, 10)}, 0),  # long over
        ({600: Counts(1000, 10), 100: Counts(1000, 10)}, 1),  # 2 times over three days and six hours
        ({1: Counts(1, 1)}, 0),  # one failure alone
        ({2: Counts(1, 1), 1: Counts(1, 1)}, 2),
    ],
)
def test_the_windows_know_what_goes_on(minutes: dict[int, Counts], expected: int) -> None:
    assert level(minutes) == expected


def test_a_change_is_told_once_and_told_again_when_it_is_over() -> None:
    made = budgets({1: Counts(100, 10)})
    ((objective, burn, rose),) = made.changes(NOW_S)
    assert (objective, burn.level, burn.window.long_s, rose) == (SUCCESS, 2, 3600, True)
    assert burn.rate == pytest.approx(20.0)
    assert made.changes(NOW_S) == []
    later_s = NOW_S + 3600
    ((_, less, rose),) = made.changes(later_s)
    assert (less.level, rose) == (1, False)
    later_s = NOW_S + 24 * 3600
    ((_, over, rose),) = made.changes(later_s)
    assert (over.level, rose) == (0, False)
    assert made.changes(later_s) == []


def test_what_was_reported_before_a_restart_is_not_reported_again() -> None:
    made = Budgets((SUCCESS,), {SUCCESS.name: 2})
    made.put({(SUCCESS.name, NOW_S - 60): Counts(100, 10)}, NOW_S - KEPT_S, NOW_S)
    assert made.changes(NOW_S) == []


@given(st.dictionaries(st.integers(0, KEPT_S // MINUTE_S + 100), counted, max_size=30))
def test_every_window_counts_its_minutes_and_no_others(minutes: dict[int, Counts]) -> None:
    made = budgets(minutes)
    for window in WINDOWS:
        for length_s in (window.long_s, window.short_s):
            expected = [found for ago, found in minutes.items() if ago * MINUTE_S < length_s + MINUTE_S]
            found = made.over(SUCCESS.name, length_s, NOW_S)
            assert found == Counts(sum(one.events for one in expected), sum(one.bad for one in expected))


@given(st.dictionaries(st.integers(0, 5000), counted, max_size=30), allowed_shares)
def test_an_alert_has_its_reasons(minutes: dict[int, Counts], allowed: float) -> None:
    objective = Objective("any", allowed)
    burn = budgets(minutes, objective).burn(objective, NOW_S)
    if burn.level:
        assert burn.long.bad >= BAD_MIN
        assert burn.rate >= burn.window.rate
        assert (burn_rate(burn.short, allowed) or 0.0) >= burn.window.rate


def test_minutes_are_replaced_and_old_ones_forgotten() -> None:
    made = budgets({1: Counts(10, 1), 120: Counts(7, 0)})
    later_s = NOW_S + 60
    made.put({(SUCCESS.name, NOW_S): Counts(3, 0)}, NOW_S - 3600, later_s)
    assert made.over(SUCCESS.name, KEPT_S, later_s) == Counts(10, 0)
    made.put({}, later_s + KEPT_S, later_s + KEPT_S + 3600)
    assert made.over(SUCCESS.name, KEPT_S, later_s + KEPT_S + 3600) == Counts()


@given(st.floats(0, 1e9))
def test_numbers_are_written_the_same_in_every_language(value: float) -> None:
    text = repr(number(value))
    assert "e" not in text
    assert not text.endswith(".0")
    assert math.isclose(float(text), value, abs_tol=5e-5)
