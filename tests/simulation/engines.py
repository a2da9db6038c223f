"""Engines, and the business system behind the agent's tools, in simulated time.

They answer after delays that come from the seed. While the world is stormy they also answer late, not at all, wrongly,
or die in mid-answer. The language model never says the same twice; the voice cuts its speech differently each time.
"""

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from processors.engine import (
    CallTool,
    Chosen,
    Embed,
    Embedded,
    EngineError,
    Generate,
    Generated,
    Reply,
    Request,
    Speak,
    Spoken,
    ToolReturned,
    Transcribe,
)
from tests.simulation.speech import transcribe, voice
from tests.simulation.world import World

DIMENSIONS = 512
_STEMS = ("ing", "es", "s", "ed")


@lru_cache(maxsize=5000)
def _vector(text: str) -> NDArray[np.float32]:
    vector = np.zeros(DIMENSIONS, np.float32)
    for word in "".join(char if char.isalnum() else " " for char in text.lower()).split():
        stem = next((word[: -len(end)] for end in _STEMS if word.endswith(end) and len(word) > len(end) + 2), word)
        vector[zlib.crc32(stem.encode()) % DIMENSIONS] += 1
    length = float(np.linalg.norm(vector))
    result: NDArray[np.float32] = vector / length if length else vector
    return result


def embed(texts: tuple[str, ...]) -> NDArray[np.float32]:
    """Bags of words as unit vectors."""
    return np.stack([_vector(text) for text in texts])


@dataclass(frozen=True, slots=True)
class Illness:
    """How engines fail while it storms, as shares of asks.

    While it does not, `hasty` ears begin with other words than those that count, or with none.
    """

    crash: float = 0.0
    hang: float = 0.0
    slow: float = 0.0
    garbage: float = 0.0
    hasty: float = 0.0


@dataclass(slots=True)
class Engines:
    """All engines of the platform; `stormy` is shared with the log."""

    world: World
    illness: Illness
    is_stormy: Callable[[], bool]
    erp: "Erp"
    generated: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def client(self, role: str) -> "SimulatedEngine":
        """The way to the engine of a role."""
        scripts: dict[str, Callable[[Any], list[tuple[float, Reply]]]] = {
            "stt": self._stt,
            "embeddings": self._embeddings,
            "llm": self._llm,
            "tts": self._tts,
        }
        return SimulatedEngine(self, role, scripts.get(role))

    def ms(self, low: float, high: float) -> float:
        """A delay in milliseconds."""
        return self.world.random.uniform(low, high)

    def _stt(self, request: Transcribe) -> list[tuple[float, Reply]]:
        compute_ms = self.ms(20, 90)
        settled = transcribe(request.pcm, compute_ms)
        if request.partial or not settled.text or self.world.random.random() < self.illness.hasty:
            return [(compute_ms, settled)]
        # Where an ask may fail, its first words may be those that count.
        wrong = not self.is_stormy() and self.world.random.random() < self.illness.hasty
        first = replace(settled, text=f"{settled.text} um" if wrong else settled.text, provisional=True)
        return [(compute_ms, first), (self.ms(10, 400), replace(settled, compute_ms=compute_ms / 2))]

    def _embeddings(self, request: Embed) -> list[tuple[float, Reply]]:
        vectors = embed(request.texts).astype("<f4").tobytes()
        return [(self.ms(3, 15), Embedded(vectors, DIMENSIONS, "simulated", 5.0))]

    def _llm(self, request: Generate) -> list[tuple[float, Reply]]:
        self.generated += 1
        if request.may_choose and request.messages[-1].role == "user" and "cats" in request.messages[-1].content:
            return self._choice()
        said = f"That is a good question, in my {_ORDINALS[self.generated % 7]} opinion."
        more = f"I would gladly think about it {_ORDINALS[(self.generated // 7) % 7]} again."
        words = f"{said} {more} ".split(" ")
        return [(self.ms(5, 25), Generated(f"{word} ", "simulated")) for word in words if word]

    def _choice(self) -> list[tuple[float, Reply]]:
        """Of a tool with an effect, each time in other words."""
        problem = f"Somebody has a {_ORDINALS[self.generated % 7]} question about cats."
        chosen = Chosen("open_ticket", json.dumps({"problem": problem, "order_number": None}))
        last = Generated("", "simulated", chosen=chosen)
        return [(self.ms(5, 25), Generated("", choosing=True)), (self.ms(20, 200), last)]

    def _tts(self, request: Speak) -> list[tuple[float, Reply]]:
        pcm, pieces, at = voice(request.text), [], 0
        while at < len(pcm):
            size = 2 * round(self.ms(100, 500) * 16)
            pieces.append((self.ms(5, 60), Spoken(pcm[at : at + size], "simulated", 10.0)))
            at += size
        return list(pieces)


