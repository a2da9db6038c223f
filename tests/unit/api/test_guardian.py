"""The guardian with real commands: it starts again what was killed, passes signals and exit statuses on, and binds."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api import guardian
from tests.unit.api.test_supervisor import is_gone, until

# Says its process id, then waits for what the test does to it.
COMMAND = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), os.environ["TRUNKLINE_GUARDIAN"] == str(os.getppid()), flush=True)
signal.pause()
"""


@contextmanager
def guarded(script: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-S", "-E", str(Path(guardian.__file__)), sys.executable, "-S", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as one:
        try:
            yield one
        finally:
            one.kill()


def said(one: subprocess.Popen[str]) -> str:
    assert one.stdout is not None
    return one.stdout.readline().strip()


def test_what_was_killed_is_started_again() -> None:
    with guarded(COMMAND) as one:
        first, knows = said(one).split()
        assert knows == "True"
        os.kill(int(first), signal.SIGKILL)
        assert said(one) == "the supervisor was ended by SIGKILL and is started again"
        second, _ = said(one).split()
        assert second != first


def test_what_ends_by_itself_is_not() -> None:
    with guarded("raise SystemExit(3)") as one:
        assert one.wait(timeout=20) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_and_exit_statuses_are_passed_on(number: signal.Signals) -> None:
    with guarded(COMMAND) as one:
        pid, _ = said(one).split()
        one.send_signal(number)
        # SIGHUP ends the command by itself, and was told to us: it is not started again.
        assert one.wait(timeout=20) == (7 if number is signal.SIGTERM else 128 + number)
        assert is_gone(int(pid))


def test_who_kills_the_guardian_kills_what_it_guards() -> None:
    with guarded(COMMAND) as one:
        pid, _ = said(one).split()
        one.kill()
        asyncio.run(until(lambda: is_gone(int(pid))))
