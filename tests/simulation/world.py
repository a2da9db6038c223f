"""A world in simulated time: processes with event loops of their own, on one thread, from one seed.

Each process has its own asyncio loop, so it can be killed (its loop is never run again) or frozen (not run for a
while, as with SIGSTOP) at any moment, and has its own wall clock, which may be wrong and may step. What processes send
each other travels through the world, which moves time on to whatever happens next.
"""

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import random
from asyncio import events
from collections.abc import Callable, Coroutine
from typing import Any

EPOCH_US = 1_750_000_000_000_000


class _Never:
    """The selector of a loop without files: it never waits and never finds anything."""

    def select(self, timeout: float | None = None) -> tuple[()]:
        return ()


class _ProcessLoop(asyncio.BaseEventLoop):
    def __init__(self, world: "World", on_error: Callable[[str], None]) -> None:
        super().__init__()
        self._world = world
        self._selector = _Never()
        self._on_error = on_error

    def time(self) -> float:
        return self._world.now_s

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._on_error(f"{context.get('message')}: {context.get('exception')!r}")

    def _process_events(self, event_list: Any) -> None:
        return None

    def _write_to_self(self) -> None:
        return None


class Process:
    """A process of the simulated platform; it is also the `Clock` of the code that runs in it."""

    def __init__(self, world: "World", name: str, offset_s: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.frozen = False
        self.offset_us = round(offset_s * 1e6)
        self.loop = _ProcessLoop(world, self._failed)
        self._thawed: list[Callable[[], None]] = []
        self._unfinished: list[Any] = []
        world.processes.append(self)

    def _failed(self, what: str) -> None:
        # A process that was killed leaves tasks behind that never end; that is what killing means.
        if self.alive and not self.world.over:
            self.world.errors.append(f"{self.name}: {what}")

    # The clock.

    def now_us(self) -> int:
        return EPOCH_US + round(self.world.now_s * 1e6) + self.offset_us

    def monotonic_s(self) -> float:
        return self.world.now_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    # Life and death.

    def spawn(self, main: Coroutine[Any, Any, Any]) -> None:
        """Runs a coroutine in the process."""
        self._unfinished.append(main)
        self.loop.call_soon(self._start, main)

    def _start(self, main: Coroutine[Any, Any, Any]) -> None:
        task = self.loop.create_task(main)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(f"{type(error).__name__}: {error}")

    def kill(self) -> None:
        """As with SIGKILL: nothing of it runs again, not even what would clean up."""
        self.alive = False
        self.world.processes.remove(self)
        self.world.dead.append(self)
        self._unfinished += asyncio.all_tasks(self.loop)

    def freeze(self, seconds: float) -> None:
        """As with SIGSTOP and, later, SIGCONT: what arrives meanwhile waits, and timers are late."""
        self.frozen = True
        self.world.after(seconds, self._thaw)

    def _thaw(self) -> None:
        self.frozen = False
        waiting, self._thawed = self._thawed, []
        for action in waiting:
            action()

    def bury(self) -> None:
        """Ends what it left in mid-work, when the history is over, so that nothing of it is heard of later."""
        self.alive = False
        for unfinished in (*self._unfinished, *asyncio.all_tasks(self.loop)):
            main = unfinished.get_coro() if isinstance(unfinished, asyncio.Task) else unfinished
            with contextlib.suppress(Exception):
                main.close()
        self.loop.close()

    def when_thawed(self, action: Callable[[], None]) -> None:
        """Calls it once the process runs again."""
        self._thawed.append(action)

    def due(self) -> float | None:
        """When it has something to do; None when nothing is scheduled or it cannot run."""
        if self.frozen:
            return None
        loop: Any = self.loop
        if loop._ready:
            return self.world.now_s
        while loop._scheduled and loop._scheduled[0]._cancelled:
            loop._timer_cancelled_count -= 1
            heapq.heappop(loop._scheduled)._scheduled = False
        return loop._scheduled[0]._when if loop._scheduled else None

    def step(self) -> None:
        """Runs what is due in it."""
        loop: Any = self.loop
        events._set_running_loop(loop)
        try:
            loop._run_once()
        finally:
            events._set_running_loop(None)


class Channel:
    """A connection: what is sent through it arrives in order."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._last_s = 0.0

    def delay_s(self, seconds: float) -> float:
        """How long something takes that is sent now and would alone take so long."""
        self._last_s = max(self._last_s, self._world.now_s + seconds)
        return self._last_s - self._world.now_s


class World:
    """Time, chance, and what is under way between processes. `trace` is a digest of all that happened."""

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.over = False
        self.processes: list[Process] = []
        self.dead: list[Process] = []
        self.errors: list[str] = []
        self.history: list[str] = []
        self._verbose = verbose
        self._digest = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def note(self, *what: object) -> None:
        """Adds to the trace."""
        line = f"{self.now_s:.6f} {' '.join(map(str, what))}"
        self._digest.update(line.encode())
        if self._verbose:
            self.history.append(line)

    @property
    def trace(self) -> str:
        """Equal for equal histories."""
        return self._digest.hexdigest()

    def after(self, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """Does something in so many seconds, outside of all processes."""
        heapq.heappush(self._heap, (self.now_s + max(0.0, seconds), next(self._numbers), action, args))

    def send(self, process: Process, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """Does something in a process in so many seconds, if it lives then; a frozen one does it when it can."""
        self.after(seconds, self._arrive, process, action, args)

    def _arrive(self, process: Process, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        if process.alive:
            process.loop.call_soon(action, *args)

    def run(self, until_s: float, done: Callable[[], bool]) -> bool:
        """Goes on until `done`, which is asked every second, or that time; whether it is done."""
        check_s = self.now_s
        while self.now_s < until_s:
            self._settle()
            next_s = min((due for process in self.processes if (due := process.due()) is not None), default=until_s)
            if self._heap:
                next_s = min(next_s, self._heap[0][0])
            self.now_s = max(self.now_s, min(next_s, until_s))
            while self._heap and self._heap[0][0] <= self.now_s:
                _, _, action, args = heapq.heappop(self._heap)
                action(*args)
            if self.now_s >= check_s:
                check_s = self.now_s + 1.0
                if done():
                    return True
        return done()

    def _settle(self) -> None:
        """Runs every process until none has anything to do at this moment."""
        busy = True
        while busy:
            busy = False
            for process in tuple(self.processes):
                while process.alive and (due := process.due()) is not None and due <= self.now_s:
                    process.step()
                    busy = True

    def close(self) -> None:
        """Lets go of everything; what was left unfinished ends without a word."""
        self.over = True
        for process in (*self.processes, *self.dead):
            process.bury()
