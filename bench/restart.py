"""How fast each process is back after kill -9, and how long work waits while one is restarted in order.

Work is a record that nobody can read: the stage (or sink) that guards the topic writes one dead letter for it. So the
time until that letter is in the log is the time until the first record after the kill was done.
"""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from api.errors import OperatorError
from api.supervisor import ask_restart, read_state
from bench.report import Distribution, Findings, Row
from processors.pipeline import STAGES
from schemas.events import DeadLetter, SpeechChunk
from streams.consumer import END, LogReader
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import KafkaSettings, Settings

COMPONENTS = ("stt", "intent", "llm", "tts", "clickhouse", "api", "stt.engine", "tts.engine")
# What a process answers for, where that is a topic's unreadable records.
_GUARDED = {name: stage.guards[0].TOPIC for name, stage in STAGES.items()} | {"clickhouse": SpeechChunk.TOPIC}
_RESTARTED = ("stt", "llm", "tts", "api")
_APART_S = 0.05
_PATIENCE_S = 60.0
_LOOK_S = 0.005
# As long as a caller speaks: the platform is disturbed in its ordinary state, not while it still recovers.
_BETWEEN_S = 6.0


def measure_restarts(data_dir: Path, times: int) -> Findings:
    """Kills each component of the platform that runs on the data directory that many times."""
    return asyncio.run(_measure(Settings(data_dir=data_dir), times))


async def _measure(settings: Settings, times: int) -> Findings:
    found = Findings()
    state = _state(settings)
    servers = state["environment"]["TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS"]
    on_cluster = settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=servers)})
    async with Probe(on_cluster) as probe:
        for component in COMPONENTS:
            ready_ms, working_ms = [], []
            for _ in range(times):
                await asyncio.sleep(_BETWEEN_S)
                await _seconds_until(lambda: _has_all_spares(settings), time.monotonic())
                back_s, worked_s = await _kill(settings, component, probe)
                ready_ms.append(1000 * back_s)
                working_ms.append(1000 * worked_s)
            found.rows.append(Row(component, "killed until ready", Distribution.of(ready_ms)))
            found.rows.append(Row(component, "killed until its next work is done", Distribution.of(working_ms)))
            if component in _RESTARTED:
                waits = [1000 * await _restart(settings, component, probe) for _ in range(times)]
                found.rows.append(Row(component, "longest wait for work during a restart", Distribution.of(waits)))
    return found


async def _restart(settings: Settings, component: str, probe: "Probe") -> float:
    """Seconds that the unluckiest piece of work took while the component was restarted."""
    await _seconds_until(lambda: _has_all_spares(settings), time.monotonic())
    before = _entry(_state(settings), component)
    ask_restart(settings, [component])

    async def work() -> float:
        began_s = time.monotonic()
        return await _work(settings, component, probe, began_s, asyncio.get_running_loop().create_future())

    works = []
    while (now := _entry(_state(settings), component))["restarts"] == before["restarts"] or now["state"] != "ready":
        works.append(asyncio.create_task(work()))
        await asyncio.sleep(_APART_S)
    return max(await asyncio.gather(*works))


async def _kill(settings: Settings, component: str, probe: "Probe") -> tuple[float, float]:
    """Seconds until the component is ready again, and until it did its next work."""
    entry = _entry(_state(settings), component)
    os.kill(entry["pid"], signal.SIGKILL)
    killed_s = time.monotonic()

    def is_back() -> bool:
        now = _entry(_state(settings), component)
        return bool(now["state"] == "ready" and now["pid"] != entry["pid"])

    ready = asyncio.create_task(_seconds_until(is_back, killed_s))
    working = asyncio.create_task(_work(settings, component, probe, killed_s, ready))
    return await ready, await working


async def _work(
    settings: Settings, component: str, probe: "Probe", killed_s: float, ready: asyncio.Future[float]
) -> float:
    if component in _GUARDED:
        return await probe.letter_for(_GUARDED[component]) - killed_s
    if component == "api":
        address = urlsplit(_state(settings)["url"])
        await _answered(str(address.hostname), int(address.port or 80))
        return time.monotonic() - killed_s
    return await asyncio.shield(ready)


async def _seconds_until(condition: Callable[[], bool], since_s: float) -> float:
    async with asyncio.timeout(_PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what changes is another process
            await asyncio.sleep(_LOOK_S)
    return time.monotonic() - since_s


async def _answered(host: str, port: int) -> None:
    """Returns when the gateway has answered a request; asks again at once while it refuses."""
    request = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(request)
                line = await reader.readline()
                writer.close()
                if b" 200 " in line:
                    return
            except OSError:
                pass
            await asyncio.sleep(_LOOK_S)


class Probe:
    """Writes records that are no events, and hears when their dead letters are in the log."""

    def __init__(self, settings: Settings) -> None:
        codec = codec_for(settings)
        self._codec = codec
        self._producer = LogProducer(settings, "trunkline.bench", codec)
        self._reader = LogReader(settings, "trunkline.bench")
        self._waiting: dict[bytes, asyncio.Future[float]] = {}
        self._task: asyncio.Task[None] | None = None

    async def letter_for(self, topic: str) -> float:
        """Writes a record that nobody can read; returns the monotonic time at which its dead letter was there."""
        key = str(uuid.uuid4()).encode()
        arrived: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[key] = arrived
        await self._producer.publish_raw(topic, key, b"no event")
        async with asyncio.timeout(_PATIENCE_S):
            return await arrived

    async def _hear(self) -> None:
        async for batch in self._reader.batches():
            for record in batch:
                letter = self._codec.decode(record.topic, record.value)
                key = letter.record_key if isinstance(letter, DeadLetter) else None
                waiting = self._waiting.get(key) if key else None
                if waiting is not None and not waiting.done():
                    waiting.set_result(time.monotonic())

    async def __aenter__(self) -> "Probe":
        partitions = await self._reader.partitions(DeadLetter.TOPIC)
        await self._reader.add(dict.fromkeys(partitions, END))
        self._task = asyncio.create_task(self._hear())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.close()
        await self._producer.close()


def _has_all_spares(settings: Settings) -> bool:
    """Whether everything stands by that the platform keeps standing by: the first minute after `up` is not measured."""
    rows = _state(settings)["components"]
    engines = [engine for row in rows for engine in row.get("engines", ())]
    spares = [row["spare"]["prepared"] for row in rows if "spare" in row]
    return all(spares) and all(engine["state"] == "ready" for engine in engines)


def _state(settings: Settings) -> dict[str, Any]:
    state = read_state(settings)
    if state is None:
        raise OperatorError("the platform stopped while it was measured")
    return dict(state)


def _entry(state: dict[str, Any], component: str) -> dict[str, Any]:
    name, _, part = component.partition(".")
    row = next(row for row in state["components"] if row["name"] == name)
    return dict(row["engine"] if part else row)
