"""Starts, watches and restarts the processes of a platform on one machine, and leaves none behind.

What the processes are is `api/platform.py`'s business. Each runs under `launch.py`, so that a killed supervisor takes
them with it. The run directory holds a lock (one supervisor for a data directory) and a state file, rewritten whole at
each change, which `trunkline status` and the next supervisor read. Where a process takes long to start, a spare that
has prepared everything waits beside it (`streams/standby.py`), and goes on at once when it dies. A process that is
stopped, or whose event loop no longer turns, is taken for dead. See docs/adr/0005-warm-spares.md.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import psutil

from api.child import Child, created, end_process
from api.errors import OperatorError
from streams import ready, standby
from streams.clock import Clock, SystemClock
from streams.settings import Settings

_POLL_S = 0.05
_WATCH_S = 0.25
_PROBE_S = 5.0
_PROBES_FAILED_MAX = 4
_PREPARED_WITHIN_S = 60.0
_SPARE_BACKOFF_S_MAX = 60.0
_OVERLOAD_MAX = 6.0
_LOGS_KEPT = 3
_QUICK_DEATHS_MAX = 3
_BACKOFF_S_MAX = 10.0
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

    `spare` is the command of its spare, or None where a cold start is fast enough. `overlaps`: its replacement may be
    at work before it ends, so a restart leaves no gap. `listens` is an address that the supervisor listens on for it:
    who connects while it is replaced waits, and is not refused. `last`: it is started when all others are ready, and
    `run` does not wait for it. `answers` is asked now and then once it is ready; it has to be True sometimes.
    `stop_signal` ends it for good; a restart asks with SIGTERM.
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
    settled_s: float = 2.0
    spare: Sequence[str] | None = None
    overlaps: bool = False
    listens: tuple[str, int] | None = None
    last: bool = False
    answers: Callable[[], Awaitable[bool]] | None = None
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Step:
    """Something done once on the way up, such as creating topics; it may be done again by the next `up`."""

    name: str
    run: Callable[[], Awaitable[None]]
    needs: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Kept:
    """A process and how it fares. `leaving` is one that is being replaced and still finishes.

    One that was `added` waits for nothing; one that is `dismissed` is not started again. `code` is the exit status of
    the last one that died.
    """

    process: Process
    state: State = State.STARTING
    since: float = field(default_factory=time.time)
    child: Child | None = None
    leaving: Child | None = None
    spare: Child | None = None
    listener: socket.socket | None = None
    restarts: int = 0
    ready_once: bool = False
    ready_s: float = 0.0
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    problem: str = ""
    added: bool = False
    dismissed: bool = False
    code: int = 0
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def entry(self) -> dict[str, Any]:
        """The row of `status`."""
        row: dict[str, Any] = {
            "pid": self.child.pid if self.child else None,
            "state": str(self.state),
            "restarts": self.restarts,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since)),
        }
        if self.process.spare is not None:
            prepared = self.spare is not None and self.spare.prepared.is_set()
            row["spare"] = {"pid": self.spare.pid if self.spare else None, "prepared": prepared}
        return {**row, "problem": self.problem} if self.problem else row

    def children(self) -> list[Child]:
        """Every process there is of it."""
        return [child for child in (self.child, self.leaving, self.spare) if child is not None]


Report = Callable[[str, float], None]


class Supervisor:
    """Keeps the processes of one data directory running, from `run` until a signal or `stop`.

    `report(name, seconds)` is called as each process or step becomes ready for the first time; `say` gets a line for
    each process that dies. `facts` go into the state file as they are (ports, environment). With `echo_logs` the
    processes write where this one writes, as containers want it, and not to files of their own. Spares are prepared
    one at a time, `spare_after_s` after what they stand by for has become ready.
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
        spare_after_s: float = 1.0,
        echo_logs: bool = False,
        watch_children: bool = not sys.platform.startswith("linux"),
    ) -> None:
        self._settings = settings
        self._name = name
        self._kept = {part.name: _Kept(part) for part in parts if isinstance(part, Process)}
        self._steps = [part for part in parts if isinstance(part, Step)]
        self._done = {part.name: asyncio.Event() for part in parts}
        self._all_done = asyncio.Event()
        self._preparing = asyncio.Lock()
        self._facts = dict(facts or {})
        self._report = report
        self._say = say
        self._clock = clock or SystemClock()
        self._backoff_s = backoff_s
        self._spare_after_s = spare_after_s
        self._echo_logs = echo_logs
        self._lifeline = os.pipe() if watch_children else None
        self._stop_asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._work: list[Callable[[], Awaitable[None]]] = []
        self._on_request: Callable[[Mapping[str, Any]], Awaitable[None]] | None = None
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

    async def restart(self, names: Sequence[str]) -> None:
        """Replaces these processes one after another, each once its predecessor in the list is ready again.

        Where the spare of one cannot be prepared, say for a mistake in an agent's file, that one stays as it is.
        """
        for name in names:
            kept = self._kept[name]
            before = kept.restarts
            kept.problem = ""
            kept.asked.set()
            while kept.restarts == before or kept.state is not State.READY:
                if kept.problem and kept.state is State.READY:
                    return  # it was given up
                await self._clock.sleep(_POLL_S)

    def serve(
        self, on_request: Callable[[Mapping[str, Any]], Awaitable[None]], work: Callable[[], Awaitable[None]]
    ) -> None:
        """To be called before `run`: `on_request` gets what `ask` leaves word of, `work` goes on beside all else."""
        self._on_request = on_request
        self._work.append(work)

    def note(self, **facts: Any) -> None:
        """Puts these facts into the state file."""
        self._facts.update(facts)
        self._write()

    async def all_ready(self) -> None:
        """Returns when everything has come up."""
        await self._all_done.wait()

    async def add(self, processes: Sequence[Process]) -> None:
        """Starts further processes, which must be `last`, one after another, and returns when all of them are ready.

        Raises OperatorError as soon as one of them dies, and none of them is left then.
        """
        try:
            for process in processes:
                assert process.last, "the platform stands without it"
                kept = self._kept[process.name] = _Kept(process, added=True)
                self._done[process.name] = asyncio.Event()
                self._go_on(self._keep(kept))
                while kept.state is not State.READY:
                    if kept.restarts:
                        raise OperatorError(self._explained(kept, kept.code))
                    await self._clock.sleep(_POLL_S)
        except BaseException:
            await self.remove([process.name for process in processes])
            raise

    async def remove(self, names: Sequence[str]) -> None:
        """Stops these processes for good."""
        gone = [self._kept[name] for name in names if name in self._kept]
        for kept in gone:
            kept.dismissed = True
            kept.asked.set()
        await asyncio.gather(*(self._end_spare(kept) for kept in gone), *(self._stop_one(kept) for kept in gone))
        for kept in gone:
            self._kept.pop(kept.process.name, None)
        self._write()

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        """Has it done meanwhile; what goes wrong is said."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._say(f"{type(error).__name__}: {error}")

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def _supervise(self, when_ready: Callable[[], None]) -> None:
        keepers = [asyncio.create_task(self._keep(kept)) for kept in self._kept.values()]
        steps = [asyncio.create_task(self._take(step)) for step in self._steps]
        spares = [asyncio.create_task(self._keep_spare(kept)) for kept in self._kept.values() if kept.process.spare]
        probes = [asyncio.create_task(self._probe(kept)) for kept in self._kept.values() if kept.process.answers]
        up = asyncio.create_task(self._all_ready(when_ready))
        stop = asyncio.create_task(self._stop_asked.wait())
        work = [asyncio.ensure_future(one()) for one in self._work]
        tasks = {*keepers, *steps, *spares, *probes, *work, up, stop, asyncio.create_task(self._watch())}
        try:
            while not stop.done():
                finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                tasks -= finished
                for task in finished:
                    task.result()
        finally:
            for task in (tasks := tasks | self._tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _all_ready(self, when_ready: Callable[[], None]) -> None:
        last = {name for name, kept in self._kept.items() if kept.process.last}
        for name, done in self._done.items():
            if name not in last:
                await done.wait()
        self._all_done.set()
        self._write(ready=True)
        when_ready()

    async def _take(self, step: Step) -> None:
        for need in step.needs:
            await self._done[need].wait()
        began_s = self._clock.monotonic_s()
        await step.run()
        self._became_ready(step.name, began_s)

    # ---- one process

    async def _keep(self, kept: _Kept) -> None:
        """Starts the process whenever it is not running; returns when it is dismissed."""
        for need in kept.process.needs:
            await self._done[need].wait()
        if kept.process.last and not kept.added:
            await self._all_done.wait()
            async with self._preparing:  # beside running calls, one at a time
                await self._begin(kept)
        while not kept.dismissed:
            if kept.child is None:
                await self._begin(kept)
            child = kept.child
            assert child is not None
            code = await self._until_dead_or_asked(kept, child)
            if kept.dismissed:
                return
            if code is None:
                await self._replace(kept, child)
            else:
                await self._died(kept, code)

    async def _begin(self, kept: _Kept) -> None:
        """Puts the spare or a new process to work and waits until it is ready or dead."""
        child, kept.spare = kept.spare, None
        if child is not None and child.code is None:
            child.go()
        else:
            child = await self._launch(kept)
        kept.child = child
        began_s = self._clock.monotonic_s() if kept.ready_once else child.started_s
        self._write()
        await self._until_ready(kept, child, began_s)

    async def _launch(self, kept: _Kept, *, as_spare: bool = False) -> Child:
        process = kept.process
        command = (process.spare or ()) if as_spare else await asyncio.to_thread(process.command)
        environment = {**os.environ, **process.environment, **({standby.SPARE: "1"} if as_spare else {})}
        inherited = []
        if process.listens is not None:
            kept.listener = kept.listener or _listen(*process.listens)
            inherited.append(kept.listener.fileno())
            environment[standby.LISTENER] = str(kept.listener.fileno())
        if not as_spare and kept.child is None:
            ready.clear(self._settings, process.name)
        output = os.dup(2) if self._echo_logs else _open_log(self._log_path(process.name))
        try:
            return await Child.start(
                command,
                self._clock,
                environment=environment,
                output=output,
                inherited=inherited,
                watched=self._lifeline[0] if self._lifeline else None,
            )
        finally:
            os.close(output)

    async def _until_ready(self, kept: _Kept, child: Child, began_s: float) -> None:
        limit_s = kept.process.ready_within_s
        until_s = self._clock.monotonic_s() + limit_s
        while child.code is None:
            if await kept.process.is_ready(child.pid):
                kept.ready_s, kept.problem = self._clock.monotonic_s(), ""
                self._turn(kept, State.READY)
                if not kept.ready_once:
                    kept.ready_once = True
                    self._became_ready(kept.process.name, began_s)
                return
            if self._clock.monotonic_s() > until_s:
                self._say(f"{kept.process.name} was not ready within {limit_s:g} s and is ended")
                await child.end(kept.process.stop_within_s)
                return
            await self._clock.sleep(_POLL_S)

    async def _until_dead_or_asked(self, kept: _Kept, child: Child) -> int | None:
        """Its exit status, or None when it is to be replaced."""
        died = asyncio.create_task(child.wait())
        asked = asyncio.create_task(kept.asked.wait())
        try:
            await asyncio.wait({died, asked}, return_when=asyncio.FIRST_COMPLETED)
            return died.result() if died.done() else None
        finally:
            died.cancel()
            asked.cancel()

    async def _replace(self, kept: _Kept, child: Child) -> None:
        """A restart that was asked for: what comes next is prepared before the one at work is told to end."""
        kept.asked.clear()
        process = kept.process
        if process.spare is not None:
            # A spare that waits already holds the configuration of the time at which it was prepared.
            await self._end_spare(kept)
            if not await self._prepare(kept):
                kept.problem = f"{process.name} was not restarted, since what should replace it cannot be prepared"
                kept.problem += f"; its log is {self._where(kept)}; what it says last: {self._log_end(process.name)}"
                self._write()
                return
        kept.restarts += 1
        kept.leaving, kept.child = child, None
        self._turn(kept, State.RESTARTING)
        if not process.overlaps:
            await child.end(process.stop_within_s)
        await self._begin(kept)
        await child.end(process.stop_within_s)
        kept.leaving = None

    async def _died(self, kept: _Kept, code: int) -> None:
        """Counts the death and waits, where it keeps dying, before the next start."""
        now_s, process = self._clock.monotonic_s(), kept.process
        if kept.state is State.READY and now_s - kept.ready_s > process.settled_s:
            kept.deaths.clear()
        kept.deaths.append(now_s)
        kept.child, kept.restarts, kept.code = None, kept.restarts + 1, code
        unusable = code == os.EX_CONFIG
        often = len(kept.deaths) >= _QUICK_DEATHS_MAX
        if (often or unusable) and not kept.ready_once and not process.last:
            raise OperatorError(self._explained(kept, code))
        self._say(f"{process.name} died ({_last_words(code)}) and is started again; its log is {self._where(kept)}")
        if often or unusable:
            kept.problem = self._explained(kept, code)
        self._turn(kept, State.FAILING if kept.problem else State.RESTARTING)
        if unusable:
            await self._pause(kept, _BACKOFF_S_MAX)
        elif often:
            await self._pause(
                kept, min(_BACKOFF_S_MAX, self._backoff_s * 2.0 ** (len(kept.deaths) - _QUICK_DEATHS_MAX))
            )

    async def _pause(self, kept: _Kept, seconds: float) -> None:
        """Before the next start; a restart that is asked for cuts it short."""
        asked = asyncio.create_task(kept.asked.wait())
        waited = asyncio.create_task(self._clock.sleep(seconds))
        await asyncio.wait({asked, waited}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        waited.cancel()
        kept.asked.clear()

    def _explained(self, kept: _Kept, code: int) -> str:
        name, said = kept.process.name, self._log_end(kept.process.name)
        times = f"{len(kept.deaths)} times{'' if kept.ready_once else ' while starting'}"
        what = "cannot work with its configuration" if code == os.EX_CONFIG else f"died {times}"
        return f"{name} {what} ({_last_words(code)}); its log is {self._where(kept)}; what it says last: {said}"

    # ---- spares

    async def _keep_spare(self, kept: _Kept) -> None:
        """Has a spare prepared whenever the process is at work and has none; returns never."""
        failures = 0
        while True:
            await kept.is_ready.wait()
            await self._clock.sleep(min(_SPARE_BACKOFF_S_MAX, self._spare_after_s * 4.0**failures))
            if kept.spare is None and kept.is_ready.is_set() and self._all_done.is_set():
                async with self._preparing:
                    if kept.spare is None and kept.is_ready.is_set():
                        failures = 0 if await self._prepare(kept) else failures + 1
            if kept.spare is not None and kept.spare.code is not None:
                kept.spare = None
                self._write()

    async def _prepare(self, kept: _Kept) -> bool:
        """Starts a spare and waits until it is prepared; False where it died or took too long."""
        spare = kept.spare = await self._launch(kept, as_spare=True)
        self._write()
        prepared, died = asyncio.create_task(spare.prepared.wait()), asyncio.create_task(spare.wait())
        within_s = _PREPARED_WITHIN_S * _overload()
        await asyncio.wait({prepared, died}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        prepared.cancel()
        died.cancel()
        if spare is kept.spare and (spare.code is not None or not spare.prepared.is_set()):
            self._say(f"no spare of {kept.process.name} could be prepared; its log is {self._where(kept)}")
            await self._end_spare(kept)
            self._write()
            return False
        self._write()
        return True

    async def _end_spare(self, kept: _Kept) -> None:
        spare, kept.spare = kept.spare, None
        if spare is not None:
            spare.kill()  # it holds nothing
            await spare.wait()

    # ---- hangs

    async def _watch(self) -> None:
        """Ends what is stopped or hangs; `_keep` then finds it dead. Returns never."""
        looked_s = self._clock.monotonic_s()
        while True:
            await self._clock.sleep(_WATCH_S)
            now_s = self._clock.monotonic_s()
            late, looked_s = now_s - looked_s > 4 * _WATCH_S, now_s
            for kept in self._kept.values():
                for child in kept.children():
                    if late:  # this process itself was kept from hearing anybody
                        child.forgive()
                    elif why := child.trouble(_overload()):
                        self._say(f"{kept.process.name} (pid {child.pid}) {why}, and is ended")
                        child.kill()

    async def _probe(self, kept: _Kept) -> None:
        """For a process without signs of life of its own. Returns never."""
        assert kept.process.answers is not None
        failed = 0
        while True:
            await self._clock.sleep(_PROBE_S)
            child = kept.child
            if child is None or not kept.is_ready.is_set() or await kept.process.answers():
                failed = 0
                continue
            failed += 1
            if failed > _PROBES_FAILED_MAX * _overload() and child is kept.child:
                self._say(f"{kept.process.name} (pid {child.pid}) has not answered {failed} times, and is ended")
                child.kill()

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
        await asyncio.gather(*(self._end_spare(kept) for kept in self._kept.values()))
        for rank in reversed(self._ranks()):
            await asyncio.gather(*(self._stop_one(kept) for kept in rank))
        if self._lifeline:
            for end in self._lifeline:
                os.close(end)
            self._lifeline = None

    async def _stop_one(self, kept: _Kept) -> None:
        at_work = [child for child in (kept.child, kept.leaving) if child is not None]
        await asyncio.gather(*(child.end(kept.process.stop_within_s, kept.process.stop_signal) for child in at_work))
        if kept.listener is not None:
            kept.listener.close()
        ready.clear(self._settings, kept.process.name)
        kept.child = kept.leaving = None
        self._turn(kept, State.STOPPED)

    def _ranks(self) -> list[list[_Kept]]:
        """The processes by the longest chain of needs below them; the last are stopped first."""
        needs = {name: kept.process.needs for name, kept in self._kept.items()}
        needs |= {step.name: step.needs for step in self._steps}

        def rank(name: str) -> int:
            return 1 + max((rank(need) for need in needs.get(name, ())), default=-1)

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
        if state is State.READY:
            kept.is_ready.set()
        else:
            kept.is_ready.clear()
        self._write()

    def _write(self, *, ready: bool | None = None) -> None:
        if ready is not None:
            self._facts["ready"] = ready
        write_state(
            self.state_path,
            {
                "pid": os.getpid(),
                "created": created(os.getpid()),
                "started_at": self._began_at,
                "error": self._error,
                **self._facts,
                "components": _components(self._kept.values()),
                "processes": [
                    {"name": name, "pid": child.pid, "created": child.created, "command": list(child.command)}
                    for name, kept in self._kept.items()
                    for child in kept.children()
                ],
            },
        )

    def _log_path(self, name: str) -> Path:
        return self._settings.log_dir / f"{name}.log"

    def _where(self, kept: _Kept) -> str:
        return "above" if self._echo_logs else str(self._log_path(kept.process.name))

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
        loop.add_signal_handler(signal.SIGUSR1, self._take_requests)
        try:
            yield
        finally:
            for number in (*_STOP_SIGNALS, signal.SIGUSR1):
                loop.remove_signal_handler(number)

    def _take_requests(self) -> None:
        """Does what `ask_restart` and `ask` left word of."""
        for path in sorted(_requests(self._settings, self._name).glob("[!.]*")):
            word = path.read_bytes()
            path.unlink(missing_ok=True)
            if not word:
                self._go_on(self.restart([name for name in path.name.split(",") if name in self._kept]))
            elif self._on_request is not None:
                self._go_on(_awaited(self._on_request(json.loads(word))))


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


async def _awaited(work: Awaitable[None]) -> None:
    await work


def ask_restart(settings: Settings, names: Sequence[str], name: str = "platform") -> None:
    """Asks the running supervisor to replace these processes, one after another; its state shows how they fare.

    Raises OperatorError when none runs.
    """
    pid = _running(settings, name)
    folder = _requests(settings, name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ",".join(names)).touch()
    os.kill(pid, signal.SIGUSR1)


def ask(settings: Settings, request: Mapping[str, Any], name: str = "platform") -> None:
    """Hands the running supervisor a request, which is for what was given to its `serve`; needs an `id` of its own.

    Raises OperatorError when none runs.
    """
    pid = _running(settings, name)
    ready.write_json(_requests(settings, name) / f"{request['id']}.json", request)
    os.kill(pid, signal.SIGUSR1)


def _running(settings: Settings, name: str) -> int:
    """The supervisor's process id; raises OperatorError when none runs."""
    state = read_state(settings, name)
    if state is None:
        raise OperatorError(f"no platform is running on {settings.data_dir}; start it with `trunkline up`")
    return int(state["pid"])


