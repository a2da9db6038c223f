"""Starts, watches and restarts the processes of a platform on one machine, and leaves none behind.

What the processes are is `api/platform.py`'s business. Each runs under `launch.py`, so that a killed supervisor takes
them with it. The run directory holds a lock (one supervisor for a data directory) and a state file, rewritten whole at
each change, which `trunkline status` and the next supervisor read.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import psutil

from api.errors import OperatorError
from streams import ready
from streams.clock import Clock, SystemClock
from streams.settings import REPOSITORY, Settings

_LAUNCHER = Path(__file__).with_name("launch.py")
_POLL_S = 0.05
_LOGS_KEPT = 3
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class State(StrEnum):
    """Where a process stands; `failing` is one that dies again and again."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILING = "failing"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process to be kept running.

    `component` is the name `status` shows it under; a process with another name than its component is an engine of it.
    `command` is called in a thread before each start and may raise OperatorError. `is_ready(pid)` is polled after each
    start. `needs` are names of processes or of steps to be ready before the first start. `settled_s`: it has stopped
    dying when it was ready that long.
    """

    name: str
    component: str
    command: Callable[[], Sequence[str]]
    is_ready: Callable[[int], Awaitable[bool]]
    needs: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_within_s: float = 120.0
    stop_within_s: float = 8.0
    stops_first: bool = False
    settled_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Step:
    """Something done once on the way up, such as creating topics; it may be done again by the next `up`."""

    name: str
    run: Callable[[], Awaitable[None]]
    needs: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Kept:
    """A process and how it fares."""

    process: Process
    state: State = State.STARTING
    since: float = field(default_factory=time.time)
    pid: int | None = None
    created: float = 0.0
    command: Sequence[str] = ()
    restarts: int = 0
    ready_once: bool = False
    started_s: float = 0.0
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=16))

    def entry(self) -> dict[str, Any]:
        """The row of `status`."""
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since))
        state = str(self.state)
        return {"pid": self.pid, "state": state, "restarts": self.restarts, "since": since}


Report = Callable[[str, float], None]


class Supervisor:
    """Keeps the processes of one data directory running, from `run` until a signal or `stop`.

    `report(name, seconds)` is called as each process or step becomes ready for the first time; `say` gets a line for
    each process that dies. `facts` go into the state file as they are (ports, environment). With `echo_logs` the
    processes write where this one writes, as containers want it, and not to files of their own.
    """

    def __init__(
        self,
        settings: Settings,
        parts: Sequence[Process | Step],
        *,
        name: str = "platform",
        facts: Mapping[str, Any] | None = None,
        report: Report = lambda name, seconds: None,
        say: Callable[[str], None] = lambda line: None,
        clock: Clock | None = None,
        backoff_s: float = 0.5,
        echo_logs: bool = False,
        watch_children: bool = not sys.platform.startswith("linux"),
    ) -> None:
        self._settings = settings
        self._name = name
        self._kept = {part.name: _Kept(part) for part in parts if isinstance(part, Process)}
        self._steps = [part for part in parts if isinstance(part, Step)]
        self._done = {part.name: asyncio.Event() for part in parts}
        self._facts = dict(facts or {})
        self._report = report
        self._say = say
        self._clock = clock or SystemClock()
        self._backoff_s = backoff_s
        self._echo_logs = echo_logs
        self._lifeline = os.pipe() if watch_children else None
        self._stop_asked = asyncio.Event()
        self._began_at = time.time()
        self._error = ""

    @property
    def state_path(self) -> Path:
        """The state file."""
        return state_path(self._settings, self._name)

    async def run(self, *, when_ready: Callable[[], None] = lambda: None) -> None:
        """Brings everything up and keeps it up until `stop` or SIGTERM or SIGINT, then stops it in reverse order.

        Raises OperatorError when something cannot be started; what had started is stopped first.
        The caller holds the data directory (`hold`).
        """
        with self._signals():
            self._rotate_logs()
            async with self._stopping_afterwards():
                await self._supervise(when_ready)

    def stop(self) -> None:
        """Asks for an orderly stop; `run` returns once it is done."""
        self._stop_asked.set()

    async def _supervise(self, when_ready: Callable[[], None]) -> None:
        keepers = [asyncio.create_task(self._keep(kept)) for kept in self._kept.values()]
        steps = [asyncio.create_task(self._take(step)) for step in self._steps]
        up = asyncio.create_task(self._all_ready(when_ready))
        stop = asyncio.create_task(self._stop_asked.wait())
        tasks = {*keepers, *steps, up, stop}
        try:
            while not stop.done():
                finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                tasks -= finished
                for task in finished:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _all_ready(self, when_ready: Callable[[], None]) -> None:
        for done in self._done.values():
            await done.wait()
        self._write(ready=True)
        when_ready()

    async def _take(self, step: Step) -> None:
        for need in step.needs:
            await self._done[need].wait()
        began_s = self._clock.monotonic_s()
        await step.run()
        self._became_ready(step.name, began_s)

    async def _keep(self, kept: _Kept) -> None:
        """Starts the process whenever it is not running; returns never."""
        for need in kept.process.needs:
            await self._done[need].wait()
        while True:
            running = await self._start(kept)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(kept.process.ready_within_s):
                    await self._until_ready(kept, running)
            if kept.state is not State.READY and running.returncode is None:
                self._say(f"{kept.process.name} was not ready within {kept.process.ready_within_s:g} s and is ended")
                await self._end(running, kept.process.stop_within_s)
            code = await running.wait()
            await self._died(kept, code)

    async def _start(self, kept: _Kept) -> asyncio.subprocess.Process:
        process, kept.started_s = kept.process, self._clock.monotonic_s()
        kept.command = await asyncio.to_thread(process.command)
        ready.withdraw(self._settings, process.name)
        watch = ["--watch", str(self._lifeline[0])] if self._lifeline else []
        output = os.dup(2) if self._echo_logs else _open_log(self._log_path(process.name))
        try:
            running = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-S", "-E", str(_LAUNCHER), *watch, str(os.getpid())),
                *kept.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **process.environment},
                pass_fds=[self._lifeline[0]] if self._lifeline else [],
                cwd=REPOSITORY,
                process_group=0,  # a Ctrl-C at the terminal is for the supervisor, which stops them in order
            )
        finally:
            os.close(output)
        kept.pid, kept.created = running.pid, _created(running.pid)
        self._write()
        return running

    async def _until_ready(self, kept: _Kept, running: asyncio.subprocess.Process) -> None:
        while running.returncode is None:
            if await kept.process.is_ready(running.pid):
                self._turn(kept, State.READY)
                if not kept.ready_once:
                    kept.ready_once = True
                    self._became_ready(kept.process.name, kept.started_s)
                return
            await self._clock.sleep(_POLL_S)

    async def _died(self, kept: _Kept, code: int) -> None:
        """Counts the death and waits, where it keeps dying, before the next start."""
        now_s = self._clock.monotonic_s()
        if kept.state is State.READY and now_s - kept.started_s > kept.process.settled_s:
            kept.deaths.clear()
        kept.deaths.append(now_s)
        kept.pid, kept.restarts = None, kept.restarts + 1
        died_often = len(kept.deaths) >= 3
        if died_often and not kept.ready_once:
            raise OperatorError(
                f"{kept.process.name} died {len(kept.deaths)} times while starting ({_last_words(code)}); its log is "
                f"{self._log_path(kept.process.name)}; what it says last: {self._log_end(kept.process.name)}"
            )
        name = kept.process.name
        self._say(f"{name} died ({_last_words(code)}) and is started again; its log is {self._log_path(name)}")
        self._turn(kept, State.FAILING if died_often else State.RESTARTING)
        if died_often:
            await self._clock.sleep(min(10.0, self._backoff_s * 2.0 ** (len(kept.deaths) - 3)))

    @contextlib.asynccontextmanager
    async def _stopping_afterwards(self) -> AsyncIterator[None]:
        try:
            yield
        except OperatorError as error:
            self._error = str(error)
            raise
        finally:
            await asyncio.shield(self._stop_all())

    async def _stop_all(self) -> None:
        """Ends the processes in reverse order of their dependencies, those of one rank at a time."""
        for rank in reversed(self._ranks()):
            await asyncio.gather(*(self._stop_one(kept) for kept in rank))
        if self._lifeline:
            for end in self._lifeline:
                os.close(end)
            self._lifeline = None

    async def _stop_one(self, kept: _Kept) -> None:
        if kept.pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                await _end_process(psutil.Process(kept.pid), kept.process.stop_within_s, self._clock)
        ready.withdraw(self._settings, kept.process.name)
        kept.pid = None
        self._turn(kept, State.STOPPED)

    async def _end(self, running: asyncio.subprocess.Process, within_s: float) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            await _end_process(psutil.Process(running.pid), within_s, self._clock)

    def _ranks(self) -> list[list[_Kept]]:
        """The processes by the longest chain of needs below them; the last are stopped first."""
        needs = {name: kept.process.needs for name, kept in self._kept.items()}
        needs |= {step.name: step.needs for step in self._steps}

        def rank(name: str) -> int:
            return 1 + max((rank(need) for need in needs[name]), default=-1)

        ranks: dict[int, list[_Kept]] = {}
        for name, kept in self._kept.items():
            ranks.setdefault(len(needs) if kept.process.stops_first else rank(name), []).append(kept)
        return [ranks[key] for key in sorted(ranks)]

    def _became_ready(self, name: str, began_s: float) -> None:
        seconds = self._clock.monotonic_s() - began_s
        self._facts.setdefault("ready_s", {})[name] = round(seconds, 1)
        self._done[name].set()
        self._write()
        self._report(name, seconds)

    def _turn(self, kept: _Kept, state: State) -> None:
        if kept.state is not state:
            kept.state, kept.since = state, time.time()
        self._write()

    def _write(self, *, ready: bool | None = None) -> None:
        if ready is not None:
            self._facts["ready"] = ready
        write_state(
            self.state_path,
            {
                "pid": os.getpid(),
                "created": _created(os.getpid()),
                "started_at": self._began_at,
                "error": self._error,
                **self._facts,
                "components": _components(self._kept.values()),
                "processes": [
                    {"name": name, "pid": kept.pid, "created": kept.created, "command": list(kept.command)}
                    for name, kept in self._kept.items()
                    if kept.pid is not None
                ],
            },
        )

    def _log_path(self, name: str) -> Path:
        return self._settings.log_dir / f"{name}.log"

    def _log_end(self, name: str) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_path(name).read_text(errors="replace").strip().splitlines()
            return lines[-1][:300] if lines else "nothing"
        return "nothing"

    def _rotate_logs(self) -> None:
        self._settings.log_dir.mkdir(parents=True, exist_ok=True)
        for name in self._kept:
            rotate(self._log_path(name))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._stop_asked.set)
        try:
            yield
        finally:
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)


def state_path(settings: Settings, name: str = "platform") -> Path:
    """Where the supervisor of that name keeps its state."""
    return settings.run_dir / f"{name}.json"


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replaces the state file; only its owner may read it, as it holds the command lines."""
    ready.write_json(path, state)


