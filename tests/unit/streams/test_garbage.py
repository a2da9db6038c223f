"""The collector looks seldom, and still looks."""

import gc
from collections.abc import Iterator
from weakref import WeakSet

import pytest

from streams.garbage import collect_seldom


@pytest.fixture
def looks() -> Iterator[list[int]]:
    """The generations that were looked at, as they are."""
    before, seen = gc.get_threshold(), list[int]()

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.collect()
    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    gc.set_threshold(*before)


class Ended:
    """A cycle, as a call that has ended is one."""

    def __init__(self, left: "WeakSet[Ended]") -> None:
        self.itself = self
        left.add(self)


def test_what_calls_make_in_a_second_is_not_looked_through(looks: list[int]) -> None:
    collect_seldom()
    kept = [[number] for number in range(10_000)]
    assert len(kept) == 10_000
    assert not looks


def test_cycles_are_found_all_the_same_and_old_ones_too(looks: list[int]) -> None:
    collect_seldom()
    left: WeakSet[Ended] = WeakSet()
    calls = [Ended(left) for _ in range(1000)]
    kept = [[number] for number in range(30_000)]  # the calls have grown old
    assert looks == [0]
    calls.clear()
    kept += [[number] for number in range(150_000)]
    assert 1 in looks
    assert not left
