"""One engine in a process of its own: `python -m processors.engine_host ROLE --replica N`.

The engine is loaded and warmed before the socket is there, so who can connect can ask. It outlives the stages that ask
it: a restarted stage finds it warm. Each role has several such processes, its replicas. Asks of all clients wait in one
bounded queue, the earliest deadline first.
"""

import argparse
import asyncio
import contextlib
import heapq
import itertools
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from processors import models
from processors.engine import Capabilities, Engine, EngineError, Reply, Request, Transcribe, is_provisional
from processors.engine_frames import (
    BadFrameError,
    Ended,
    Failed,
    FromEngine,
    Hello,
    Open,
    Piece,
    Ping,
    Pong,
    Stop,
    engine_name,
    framed,
    from_client,
    private_folder,
    read_frame,
    socket_path,
)
from processors.footprint import device_of, resident_bytes
from processors.hosted import HOSTED_ROLES, create
from processors.memory import OUT_OF_MEMORY, answered_in_parts, give_back, is_out_of_memory
from streams import ready, standby
from streams.logs import configure
from streams.priority import STAGE_NICENESS, step_back
from streams.settings import Settings
from streams.yamlfile import ConfigError

log = structlog.get_logger(__name__)

REPLICAS_MAX = 9
GRACE_S = 2.0  # for asks at work when the process is told to stop
# An ask at work that nobody waits for any more means a hung engine, once it has gone on for much longer than work that
# cannot be interrupted ever took here; the factor is for a machine that has become slower.
STUCK_S_MIN = 10.0  # a busy machine must not lose its engines for being slow
STUCK_S_MAX = 20.0
STUCK_FACTOR = 4.0
_LATE_S = 0.5
# A reading that waited so long, or that another one waits for, is left to the smallest model: two that come in time are
# better than one that is a little better.
HURRY_S = 0.1
# After so long without a lack of memory, twice as many asks are worked on at a time again.
MORE_AGAIN_S = 30.0

_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 10)
_waiting = Gauge("trunkline_engine_queue_depth", "Asks waiting for the engine.", ["role"])
_working = Gauge("trunkline_engine_working", "Asks that the engine is at work on.", ["role"])
waited_seconds = Histogram("trunkline_engine_waited_seconds", "Time in the queue.", ["role"], buckets=_BUCKETS)
ask_seconds = Histogram("trunkline_engine_ask_seconds", "Time at work on an ask.", ["role"], buckets=_BUCKETS)
ended_asks = Counter("trunkline_engine_asks", "Asks by how they ended.", ["role", "outcome"])
memory_lacked = Counter(
    "trunkline_engine_out_of_memory",
    "Times that memory did not suffice for an ask: tried again with less at once (less), given up (failed).",
    ["role", "outcome"],
)
load_seconds = Gauge("trunkline_engine_load_seconds", "Time to load and warm the engine.", ["role"])
warm_seconds = Gauge("trunkline_engine_warm_seconds", "Time to warm it, once it was loaded.", ["role"])
_memory = Gauge("trunkline_engine_memory_bytes", "Memory of the engine's process beside any device.", ["role"])
_device_memory = Gauge(
    "trunkline_engine_device_memory_bytes",
    "Memory of the engine's device: used by all, total, and own, where that is told. There is none on the CPU.",
    ["role", "what"],
)
_device_busy = Gauge(
    "trunkline_engine_device_busy_ratio", "Share of the last moments in which anything ran on the device.", ["role"]
)


