"""What the overload benchmark makes of calls: who was admitted, dropped, refused, and by how much slower."""

from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

from api.client import CallResult, TurnSummary
from bench.faults import faults
from bench.faults.checks import Kind
from bench.overload import QUICK, Offer, broken_promises, findings_of


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
    found = findings_of(quiet, Offer(), 6, 9, loaded, QUICK)
    facts = {fact.name: fact.value for fact in found.facts}
    assert facts["p95 loaded by unloaded"] == pytest.approx(1.25)
    assert (facts["callers offered"], facts["calls at once that were admitted"]) == (9, 6)
    assert (facts["refusals"], facts["admitted calls dropped"], facts["calls failed otherwise"]) == (2, 0, 1)
    assert findings_of(Offer(), Offer(), 1, 2, loaded, QUICK).facts[2].value is None


def offers(loaded_ms: float, refusals: int) -> tuple[Offer, Offer, Offer]:
    """One call at a time, those that probe, and those that are too many."""
    return Offer(latencies_ms=[400.0]), Offer(), Offer(latencies_ms=[loaded_ms], told_s=[2.0] * refusals)


def test_what_befalls_calls_counts_in_every_part() -> None:
    quiet, probing, loaded = offers(500.0, 3)
    quiet.dropped, probing.failed, loaded.failed = ["failed"], ["nothing answers"], ["nothing answers"]
    quiet.turns, probing.turns, loaded.turns, probing.unanswered = 4, 3, 2, 1
    found = findings_of(quiet, probing, 6, 9, loaded, QUICK)
    assert {fact.name: fact.value for fact in found.facts}["turns"] == 9
    assert broken_promises(found) == ["admitted calls dropped: 1", "calls failed otherwise: 2", "turns unanswered: 1"]


@pytest.mark.parametrize(
    ("loaded_ms", "refusals", "broken"),
    [(600.0, 1, None), (610.0, 1, "promised 1.5 at most"), (500.0, 0, "nobody was refused")],
)
def test_callers_who_wait_longer_or_a_door_that_stays_open_break_the_promise(
    loaded_ms: float, refusals: int, broken: str | None
) -> None:
    quiet, probing, loaded = offers(loaded_ms, refusals)
    found = broken_promises(findings_of(quiet, probing, 6, 9, loaded, QUICK))
    assert len(found) == bool(broken)
    assert all(str(broken) in text for text in found)


def test_what_cannot_be_compared_breaks_the_promise() -> None:
    found = broken_promises(findings_of(Offer(), Offer(), 6, 9, offers(500.0, 1)[2], QUICK))
    assert found == ["p95 loaded by unloaded: there is nothing to compare"]


async def test_the_fault_reports_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = findings_of(*offers(900.0, 0)[:2], 6, 9, offers(900.0, 0)[2], QUICK)
    monkeypatch.setattr(faults, "measure_overload", lambda url, quick: measured)
    scene = faults.Scene(SimpleNamespace(url="http://x"), None, Random(1))  # type: ignore[arg-type]
    await faults.FAULTS["overload"].strike(scene)
    assert [finding.kind for finding in scene.broken] == [Kind.OVERLOAD, Kind.OVERLOAD]
    assert any(note.startswith("p95 loaded by unloaded") for note in scene.notes)