def _requests(settings: Settings, name: str) -> Path:
    return settings.run_dir / f"{name}.requests"


def failing(settings: Settings, name: str = "platform") -> dict[str, str]:
    """What keeps dying, by the process's name, and why; empty also where no supervisor runs."""
    state = read_state(settings, name) or {}
    entries = [entry for row in state.get("components", ()) for entry in (row, *row.get("engines", ()))]
    return {entry["name"]: entry.get("problem", "") for entry in entries if entry.get("state") == State.FAILING}


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket that outlives the process that accepts from it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OperatorError(f"port {port} on {host} cannot be listened on: {error.strerror}") from error


def _overload() -> float:
    """How much longer than on an idle machine a process may take to be heard."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_OVERLOAD_MAX, max(1.0, psutil.getloadavg()[0] / cores))


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
            await end_process(psutil.Process(entry["pid"]), 5.0, SystemClock())
        ended.append(str(entry["name"]))
    return ended


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


def _components(kept: Iterable[_Kept]) -> list[dict[str, Any]]:
    """The rows of `status`: one for each component, its engine's replicas inside, the first also as `engine`."""
    rows: dict[str, dict[str, Any]] = {}
    engines: dict[str, list[dict[str, Any]]] = {}
    for one in kept:
        component = one.process.component
        row = rows.setdefault(component, {"name": component})
        if one.process.name == component:
            row.update(one.entry())
        else:
            engines.setdefault(component, []).append({"name": one.process.name, **one.entry()})
    for component, found in engines.items():
        found.sort(key=lambda entry: str(entry["name"]))
        rows[component] |= {"engine": found[0], "engines": found}
    return list(rows.values())


def _last_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
