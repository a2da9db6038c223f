"""What the overload benchmark makes of calls: who was admitted, dropped, refused, and by how much slower."""

import numpy as np
import pytest

from api.client import CallResult, TurnSummary
from bench.overload import QUICK, Offer, findings_of


def turn(waited_ms: float | None) -> TurnSummary:
    """A turn that was answered after that long, or not at all."""
    return TurnSummary("a.wav", 1, "", None, None, "", 0.0, None, None, None, None, waited_ms, None)


def call(ended: str, *waited_ms: float | None) -> CallResult:
    """A call that ended so."""
    silence = np.zeros(0, np.int16)
    return CallResult("s", "shop", ended, [], [turn(one) for one in waited_ms], silence, silence)


def test_a_call_that_the_platform_ended_was_dropped_and_a_turn_without_a_reply_is_counted() -> None:
    offer = Offer()
    for result in (call("hung_up", 500.0, None), call("completed", 700.0), call("failed", 900.0), call("shutdown")):
        offer.finished(result)
    assert offer.dropped == ["failed", "shutdown"]
    assert (offer.turns, offer.unanswered) == (4, 1)
    assert offer.latencies_ms == [500.0, 700.0, 900.0]


def test_the_most_calls_at_once_include_those_that_had_begun_before() -> None:
    offer = Offer()
    offer.levels = [(1.0, 1), (2.0, 2), (3.0, 3), (8.0, 2), (9.0, 1)]
    assert [offer.most(since_s) for since_s in (0.0, 2.5, 5.0, 8.5, 20.0)] == [3, 3, 3, 2, 1]


def test_the_table_compares_the_95th_percentiles() -> None:
    quiet, loaded = Offer(), Offer()
    quiet.latencies_ms = [400.0] * 94 + [800.0] * 6
    loaded.latencies_ms = [600.0] * 94 + [1000.0] * 6
    loaded.told_s, loaded.admitted, loaded.failed = [2.0, 4.0], 9, ["nothing answers"]
    found = findings_of(quiet, 6, 9, loaded, QUICK)
    facts = {fact.name: fact.value for fact in found.facts}
    assert facts["p95 loaded by unloaded"] == pytest.approx(1.25)
    assert (facts["callers offered"], facts["calls at once that were admitted"]) == (9, 6)
    assert (facts["refusals"], facts["admitted calls dropped"], facts["calls failed otherwise"]) == (2, 0, 1)
    assert findings_of(Offer(), 1, 2, loaded, QUICK).facts[2].value is None
