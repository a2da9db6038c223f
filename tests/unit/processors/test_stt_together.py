"""Threads that share a model's calls: who is taken along, who goes first, and what becomes of those who fail."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from processors.stt.together import Together, Unwanted


class Model:
    """Counts its calls; the first one takes until `go` is set."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.began = threading.Event()
        self.go = threading.Event()

    def double(self, items: Sequence[int]) -> list[int]:
        self.calls.append(list(items))
        if len(self.calls) == 1:
            self.began.set()
            assert self.go.wait(30)
        return [2 * item for item in items]


class Scene:
    """Readings that come while the first one holds the model."""

    def __init__(self, together: Together) -> None:
        self.model = Model()
        self.together = together
        self._pool = ThreadPoolExecutor(16)
        self.first = self.ask("read", 0)
        assert self.model.began.wait(30)

    def ask(
        self, kind: str, item: int, urgent: bool = True, wanted: Callable[[], bool] = lambda: True
    ) -> "Future[int]":
        """Asks in a thread of its own; returns when the ask is in the queue, unless it is the first one."""
        waiting = len(self.together._jobs)

        def one() -> int:
            with self.together.reading(urgent, wanted):
                return self.together.do(kind, self.model.double, item)

        asked = self._pool.submit(one)
        while hasattr(self, "first") and len(self.together._jobs) == waiting:
            assert not asked.done()
        return asked

    def finish(self) -> None:
        self.model.go.set()
        self._pool.shutdown()


def test_what_waits_for_the_model_goes_in_one_call() -> None:
    scene = Scene(Together(8))
    asked = [scene.ask("read", item) for item in (1, 2, 3)]
    scene.finish()
    assert scene.model.calls == [[0], [1, 2, 3]]
    assert [one.result() for one in (scene.first, *asked)] == [0, 2, 4, 6]


def test_a_call_holds_no_more_than_it_may() -> None:
    scene = Scene(Together(2))
    for item in (1, 2, 3):
        scene.ask("read", item)
    scene.finish()
    assert scene.model.calls == [[0], [1, 2], [3]]


def test_steps_of_another_kind_or_urgency_are_not_mixed_and_urgent_ones_go_first() -> None:
    scene = Scene(Together(8))
    for kind, item, urgent in (("read", 1, False), ("read", 2, True), ("align", 3, True), ("read", 4, True)):
        scene.ask(kind, item, urgent)
    scene.finish()
    assert scene.model.calls == [[0], [2, 4], [3], [1]]


def test_a_reading_that_was_withdrawn_is_left_out() -> None:
    scene = Scene(Together(8))
    kept, withdrawn = scene.ask("read", 1), scene.ask("read", 2, wanted=lambda: False)
    scene.finish()
    assert scene.model.calls == [[0], [1]]
    assert kept.result() == 2
    with pytest.raises(Unwanted):
        withdrawn.result()


def test_nobody_fails_for_anothers_sake() -> None:
    scene = Scene(Together(8))
    double = scene.model.double

    def fussy(items: Sequence[int]) -> list[int]:
        found = double(items)
        if 2 in items:
            raise RuntimeError("out of memory")
        return found

    scene.model.double = fussy  # type: ignore[method-assign]
    good, bad, other = (scene.ask("read", item) for item in (1, 2, 3))
    scene.finish()
    assert scene.model.calls == [[0], [1, 2, 3], [1], [2], [3]]
    assert (good.result(), other.result()) == (2, 6)
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result()


def test_a_call_with_room_waits_for_readings_that_are_under_way() -> None:
    together, model = Together(2, wait_s=30), Model()
    model.go.set()
    late = threading.Event()

    def one(item: int, before: threading.Event) -> int:
        with together.reading(True, lambda: True):
            assert before.wait(30)
            return together.do("read", model.double, item)

    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(one, 2, late)
        while together._readings < 1:
            assert not second.done()
        at_once = threading.Event()
        at_once.set()
        first = pool.submit(one, 1, at_once)
        while not together._jobs:
            assert not first.done()
        late.set()
        assert (first.result(), second.result()) == (2, 4)
    assert model.calls == [[1, 2]]


def test_who_is_alone_waits_for_nobody() -> None:
    together, model = Together(2, wait_s=3600), Model()
    model.go.set()
    with together.reading(True, lambda: True):
        assert together.do("read", model.double, 4) == 8


def test_time_that_went_to_others_is_known() -> None:
    scene = Scene(Together(8))
    others: list[float] = []

    def one() -> None:
        with scene.together.reading(True, lambda: True):
            scene.together.do("read", scene.model.double, 1)
            others.append(scene.together.others_s)

    thread = threading.Thread(target=one)
    thread.start()
    while not scene.together._jobs:
        assert thread.is_alive()
    scene.finish()
    thread.join()
    assert others[0] > 0
    with scene.together.reading(True, lambda: True):
        assert scene.together.others_s == 0
