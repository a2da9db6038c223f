"""Which offset may be committed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.faust_transport.ledger import Ledger


def test_an_open_record_holds_back_everything_above_it_even_before_the_first_commit() -> None:
    ledger = Ledger(0)
    for offset in range(5):
        ledger.delivered(offset)
    for offset in (1, 2, 3, 4):
        ledger.done(offset)
    assert ledger.position == 0
    ledger.done(0)
    assert ledger.position == 5
    assert len(ledger) == 0


def test_offsets_that_hold_no_record_hold_nothing_up() -> None:
    ledger = Ledger(10)
    for offset in (12, 15, 20):
        ledger.delivered(offset)
    ledger.done(15)
    ledger.done(12)
    assert ledger.position == 20


def test_a_repeated_record_is_refused() -> None:
    ledger = Ledger(3)
    ledger.delivered(3)
    ledger.done(3)
    with pytest.raises(ValueError, match="offset 3 delivered again"):
        ledger.delivered(3)


@given(st.data())
def test_position_is_the_first_delivered_record_that_is_not_done(data: st.DataObject) -> None:
    offsets = sorted(data.draw(st.sets(st.integers(0, 60), min_size=1)))
    ledger = Ledger(0)
    for offset in offsets:
        ledger.delivered(offset)
    done: set[int] = set()
    for offset in data.draw(st.permutations(offsets)):
        ledger.done(offset)
        ledger.done(offset)
        done.add(offset)
        still_open = [other for other in offsets if other not in done]
        assert ledger.position == (still_open[0] if still_open else offsets[-1] + 1)
