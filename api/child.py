"""One started process of the supervisor: how it is started, heard, judged and ended."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from streams import standby
from streams.clock import Clock
from streams.settings import REPOSITORY

_LAUNCHER = Path(__file__).with_name("launch.py")

STOPPED_S = 0.75  # a process that is stopped (SIGSTOP) for so long will not go on by itself
SILENT_S = 5.0  # without a turn of its event loop, on a machine that is not overloaded


class Child:
    """A running process; a spare until `go`."""

    def __init__(
        self, process: asyncio.subprocess.Process, command: Sequence[str], line: socket.socket, clock: Clock
    ) -> None:
        self.pid = process.pid
        self.command = command
        self.created = created(process.pid)
        self.prepared = asyncio.Event()
        self.started_s = clock.monotonic_s()
        self._process = process
        self._line = line
        self._clock = clock
        self._heard_s: float | None = None
        self._stopped_s: float | None = None
        self._facts: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._facts = psutil.Process(process.pid)
        asyncio.get_running_loop().add_reader(line, self._hear)

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        clock: Clock,
        *,
        environment: Mapping[str, str],
        output: int,
        inherited: Sequence[int] = (),
        watched: int | None = None,
    ) -> "Child":
        """Starts the command, bound to this process's life; `output` is its log, `inherited` are further descriptors.

        With `watched`, the reading end of a pipe, a watcher process binds it where the kernel cannot.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        watch = ["--watch", str(watched)] if watched is not None else []
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-E", str(_LAUNCHER), *watch, str(os.getpid())),
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**environment, standby.LIFELINE: str(theirs.fileno())},
                pass_fds=[theirs.fileno(), *inherited, *([watched] if watched is not None else [])],
                cwd=REPOSITORY,
                process_group=0,  # a Ctrl-C at the terminal is for the supervisor, which stops them in order
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, command, ours, clock)

    @property
    def code(self) -> int | None:
        """The exit status, once it has ended."""
        return self._process.returncode

    def go(self) -> None:
        """Tells a spare that it is its turn; it may still be preparing, and goes on as soon as it can."""
        with contextlib.suppress(OSError):
            self._line.send(standby.GO)
        self.forgive()

    async def wait(self) -> int:
        """Its exit status, when it has ended."""
        code = await self._process.wait()
        self._close()
        return code

    async def end(self, within_s: float, number: int = signal.SIGTERM) -> None:
        """Asks it to end, and kills it and what it started when the time is over."""
        with contextlib.suppress(psutil.NoSuchProcess):
            await end_process(psutil.Process(self.pid), within_s, self._clock, number)
        await self.wait()

    def kill(self) -> None:
        """Ends it at once, also when it is stopped."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def trouble(self, overload: float) -> str:
        """Why it must be taken for hung, or an empty string; `overload` scales how long its loop may stand."""
        now_s = self._clock.monotonic_s()
        if not self._is_stopped():
            self._stopped_s = None
        elif self._stopped_s is None:
            self._stopped_s = now_s
        elif now_s - self._stopped_s >= STOPPED_S:
            return "was stopped by a signal"
        silent_s = self.silent_s
        if silent_s is not None and silent_s > SILENT_S * overload:
            return f"hangs: its event loop has not turned for {silent_s:.1f} s"
        return ""

    @property
    def silent_s(self) -> float | None:
        """For how long it has not been heard; None where it never was."""
        return None if self._heard_s is None else self._clock.monotonic_s() - self._heard_s

    def forgive(self) -> None:
        """Starts judging anew; for when nobody could have been heard."""
        self._stopped_s = None
        if self._heard_s is not None:
            self._heard_s = self._clock.monotonic_s()

    def _is_stopped(self) -> bool:
        try:
            return self._facts is not None and bool(self._facts.status() == psutil.STATUS_STOPPED)
        except psutil.NoSuchProcess:
            return False

    def _hear(self) -> None:
        try:
            said = self._line.recv(4096)
        except OSError:
            said = b""
        if not said:
            self._close()
            return
        if standby.PREPARED in said:
            self.prepared.set()
        if standby.ALIVE in said:
            self._heard_s = self._clock.monotonic_s()

    def _close(self) -> None:
        if self._line.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._line)
            self._line.close()


async def end_process(process: psutil.Process, within_s: float, clock: Clock, number: int = signal.SIGTERM) -> None:
    """The signal, and SIGKILL for it and what it started when the time is over."""
    below = process.children(recursive=True)
    process.send_signal(number)
    deadline_s = clock.monotonic_s() + within_s
    while is_alive(process) and clock.monotonic_s() < deadline_s:
        await clock.sleep(0.02)
    for left in (process, *below):
        if is_alive(left):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
    while is_alive(process):
        await clock.sleep(0.02)


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that has ended and was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def created(pid: int) -> float:
    """When the process was started, which tells it from a later one with its id; 0 where there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0
