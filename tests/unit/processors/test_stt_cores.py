"""Whether a core is free, from what the system says."""

import os
from pathlib import Path

import pytest

from processors.stt.cores import LOOKS_MAX, one_is_free


class Moments:
    """A system that says one thing after the other, the next after each sleep."""

    def __init__(self, file: Path, *running: int) -> None:
        self.file = file
        self._running = list(running)
        self.sleep()

    def sleep(self, _: float = 0.0) -> None:
        running = self._running.pop(0) if len(self._running) > 1 else self._running[0]
        self.file.write_text(f"0.20 0.18 0.12 {running}/80 11206\n")


CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("running", "free"),
    [
        ([CORES - 1], True),
        ([CORES], False),
        ([CORES + 5, CORES + 1, CORES - 1], True),
        ([CORES] * LOOKS_MAX + [CORES - 1], False),
    ],
)
def test_a_core_is_free_where_fewer_threads_run_at_one_look(tmp_path: Path, running: list[int], free: bool) -> None:
    moments = Moments(tmp_path / "loadavg", *running)
    assert one_is_free(moments.file, moments.sleep) is free


@pytest.mark.parametrize("text", ["", "0.20 0.18", "0.20 0.18 0.12 many/80 1"])
def test_where_the_system_does_not_say_none_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / "loadavg"
    assert one_is_free(file) is False
    file.write_text(text)
    assert one_is_free(file) is False