_ORDINALS = ("humble", "honest", "frank", "modest", "quiet", "careful", "plain")


class SimulatedEngine:
    """As `EngineClient`; the engine outlives the worker that asks."""

    def __init__(self, engines: Engines, role: str, script: Callable[[Any], list[tuple[float, Reply]]] | None) -> None:
        self._engines = engines
        self._role = role
        self._script = script

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        engines = self._engines
        engines.asked[self._role] = engines.asked.get(self._role, 0) + 1
        if isinstance(request, CallTool):
            yield await self._call(request, deadline_s)
            return
        assert self._script is not None
        pieces = self._script(request)
        trouble = self._trouble()
        fails_at = engines.world.random.randrange(len(pieces)) if trouble in ("crash", "hang", "garbage") else -1
        began_s = engines.world.now_s
        for index, (delay_ms, reply) in enumerate(pieces):
            await asyncio.sleep(delay_ms * (5 if trouble == "slow" else 1) / 1000)
            if index == fails_at:
                await self._fail(trouble, began_s + deadline_s)
            if engines.world.now_s > began_s + deadline_s:
                raise EngineError("timeout")
            yield reply

    def _trouble(self) -> str:
        engines = self._engines
        if not engines.is_stormy():
            return ""
        drawn = engines.world.random.random()
        for name in ("crash", "hang", "slow", "garbage"):
            share = getattr(engines.illness, name)
            if drawn < share:
                if name != "slow":
                    engines.failed[self._role] = engines.failed.get(self._role, 0) + 1
                engines.world.note("engine", self._role, name)
                return name
            drawn -= share
        return ""

    async def _fail(self, trouble: str, deadline_at_s: float) -> None:
        if trouble == "hang":
            await asyncio.sleep(deadline_at_s - self._engines.world.now_s)
            raise EngineError("timeout")
        raise EngineError("invalid" if trouble == "garbage" else "crashed")

    async def _call(self, request: CallTool, deadline_s: float) -> Reply:
        """The request and its answer both travel, and either may be lost; the effect is at the other system."""
        engines = self._engines
        began_s = engines.world.now_s
        answer: asyncio.Future[ToolReturned] = asyncio.get_running_loop().create_future()
        trouble = self._trouble()
        lost = trouble in ("crash", "hang") and engines.world.random.random() < 0.5
        if not lost:
            engines.world.after(engines.ms(5, 30) / 1000, engines.erp.handle, request, answer, trouble)
        await asyncio.sleep(engines.ms(40, 150) * (5 if trouble == "slow" else 1) / 1000)
        if trouble:
            await self._fail(trouble, began_s + deadline_s)
        return answer.result()

    async def close(self) -> None:
        """See `EngineClient`."""
        return


@dataclass(slots=True)
class Erp:
    """Orders, stock, returns and tickets. A key that it knows has no second effect."""

    world: World
    returns: list[str] = field(default_factory=list)
    tickets: list[str] = field(default_factory=list)
    calls: int = 0
    _answers: dict[str, ToolReturned] = field(default_factory=dict)

    def handle(self, request: CallTool, answer: "asyncio.Future[ToolReturned]", trouble: str) -> None:
        """Answers one request; `garbage` is an error of its own, before anything was done."""
        self.calls += 1
        self.world.note("erp", request.method, request.url, request.idempotency_key)
        if trouble != "garbage":
            if request.idempotency_key not in self._answers:
                self._answers[request.idempotency_key] = self._effect(request)
            if not answer.done():
                answer.set_result(self._answers[request.idempotency_key])

    def _effect(self, request: CallTool) -> ToolReturned:
        what = request.url.rsplit("/", 1)[-1]
        if request.method == "GET" and "/orders/" in request.url:
            facts = {"number": what, "status": "shipped", "carrier": "UPS", "delivery_date": "2025-06-20"}
            return _returned(200, facts)
        if request.method == "GET":
            return _returned(200, {"product": what, "title": "Ridge Two tent", "available": 7, "price": 249.5})
        fields = json.loads(request.body)
        if what == "returns":
            self.returns.append(fields["order_number"])
            return _returned(201, {"number": str(len(self.returns)), "order_number": fields["order_number"]})
        self.tickets.append(fields["problem"])
        return _returned(201, {"number": "7001", "status": "open"})


def _returned(status: int, body: dict[str, Any]) -> ToolReturned:
    return ToolReturned(status, json.dumps(body).encode(), 5.0)
