"""The platform's own engines, which do as they are told for a while: hang, crash, dawdle, answer garbage or nothing.

An engine process looks for orders at each ask: a file named after its own process or after its role, in `faults` below
the data directory, that holds one word (see `Order`). `TRUNKLINE_ENGINES__STT=bench.faults.faulty_engine:stt`.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

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
from processors.intent import engine as intent_engine
from processors.llm import engine as llm_engine
from processors.stt import engine as stt_engine
from processors.tts import engine as tts_engine
from streams.settings import EngineSettings, Settings

SLOWER = 5.0
_POLL_S = 0.05
_MAKE: Mapping[str, Callable[[Settings], Engine]] = {
    "stt": stt_engine.create,
    "embeddings": intent_engine.create,
    "llm": llm_engine.create,
    "tts": tts_engine.create,
}


class Order(StrEnum):
    """hang: no answer until the order is taken back. crash: the process ends. slow: five times slower. garbage: an
    answer that is none. nothing: an answer without any reply.
    """

    HANG = "hang"
    CRASH = "crash"
    SLOW = "slow"
    GARBAGE = "garbage"
    NOTHING = "nothing"


def orders_dir(data_dir: Path) -> Path:
    """Where orders lie."""
    return data_dir / "faults"


class FaultyEngine:
    """The role's own engine, behind its orders; see `processors.engine.Engine`."""

    def __init__(self, settings: Settings, role: str) -> None:
        usual = getattr(EngineSettings(), role)
        own = settings.model_copy(update={"engines": settings.engines.model_copy(update={role: usual})})
        self._engine = _MAKE[role](own)
        self._files = [orders_dir(settings.data_dir) / name for name in (str(os.getpid()), role)]

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return self._engine.capabilities

    def warm(self) -> None:
        """See `Engine`; a process that is told to be ill is still warmed."""
        self._engine.warm()

    def answer(self, request: Request) -> Iterator[Reply]:
        """See `Engine`."""
        match self.order():
            case Order.HANG:
                while self.order() is Order.HANG:
                    time.sleep(_POLL_S)
                yield from self._engine.answer(request)
            case Order.CRASH:
                os._exit(1)
            case Order.SLOW:
                yield from self._dawdle(request)
            case Order.GARBAGE:
                yield from garbage(request)
            case Order.NOTHING:
                return
            case None:
                yield from self._engine.answer(request)

    def order(self) -> Order | None:
        """What this process is to do now."""
        for file in self._files:
            try:
                return Order(file.read_text())
            except (OSError, ValueError):
                continue
        return None

    def _dawdle(self, request: Request) -> Iterator[Reply]:
        began_s = time.monotonic()
        for reply in self._engine.answer(request):
            time.sleep((SLOWER - 1) * (time.monotonic() - began_s))
            yield reply
            began_s = time.monotonic()


def garbage(request: Request) -> Iterator[Reply]:
    """Replies that no engine gives: half a sample, words outside the audio, vectors that are no numbers."""
    match request:
        case Transcribe():
            yield Transcribed("\0\ufffd" * 500, (), float("nan"), "", "garbage", -1.0)
        case Embed():
            yield Embedded(b"\xff" * 7, 3, "garbage", 0.0)
        case Generate():
            yield Generated("\0\ufffd\x1b" * 200)
        case Speak():
            yield Spoken(b"\xff" * 3)
        case _:
            return


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