def read_state(settings: Settings, name: str = "platform") -> Mapping[str, Any] | None:
    """The state of the platform running on this data directory, or None when none runs there."""
    state = _stored_state(settings, name)
    if state is None or not _is_same(state.get("pid"), state.get("created")):
        return None
    return state


def _stored_state(settings: Settings, name: str) -> Mapping[str, Any] | None:
    try:
        state = json.loads(state_path(settings, name).read_bytes())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _open_log(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def rotate(path: Path) -> None:
    """Keeps the logs of the last few runs beside the new one: `x.log.1` is the run before."""
    for number in range(_LOGS_KEPT - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))


@contextlib.contextmanager
def hold(settings: Settings, name: str = "platform") -> Iterator[None]:
    """Holds the data directory for one supervisor; the kernel lets go of it when this process ends, however it ends.

    Raises OperatorError when another holds it.
    """
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    path = settings.run_dir / f"{name}.lock"
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(
                f"a platform is already running on {settings.data_dir} (pid {_holder(file)}); "
                "stop it with `trunkline down`, or use another --data-dir"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


async def end_leftovers(settings: Settings, name: str = "platform") -> list[str]:
    """Ends processes that a killed supervisor of this data directory left; returns their names.

    Only those whose start time and command are the recorded ones: an id may long belong to somebody else.
    """
    state = _stored_state(settings, name) or {}
    ended = []
    for entry in state.get("processes", ()):
        if not _is_same(entry.get("pid"), entry.get("created"), entry.get("command")):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            await _end_process(psutil.Process(entry["pid"]), 5.0, SystemClock())
        ended.append(str(entry["name"]))
    return ended


async def _end_process(process: psutil.Process, within_s: float, clock: Clock) -> None:
    """SIGTERM, and SIGKILL for it and what it started when the time is over."""
    below = process.children(recursive=True)
    process.terminate()
    deadline_s = clock.monotonic_s() + within_s
    while _alive(process) and clock.monotonic_s() < deadline_s:
        await clock.sleep(0.02)
    for left in (process, *below):
        if _alive(left):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
    while _alive(process):
        await clock.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_same(pid: Any, created: Any, command: Sequence[str] | None = None) -> bool:
    """Whether the process of that id is the one that was recorded."""
    if not isinstance(pid, int) or not isinstance(created, int | float):
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - created) > 2.0:
            return False
        return command is None or process.cmdline()[-len(command) :] == list(command)
    except psutil.Error:
        return False


def _created(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def _components(kept: Iterable[_Kept]) -> list[dict[str, Any]]:
    """The rows of `status`: one for each component, its engine process inside."""
    rows: dict[str, dict[str, Any]] = {}
    for one in kept:
        row = rows.setdefault(one.process.component, {"name": one.process.component})
        if one.process.name == one.process.component:
            row.update(one.entry())
        else:
            row.setdefault("engine", one.entry())
    return [{"name": row.pop("name"), **_with_own_state(row)} for row in rows.values()]


def _with_own_state(row: dict[str, Any]) -> dict[str, Any]:
    """Keeps `pid`, `state`, `restarts`, `since` first, and the engine last."""
    engine = row.pop("engine", None)
    return {**row, **({"engine": engine} if engine else {})}


def _last_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
