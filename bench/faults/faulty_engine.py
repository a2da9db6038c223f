"""The platform's own engines, which do wrong as they are told: hang, crash, dawdle, raise, answer garbage or nothing.

Select them through the settings, `TRUNKLINE_ENGINES__STT=bench.faults.faulty_engine:stt`, and likewise `EMBEDDINGS`,
`LLM` and `TTS`. An engine's process looks for an `Order` at each ask and before each reply: in a file named after its
process number or, for all of a role, after the role, in `faults` below the data directory.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

import numpy as np

from processors import hosted
from processors.engine import (
    Capabilities,
    Embed,
    Embedded,
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

SLOWER = 5.0
_POLL_S = 0.05


class Order(StrEnum):
    """hang: no reply until the order is taken back; it cannot be interrupted. crash: the process ends. slow: five times
    slower; `slow 12` twelve times. raise: an exception. memory: the one of a model that finds no memory on its device.
    Of whole answers: garbage, one that is none; nothing, one without any reply.
    """

    HANG = "hang"
    CRASH = "crash"
    SLOW = "slow"
    RAISE = "raise"
    MEMORY = "memory"
    GARBAGE = "garbage"
    NOTHING = "nothing"


def give_order(data_dir: Path, whose: int | str, order: str) -> None:
    """From its next reply on the process of that number, or every engine of the role, obeys."""
    file = _file(data_dir, whose)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".new")
    written.write_text(order)
    written.replace(file)


def take_order_back(data_dir: Path, whose: int | str) -> None:
    """The engine is well again; a process that has crashed still has to be replaced."""
    _file(data_dir, whose).unlink(missing_ok=True)


def _file(data_dir: Path, whose: int | str) -> Path:
    return data_dir / "faults" / str(whose)


class FaultyEngine:
    """The role's own engine, behind its orders; see `processors.engine.Engine`."""

    def __init__(self, settings: Settings, role: str) -> None:
        usual = EngineSettings.model_fields[role].default
        own = settings.model_copy(update={"engines": settings.engines.model_copy(update={role: usual})})
        self._engine = hosted.create(own, role)
        self._files = [_file(settings.data_dir, whose) for whose in (os.getpid(), role)]
        self._garbage = itertools.cycle((absurd, plausible))

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return self._engine.capabilities

    def warm(self) -> None:
        """See `Engine`; a process that is told to be ill is still warmed."""
        self._engine.warm()

    def answer(self, request: Request) -> Iterator[Reply]:
        """See `Engine`."""
        order, _ = self._order()
        if order is Order.GARBAGE:
            return next(self._garbage)(request)
        if order is Order.NOTHING:
            return iter(())
        return _Replies(self._engine.answer(request), self._obey)

    def _obey(self) -> float:
        """Returns how many times longer than usual the next reply has to take, if it may come at all."""
        order, times = self._order()
        while order is Order.HANG:
            time.sleep(_POLL_S)
            order, times = self._order()
        if order is Order.CRASH:
            os._exit(1)
        if order is Order.RAISE:
            raise RuntimeError("told to")
        if order is Order.MEMORY:
            raise RuntimeError("CUDA failed with error out of memory")
        return times if order is Order.SLOW else 1.0

    def _order(self) -> tuple[Order | None, float]:
        """What this process is to do now, and how slowly."""
        for file in self._files:
            try:
                order, _, times = file.read_text().strip().partition(" ")
                return Order(order), float(times or SLOWER)
            except (OSError, ValueError):
                continue
        return None, 1.0


class _Replies(Iterator[Reply]):
    """The engine's replies, each by the order of its moment; ended and cancelled as they are."""

    def __init__(self, replies: Iterator[Reply], obey: Callable[[], float]) -> None:
        self._replies = replies
        self._obey = obey

    def __next__(self) -> Reply:
        times = self._obey()
        began_s = time.monotonic()
        reply = next(self._replies)
        time.sleep((times - 1) * (time.monotonic() - began_s))
        return reply

    def cancel(self) -> None:
        """May be called from another thread."""
        self._end("cancel")

    def close(self) -> None:
        """Ends the answer."""
        self._end("close")

    def _end(self, how: str) -> None:
        end: Callable[[], None] | None = getattr(self._replies, how, None)
        if end is not None:
            end()


def absurd(request: Request) -> Iterator[Reply]:
    """Replies that nobody could take for an answer: half a sample, broken characters, vectors that are no numbers."""
    match request:
        case Transcribe():
            yield Transcribed("\0\ufffd" * 500, (), float("nan"), "", "garbage", -1.0)
        case Embed():
            yield Embedded(b"\xff" * 7, 3, "garbage", 0.0)
        case Generate():
            yield Generated("\0\ufffd\x1b" * 200)
        case Speak():
            yield Spoken(b"\xff" * 3)


def plausible(request: Request) -> Iterator[Reply]:
    """What is an answer by its form alone, as of a model that has lost its way."""
    match request:
        case Transcribe():
            yield Transcribed("you " * 200, (), 0.9, "en", "garbage", 1.0)
        case Embed(texts):
            yield Embedded(np.full((len(texts), 7), np.nan, "<f4").tobytes(), 7, "garbage", 1.0)
        case Generate():
            for _ in range(100):
                yield Generated("the the the ")
        case Speak():
            yield Spoken(b"\x00\x80" * 1600, "garbage", 1.0)


def stt(settings: Settings) -> FaultyEngine:
    """The ears."""
    return FaultyEngine(settings, "stt")


def embeddings(settings: Settings) -> FaultyEngine:
    """What tells intents."""
    return FaultyEngine(settings, "embeddings")


def llm(settings: Settings) -> FaultyEngine:
    """The language model."""
    return FaultyEngine(settings, "llm")


def tts(settings: Settings) -> FaultyEngine:
    """The voice."""
    return FaultyEngine(settings, "tts")
