"""How soon a caller can speak: WebSocket accepted, session in the log, first frame sent; alone and in a crowd.

Measured at the caller's end, on the native wire, whose `started` says that the log has taken the session's first
event; when the broker appended it is read from the log afterwards.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from bench.report import Distribution, Fact, Findings, Row
from bench.running import Trunkline
from streams.client import Partition
from streams.consumer import BEGINNING, END, read_range
from streams.settings import Settings

BURST = 50
_OPEN_S = 20.0
_APART_S = 0.3
_HOLD_S = 3.0
_FRAME = np.zeros(320, "<i2").tobytes()


@dataclass(frozen=True, slots=True)
class Arrival:
    """Seconds since the epoch; `session_id` is empty where no call came about."""

    began_s: float
    accepted_s: float = 0.0
    ready_s: float = 0.0
    session_id: str = ""


def measure_arrivals(system: Trunkline, alone: int) -> Findings:
    """So many callers one after the other, then `BURST` of them within a second."""
    one_by_one = asyncio.run(_arrive(system.url, alone, _APART_S, 0.0))
    burst = asyncio.run(_arrive(system.url, BURST, 1.0 / BURST, _HOLD_S))
    logged_s = asyncio.run(_logged_s(system.settings))
    found = _findings("session start, one at a time", one_by_one, logged_s)
    found.add(_findings(f"session start, {BURST} within a second", burst, logged_s))
    return found


async def _arrive(url: str, count: int, apart_s: float, hold_s: float) -> list[Arrival]:
    async def one(number: int) -> Arrival:
        await asyncio.sleep(number * apart_s)
        return await _start(url, hold_s)

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def _start(url: str, hold_s: float) -> Arrival:
    began_s = time.time()
    try:
        async with connect(url + "/v1/calls", compression=None, open_timeout=_OPEN_S) as socket:
            accepted_s = time.time()
            start = {"type": "start", "agent": "shop", "caller": f"arrival-{uuid.uuid4()}"}
            await socket.send(json.dumps(start))
            session_id = await asyncio.wait_for(_started(socket), _OPEN_S)
            await socket.send(_FRAME)
            ready_s = time.time()
            await asyncio.sleep(hold_s)
            await socket.send(json.dumps({"type": "hang_up"}))
    except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake):
        return Arrival(began_s)
    return Arrival(began_s, accepted_s, ready_s, session_id)


async def _started(socket: ClientConnection) -> str:
    """The session's id, as soon as it is said; empty where the call is refused."""
    async for data in socket:
        if isinstance(data, str):
            message = json.loads(data)
            if message.get("type") == "started":
                return str(message["session_id"])
            if message.get("type") == "error":
                break
    return ""


async def _logged_s(settings: Settings) -> dict[str, float]:
    """When the broker appended each session's first event, to the millisecond."""
    ranges = {Partition("voice.sessions", number): (BEGINNING, END) for number in range(settings.kafka.partitions)}
    found: dict[str, float] = {}
    async for record in read_range(settings, ranges, "bench.arrivals"):
        found.setdefault((record.key or b"").decode(), record.timestamp_ms / 1000)
    return found


def _findings(group: str, arrivals: Sequence[Arrival], logged_s: dict[str, float]) -> Findings:
    came = [one for one in arrivals if one.session_id]
    steps = {
        "WebSocket accepted": [one.accepted_s - one.began_s for one in came],
        "session in the log": [logged_s[one.session_id] - one.began_s for one in came if one.session_id in logged_s],
        "first frame can be sent": [one.ready_s - one.began_s for one in came],
    }
    found = Findings(
        [Row(group, name, Distribution.of(1000 * took for took in times)) for name, times in steps.items()]
    )
    found.facts.append(Fact(group, "sessions", len(arrivals)))
    found.facts.append(Fact(group, "refused or failed", len(arrivals) - len(came)))
    found.facts.append(Fact(group, "not in the log", sum(one.session_id not in logged_s for one in came)))
    return found
