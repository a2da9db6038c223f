"""The collector looks seldom, and still looks."""

import gc
from collections.abc import Iterator
from typing import Any

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


def make(cycles: int) -> None:
    for _ in range(cycles):
        one: list[Any] = []
        one.append(one)


def test_what_a_call_makes_in_a_second_is_not_looked_through(looks: list[int]) -> None:
    collect_seldom()
    make(10_000)
    assert not looks


def test_cycles_are_found_all_the_same(looks: list[int]) -> None:
    collect_seldom()
    make(100_000)
    assert set(looks) == {0}