class Ask:
    """An ask of a client, from its arrival to its end."""

    __slots__ = ("again", "arrived_s", "cancel", "frame", "link", "replied", "started_s", "state", "stopped", "watch")

    def __init__(self, link: "Link", frame: Open) -> None:
        self.link = link
        self.frame = frame
        self.arrived_s = time.monotonic()
        self.state: Literal["new", "waiting", "working", "done"] = "new"
        self.stopped = threading.Event()
        self.started_s = 0.0
        self.replied = False
        self.again = False  # memory did not suffice the first time
        self.watch: asyncio.TimerHandle | None = None
        self.cancel: Callable[[], None] | None = None

    def stop(self) -> None:
        """Ends the work at the next reply, or at once where the engine's iterator has a `cancel` for other threads."""
        self.stopped.set()
        if self.cancel is not None:
            self.cancel()

    @property
    def late(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return time.monotonic() >= self.frame.deadline_s


class Link:
    """One client's connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.asks: dict[int, Ask] = {}
        self.task = asyncio.current_task()

    async def send(self, frame: FromEngine) -> None:
        """Returns when the client has room for more; a client that is gone is no error."""
        with contextlib.suppress(OSError):
            self.writer.write(framed(frame))
            await self.writer.drain()


class Host:
    """Serves one engine on a Unix socket. `on_links` is told how many clients are connected, at each change."""

    def __init__(self, role: str, engine: Engine, queue_depth_max: int, stuck_s: float = STUCK_S_MIN) -> None:
        self._role = role
        self._engine = engine
        self._queue_depth_max = queue_depth_max
        self._stuck_s_min = stuck_s
        self._longest_s = 0.0
        self._capabilities: Capabilities = engine.capabilities
        self._at_once = self._capabilities.concurrency  # less for a while, where memory did not suffice for all
        self._lacked_s = 0.0
        self._heap: list[tuple[float, int, Ask]] = []
        self._order = itertools.count()
        self._waiting = 0
        self._working = 0
        self._threads = ThreadPoolExecutor(self._capabilities.concurrency, thread_name_prefix=f"{role}-engine")
        self._links: set[Link] = set()
        self.on_links: Callable[[int], None] = lambda count: None
        self._server: asyncio.Server | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, path: Path) -> None:
        """Listens; raises OSError when another process already serves this socket."""
        private_folder(path)
        if _served(path):
            raise OSError(f"another process serves the {self._role} engine on {path}")
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(path))
        finally:
            os.umask(before)

    async def stop(self, grace_s: float = GRACE_S) -> bool:
        """Takes no more asks, fails those that wait, gives those at work `grace_s`; whether all of them ended."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        for _, _, ask in self._heap:
            if ask.state == "waiting":
                await self._fail(ask, "crashed", "the engine is being stopped")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        for link in list(self._links):
            for ask in link.asks.values():
                ask.stop()
            link.writer.close()
        tasks = [link.task for link in self._links if link.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._threads.shutdown(wait=False, cancel_futures=True)
        return self._idle.is_set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(writer)
        self._links.add(link)
        self.on_links(len(self._links))
        try:
            await link.send(Hello(self._capabilities))
            while True:
                frame = await read_frame(reader, from_client)
                if isinstance(frame, Open):
                    await self._open(link, frame)
                elif isinstance(frame, Stop):
                    self._stop_ask(link.asks.get(frame.id))
                elif isinstance(frame, Ping):
                    await link.send(Pong(frame.number))
        except BadFrameError as error:
            log.error("client sent what is no frame", role=self._role, expected=str(error))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._links.discard(link)
            self.on_links(len(self._links))
            for ask in list(link.asks.values()):
                self._stop_ask(ask)
            writer.close()

    async def _open(self, link: Link, frame: Open) -> None:
        ask = Ask(link, frame)
        if frame.id in link.asks:
            raise BadFrameError(f"expected an id of its own for each ask, found {frame.id} again")
        link.asks[frame.id] = ask
        if self._closing:
            await self._fail(ask, "crashed", "the engine is being stopped")
        elif self._waiting >= self._queue_depth_max:
            await self._fail(ask, "refused", f"{self._waiting} asks are waiting already")
        else:
            ask.state = "waiting"
            self._count(waiting=1)
            heapq.heappush(self._heap, (frame.deadline_s, next(self._order), ask))
            self._dispatch()

    def _stop_ask(self, ask: Ask | None) -> None:
        """Nobody wants it any more: one that waits is forgotten, one at work ends at its next reply."""
        if ask is None:
            return
        ask.stop()
        if ask.state == "working":
            self._unwanted(ask)
        if ask.state == "waiting":
            self._leave(ask, "cancelled")
            if len(self._heap) > 2 * self._queue_depth_max:
                self._heap = [entry for entry in self._heap if entry[2].state == "waiting"]
                heapq.heapify(self._heap)

    def _leave(self, ask: Ask, outcome: str) -> None:
        """The ask ends; each ends once."""
        self._count(waiting=-(ask.state == "waiting"), working=-(ask.state == "working"))
        ask.state = "done"
        ask.link.asks.pop(ask.frame.id, None)
        ended_asks.labels(self._role, outcome).inc()

    async def _fail(self, ask: Ask, reason: str, detail: str) -> None:
        self._leave(ask, reason)
        await ask.link.send(Failed(ask.frame.id, reason, detail))

    def _dispatch(self) -> None:
        """Hands the most urgent asks to idle threads; those past their deadline are dropped unserved."""
        self._more_again()
        while self._heap and self._working < self._at_once and not self._closing:
            _, _, ask = heapq.heappop(self._heap)
            if ask.state != "waiting":
                continue
            if ask.late:
                self._leave(ask, "timeout")
                self._spawn(ask.link.send(Failed(ask.frame.id, "timeout", "waited past its deadline")))
                continue
            ask.state = "working"
            self._count(waiting=-1, working=1)
            self._spawn(self._work(ask))

    async def _work(self, ask: Ask) -> None:
        """One ask, from a thread's first touch to its last frame."""
        loop = asyncio.get_running_loop()
        started_s = time.monotonic()
        waited_seconds.labels(self._role).observe(started_s - ask.arrived_s)
        ask.started_s = started_s
        ask.watch = loop.call_later(ask.frame.deadline_s - started_s + self._patience_s, self._stuck, ask)
        last = await loop.run_in_executor(self._threads, self._answer, ask, self._hastened(ask), loop)
        ask.watch.cancel()
        ask_seconds.labels(self._role).observe(time.monotonic() - started_s)
        cancelled = ask.stopped.is_set()
        if isinstance(last, Failed) and last.reason == OUT_OF_MEMORY and self._tried_again(ask):
            return
        self._leave(ask, "cancelled" if cancelled else last.reason if isinstance(last, Failed) else "answered")
        self._dispatch()
        if not cancelled:
            await ask.link.send(last)

    def _tried_again(self, ask: Ask) -> bool:
        """After a lack of memory fewer asks are worked on at a time, and this one once more; whether it is."""
        self._lacked_s = time.monotonic()
        self._at_once = max(1, self._working // 2)
        again = not (ask.replied or ask.again or ask.late or ask.stopped.is_set() or self._closing)
        memory_lacked.labels(self._role, "less" if again else "failed").inc()
        log.error("no memory left", role=self._role, at_once=self._at_once, again=again)
        if again:
            ask.again, ask.state = True, "waiting"
            self._count(waiting=1, working=-1)
            heapq.heappush(self._heap, (ask.frame.deadline_s, next(self._order), ask))
            self._dispatch()
        return again

    def _more_again(self) -> None:
        if self._at_once < self._capabilities.concurrency and time.monotonic() - self._lacked_s >= MORE_AGAIN_S:
            self._at_once = min(2 * self._at_once, self._capabilities.concurrency)
            self._lacked_s = time.monotonic()

    def _answer(self, ask: Ask, request: Request, loop: asyncio.AbstractEventLoop) -> Ended | Failed:
        """Runs the engine in this thread and passes its replies on; returns the ask's last frame."""
        number = ask.frame.id
        try:
            return self._passed_on(ask, request, loop)
        except TimeoutError:
            return Failed(number, "timeout", "the replies were not read by its deadline")
        except EngineError as error:
            return Failed(number, error.reason, error.detail)
        except BadFrameError as error:
            return Failed(number, "invalid", f"the reply is too large: {error}")
        except Exception as error:  # whatever the model's runtime raises: its text may hold a caller's words
            name = type(error).__name__
            if not is_out_of_memory(error):
                log.error("engine raised", role=self._role, error=name, at=_place_of(error))
                return Failed(number, "crashed", name)
        give_back()  # out of the handler, since the error's traceback holds what the attempt had
        return Failed(number, OUT_OF_MEMORY, name)

    def _passed_on(self, ask: Ask, request: Request, loop: asyncio.AbstractEventLoop) -> Ended | Failed:
        """Raises whatever the engine does, and TimeoutError where the client does not read."""
        number, deadline_s = ask.frame.id, ask.frame.deadline_s
        answer = answered_in_parts(self._engine, request) if ask.again else self._engine.answer(request)
        with _closing(answer) as replies:
            ask.cancel = getattr(replies, "cancel", None)
            if ask.stopped.is_set():  # before there was anything to cancel
                return Ended(number)
            before_s = ask.started_s
            for reply in replies:
                self._longest_s = max(self._longest_s, time.monotonic() - before_s)
                if ask.stopped.is_set():
                    break
                if ask.late:
                    return Failed(number, "timeout", "not finished by its deadline")
                ask.replied |= not is_provisional(reply)
                sent = asyncio.run_coroutine_threadsafe(ask.link.send(Piece(number, reply)), loop)
                sent.result(max(0.0, deadline_s - time.monotonic()))
                before_s = time.monotonic()  # the client's time is not the engine's
        return Ended(number)

    def _hastened(self, ask: Ask) -> Request:
        """The request, or less than that where there is no time for all of it."""
        request = ask.frame.request
        if not isinstance(request, Transcribe) or request.partial:
            return request
        others = (other.frame.request for _, _, other in self._heap if other.state == "waiting")
        awaited = any(isinstance(other, Transcribe) and not other.partial for other in others)
        if awaited or ask.started_s - ask.arrived_s > HURRY_S:
            return msgspec.structs.replace(request, quick=True)
        return request

    @property
    def _patience_s(self) -> float:
        """How long work may go on that nobody waits for: between two replies a model cannot be interrupted."""
        return min(max(STUCK_FACTOR * self._longest_s, self._stuck_s_min), STUCK_S_MAX)

    def _unwanted(self, ask: Ask) -> None:
        """From now on nobody waits for the ask at work; if it does not end soon, it never will."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._patience_s
        if ask.watch is not None and ask.watch.when() > until_s:
            ask.watch.cancel()
            ask.watch = loop.call_at(until_s, self._stuck, ask)

    def _stuck(self, ask: Ask) -> None:
        """A thread cannot be stopped, a process can: whoever watches it starts a new one."""
        loop = asyncio.get_running_loop()
        if ask.watch is not None and loop.time() - ask.watch.when() > _LATE_S:
            # It is this process that was stopped, and its threads with it: they get their time first.
            ask.watch = loop.call_later(self._patience_s, self._stuck, ask)
            return
        log.critical("engine hangs; leaving", role=self._role, patience_s=round(self._patience_s, 1))
        os._exit(os.EX_SOFTWARE)

    def _count(self, waiting: int = 0, working: int = 0) -> None:
        self._waiting += waiting
        self._working += working
        _waiting.labels(self._role).set(self._waiting)
        _working.labels(self._role).set(self._working)
        if self._working:
            self._idle.clear()
        else:
            self._idle.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


@contextlib.contextmanager
def _closing(replies: Iterator[Reply]) -> Iterator[Iterator[Reply]]:
    try:
        yield replies
    finally:
        close = getattr(replies, "close", None)
        if close is not None:
            close()


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _served(path: Path) -> bool:
    """Whether a living process listens there; a socket file that a killed one left behind does not count."""
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(str(path))
        except OSError:
            return False
        return True


def load(settings: Settings, role: str) -> Engine:
    """The role's engine as the settings choose it, loaded and warm."""
    started_s = time.monotonic()
    engine = create(settings, role)
    loaded_s = time.monotonic()
    engine.warm()
    warm_seconds.labels(role).set(time.monotonic() - loaded_s)
    load_seconds.labels(role).set(time.monotonic() - started_s)
    show_memory(role, engine.capabilities.device)
    return engine


def show_memory(role: str, name: str) -> None:
    """From now on each look at the metrics measures this process, and its device as far as that tells anything now."""
    _memory.labels(role).set_function(resident_bytes)
    now = device_of(name)
    for what in ("used", "total", "own"):
        if now is not None and getattr(now, what) is not None:
            _device_memory.labels(role, what).set_function(partial(_measured, name, what))
    if now is not None and now.busy is not None:
        _device_busy.labels(role).set_function(partial(_measured, name, "busy"))


def _measured(name: str, what: str) -> float:
    found = getattr(device_of(name), what, None)
    return math.nan if found is None else float(found)


def _metrics(settings: Settings) -> int:
    """Serves this process's metrics; the stage beside it may hold the port that the settings name."""
    try:
        server, _ = start_http_server(settings.metrics_port, addr="127.0.0.1")
    except OSError as error:
        server, _ = start_http_server(0, addr="127.0.0.1")
        log.warning("metrics on another port", wanted=settings.metrics_port, used=server.server_port, why=str(error))
    return int(server.server_port)


@dataclass(frozen=True, slots=True)
class Which:
    """Which of a role's processes this is."""

    role: str
    replica: int
    generation: int

    @property
    def name(self) -> str:
        """What it is called."""
        return engine_name(self.role, self.replica, self.generation)


async def serve(settings: Settings, which: Which, engine: Engine, metrics_port: int, load_ms: int) -> bool:
    """Serves the engine until the process is told to stop; whether all work had ended by then."""
    standby.show_life()
    role = which.role
    path = socket_path(settings, role, which.replica, which.generation)
    host = Host(role, engine, settings.engines.queue_depth_max, STUCK_S_MIN)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await host.start(path)
    model = engine.capabilities.model

    def announce(clients: int) -> None:
        """With the number of those who are connected: an engine that nobody keeps a connection to is not needed."""
        facts = {"socket": str(path), "model": model, "load_ms": load_ms, "metrics_port": metrics_port}
        if not told.is_set():
            ready.announce(settings, which.name, **facts, clients=clients)

    announce(0)
    host.on_links = announce
    log.info(
        "engine ready", role=role, replica=which.replica, generation=which.generation, model=model, load_ms=load_ms
    )
    await told.wait()
    ready.withdraw(settings, which.name)
    path.unlink(missing_ok=True)
    return await host.stop()


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 told to stop, 1 cannot listen, 70 the engine hung, 71 no memory for the model, 78 of no use."""
    parser = argparse.ArgumentParser(prog="python -m processors.engine_host", description="Serves one engine.")
    parser.add_argument("role", choices=HOSTED_ROLES)
    parser.add_argument("--replica", type=int, choices=range(REPLICAS_MAX), default=0, metavar="N")
    parser.add_argument("--generation", type=int, default=0, metavar="N", help="see processors/choices.py")
    which = Which(**vars(parser.parse_args(arguments)))
    role = which.role
    settings = Settings()
    configure(settings, which.name)
    step_back(STAGE_NICENESS)
    started_s = time.monotonic()
    try:
        engine = load(settings, role)
    except (models.ModelError, ConfigError, EngineError, ValueError) as error:
        log.critical("engine not started", role=role, why=str(error))
        return os.EX_CONFIG
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.critical("engine not started", role=role, why=f"no memory left for the model ({type(error).__name__})")
        return os.EX_OSERR
    load_ms = round(1000 * (time.monotonic() - started_s))
    try:
        ended = asyncio.run(serve(settings, which, engine, _metrics(settings), load_ms))
        log.info("engine stopped", role=role, all_work_ended=ended)
        status = 0
    except OSError as error:
        log.critical("engine not started", role=role, why=str(error))
        status = 1
    sys.stderr.flush()
    os._exit(status)  # threads still inside a runtime would hold an ordinary exit up


if __name__ == "__main__":
    sys.exit(main())
