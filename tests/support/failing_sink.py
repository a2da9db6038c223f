"""The sink with a store that fails at chosen moments: `python -m tests.support.failing_sink STEP WHEN HOW TIMES`.

STEP is plan, write or written; WHEN is before or after it was done; HOW is die (as kill -9 at that moment) or raise (as
a connection that breaks). It happens at the first so many such steps; then all goes well.
"""

import os
import sys
from typing import Any

from processors.clickhouse import sink
from processors.clickhouse.store import Store

STEP, WHEN, HOW, TIMES = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])


class FailingStore(Store):
    """A real store behind a bad line."""

    _steps = 0

    def plan(self, *arguments: Any) -> None:
        """See `Store`."""
        self._step("plan", super().plan, arguments)

    def write(self, *arguments: Any) -> None:
        """See `Store`."""
        self._step("write", super().write, arguments)

    def written(self, *arguments: Any) -> None:
        """See `Store`."""
        self._step("written", super().written, arguments)

    def _step(self, name: str, work: Any, arguments: tuple[Any, ...]) -> None:
        self._steps += name == STEP
        fails = name == STEP and self._steps <= TIMES
        if fails and WHEN == "before":
            self._fail()
        work(*arguments)
        if fails and WHEN == "after":
            self._fail()

    def _fail(self) -> None:
        if HOW == "die":
            os._exit(9)
        raise ConnectionResetError("the line is bad")


if __name__ == "__main__":
    vars(sink)["Store"] = FailingStore
    sys.exit(sink.main())
