"""Real engines that go wrong on command, for tests and for campaigns that break a running platform.

Select one through the settings, as an engine of your own:

    TRUNKLINE_ENGINES__STT=tests.support.faulty_engine:stt
    TRUNKLINE_ENGINES__EMBEDDINGS=tests.support.faulty_engine:embeddings
    TRUNKLINE_ENGINES__LLM=tests.support.faulty_engine:llm
    TRUNKLINE_ENGINES__TTS=tests.support.faulty_engine:tts

The engine's process then asks the role's ordinary engine, and does wrong what the file `fault-ROLE.N` in the run
directory of its data directory says (N is the replica; `fault-ROLE` is for all replicas). It is read at each ask and
between two replies:

    hang      answers no more, and cannot be interrupted: the thread sleeps
    crash     the process ends at once
    slow      takes five times as long; `slow 12` twelve times
    garbage   answers what no model would: see `_garbage`
    nothing   ends each answer without a reply
    raise     raises

No file, or an empty one, is a healthy engine. `break_engine` and `mend_engine` write and remove it.
"""

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from processors.engine import (
    Capabilities,
    Embed,
    Embedded,
    Engine,
    Generate,
    Generated,
    Reply,
    Request,
    Speak,
    Spoken,
    Transcribe,
    Transcribed,
)
from streams.settings import EngineSettings, Settings

FAULTS = ("hang", "crash", "slow", "garbage", "nothing", "raise")
EXIT_STATUS = 23
_MODULES = {
    "stt": "processors.stt.engine",
    "embeddings": "processors.intent.engine",
    "llm": "processors.llm.engine",
    "tts": "processors.tts.engine",
}


def fault_file(settings: Settings, role: str, replica: int | None = None) -> Path:
    """Where a fault of the replica, or of all replicas, is written."""
    return settings.run_dir / (f"fault-{role}" if replica is None else f"fault-{role}.{replica}")


def break_engine(settings: Settings, role: str, fault: str, replica: int | None = None) -> None:
    """From the next reply on the engine goes wrong in that way."""
    if fault.split()[0] not in FAULTS:
        raise ValueError(f"fault: expected one of {', '.join(FAULTS)}, found {fault!r}")
    file = fault_file(settings, role, replica)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_text(fault)
    temporary.replace(file)


def mend_engine(settings: Settings, role: str, replica: int | None = None) -> None:
    """The engine is well again; a process that hangs or has crashed still has to be replaced."""
    fault_file(settings, role, replica).unlink(missing_ok=True)


class Faulty:
    """An `Engine` around another one."""

    def __init__(self, engine: Engine, fault: Callable[[], str]) -> None:
        self._engine = engine
        self._fault = fault

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return self._engine.capabilities

    def warm(self) -> None:
        """See `Engine`; even a broken one starts."""
        self._engine.warm()

    def answer(self, request: Request) -> Iterator[Reply]:
        """See `Engine`."""
        replies = self._engine.answer(request)
        try:
            before_s = time.monotonic()
            while True:
                fault = self._fault()
                self._strike(fault)
                if fault == "nothing":
                    return
                if fault == "garbage":
                    yield from _garbage(request)
                    return
                reply = next(replies, None)
                self._strike(self._fault())
                if reply is None:
                    return
                if fault.startswith("slow"):
                    times = float(fault.split()[1]) if " " in fault else 5.0
                    time.sleep((times - 1) * (time.monotonic() - before_s))
                yield reply
                before_s = time.monotonic()
        finally:
            for name in ("cancel", "close"):
                if (end := getattr(replies, name, None)) is not None:
                    end()

    def _strike(self, fault: str) -> None:
        if fault == "crash":
            sys.stderr.flush()
            os._exit(EXIT_STATUS)
        if fault == "raise":
            raise RuntimeError("broken on command")
        while fault == "hang":
            time.sleep(0.05)  # until the process is replaced, whatever the file says later


def _garbage(request: Request) -> Iterator[Reply]:
    """What could be an answer by its type alone."""
    match request:
        case Transcribe():
            yield Transcribed("you " * 200, (), float("nan"), "en", "garbage", 1.0)
        case Embed(texts):
            yield Embedded(np.full((len(texts), 7), np.nan, "<f4").tobytes(), 7, "garbage", 1.0)
        case Generate():
            for _ in range(100):
                yield Generated("the the the ")
        case Speak():
            yield Spoken(b"\x00\x80" * 1600 + b"\x01", "garbage", 1.0)


def _faulty(settings: Settings, role: str) -> Engine:
    """The role's ordinary engine, with a fault that is read anew whenever it is looked at."""
    ordinary = EngineSettings.model_fields[role].default
    real = settings.model_copy(update={"engines": settings.engines.model_copy(update={role: ordinary})})
    replica = int(sys.argv[sys.argv.index("--replica") + 1]) if "--replica" in sys.argv else 0

    def fault() -> str:
        for file in (fault_file(settings, role, replica), fault_file(settings, role)):
            try:
                return file.read_text().strip()
            except FileNotFoundError:
                continue
        return ""

    made: Engine = importlib.import_module(_MODULES[role]).create(real)
    return Faulty(made, fault)


def stt(settings: Settings) -> Engine:
    """The factory for the role stt."""
    return _faulty(settings, "stt")


def embeddings(settings: Settings) -> Engine:
    """The factory for the role embeddings."""
    return _faulty(settings, "embeddings")


def llm(settings: Settings) -> Engine:
    """The factory for the role llm."""
    return _faulty(settings, "llm")


def tts(settings: Settings) -> Engine:
    """The factory for the role tts."""
    return _faulty(settings, "tts")
