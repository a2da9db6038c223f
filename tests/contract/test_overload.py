"""Overload on a real broker: what stages say on voice.health closes and opens a gateway's door, in every dialect."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import websockets

from api import admission
from processors.health import Health
from processors.load import EXPIRE_S
from schemas.events import Health as HealthEvent
from schemas.events import HealthKind
from streams.client import Partition
from streams.clock import SystemClock
from streams.consumer import LogReader
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import Settings
from tests.support.gateway import PATIENCE_S, Caller, Gateway, running_gateway
from tests.support.kafka import TestBroker


@pytest.fixture
def settings(kafka: TestBroker) -> Settings:
    # The machine that runs the tests may be busy with anything.
    return kafka.settings(api={"port": 0}, load={"calls_min": 0, "machine_max": 99.0, "reply_ms_max": 3_600_000})


@pytest.fixture
async def stage(settings: Settings) -> AsyncIterator[Callable[..., None]]:
    """Says what the tts stage's worker would; workers are told apart by tests."""
    producer = LogProducer(settings, "test.stage")
    health = Health(producer.publish, "tts", "0", "demo", SystemClock())
    yield health.report
    health.report(HealthKind.LOAD_LOWERED, level=0)
    await producer.flush()
    await producer.close()


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    async with running_gateway(settings) as running:
        yield running


async def until(happens: Callable[[], Awaitable[bool]]) -> None:
    """Waits for it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await happens():
                return
            await asyncio.sleep(0.05)


async def readiness(http: httpx.AsyncClient) -> str:
    """Why no call is taken; empty when calls are taken."""
    answer = await http.get("/readyz")
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) >= 1
    return str(answer.json().get("reason", answer.json()["status"])) if answer.status_code == 503 else ""


async def test_a_stages_level_closes_the_door_and_its_end_opens_it(
    gateway: Gateway, stage: Callable[..., None]
) -> None:
    async with (
        httpx.AsyncClient(base_url=gateway.http) as http,
        websockets.connect(f"{gateway.ws}/v1/calls") as first,
    ):
        running = Caller(first)
        await running.start()
        stage(HealthKind.LOAD_RAISED, level=1, reason="depth 130")

        async def closed() -> bool:
            return await readiness(http) == "level"

        await until(closed)
        answer = await http.get("/readyz")
        assert "depth 130" in answer.json()["detail"]
        async with websockets.connect(f"{gateway.ws}/v1/calls") as second:
            late = Caller(second)
            await late.say(type="start")
            error = await late.heard("error")
            assert (error["code"], error["retry_after_s"] >= 2) == ("overloaded", True)
            assert await late.closed() == 1013
        twiml = await http.post("/v1/twilio/voice", data={"CallSid": "CA1", "From": "+15550001"})
        assert '<Reject reason="busy"/>' in twiml.text
        refused = [
            line for line in (await http.get("/metrics")).text.splitlines() if 'refused_total{reason="level"}' in line
        ]
        assert refused[0].endswith(" 2.0")

        stage(HealthKind.LOAD_LOWERED, level=0)

        async def opened() -> bool:
            return await readiness(http) == ""

        await until(opened)
        async with websockets.connect(f"{gateway.ws}/v1/calls") as third:
            await Caller(third).start()
        assert not running.socket.close_code  # who was talking was never touched


async def test_a_gateway_that_starts_later_knows_and_a_worker_that_is_gone_is_forgotten(
    settings: Settings, stage: Callable[..., None]
) -> None:
    stage(HealthKind.LOAD_MEASURED, level=1, calls=3)
    async with running_gateway(settings) as gateway, httpx.AsyncClient(base_url=gateway.http) as http:

        async def closed() -> bool:
            return await readiness(http) == "level"

        await until(closed)

        async def opened() -> bool:
            return await readiness(http) == ""

        began_s = asyncio.get_running_loop().time()
        await until(opened)
        assert asyncio.get_running_loop().time() - began_s < EXPIRE_S + PATIENCE_S


async def test_a_burst_is_refused_before_any_of_it_can_be_heard(gateway: Gateway) -> None:
    sockets = [await websockets.connect(f"{gateway.ws}/v1/calls") for _ in range(20)]
    answers: list[dict[str, Any]] = []
    for socket in sockets:
        caller = Caller(socket)
        await caller.say(type="start")
        answers.append(await caller.next())
    taken = [answer["type"] == "started" for answer in answers]
    assert taken == sorted(taken, reverse=True)  # once the door is closed it stays so
    assert 2 <= sum(taken) < 20
    assert {answer["code"] for answer in answers if answer["type"] == "error"} == {"overloaded"}
    for socket in sockets:
        await socket.close()


async def test_a_telephone_call_that_was_promised_its_place_is_taken(
    gateway: Gateway,
    stage: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # However long the machine takes to hear of the level.
    monkeypatch.setattr(admission, "RESERVED_S", 3600.0)
    async with (
        httpx.AsyncClient(base_url=gateway.http) as http,
        websockets.connect(f"{gateway.ws}/v1/calls") as other,
    ):
        await Caller(other).start()
        twiml = await http.post("/v1/twilio/voice", data={"CallSid": "CA7", "From": "+15550001"})
        assert "<Connect" in twiml.text
        stage(HealthKind.LOAD_RAISED, level=1, reason="depth 130")

        async def closed() -> bool:
            return await readiness(http) == "level"

        await until(closed)
        # The log is shared: the gateway has found calls of other tests in it.
        before = await telephone_calls(http)
        async with (
            websockets.connect(f"{gateway.ws}/v1/twilio/media") as promised,
            websockets.connect(f"{gateway.ws}/v1/twilio/media") as unknown,
        ):
            await twilio_start(promised, "CA7")
            await twilio_start(unknown, "CA8")
            assert await Caller(unknown).closed() == 1013

            async def taken() -> bool:
                return len(await telephone_calls(http) - before) == 1

            await until(taken)


async def telephone_calls(http: httpx.AsyncClient) -> set[str]:
    """The sessions that came by telephone."""
    rows = (await http.get("/v1/sessions")).json()["sessions"]
    return {row["session_id"] for row in rows if row["channel"] == "twilio"}


async def twilio_start(socket: websockets.ClientConnection, call_sid: str) -> None:
    """What Twilio sends first."""
    caller = Caller(socket)
    await caller.say(event="connected", protocol="Call", version="1.0.0")
    media = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    start = {
        "streamSid": "MZ1",
        "callSid": call_sid,
        "tracks": ["inbound"],
        "mediaFormat": media,
        "customParameters": {},
    }
    await caller.say(event="start", sequenceNumber="1", streamSid="MZ1", start=start)


async def test_the_gateway_says_when_its_replies_are_slow(gateway: Gateway, settings: Settings) -> None:
    reader = LogReader(settings, "test.health")
    await reader.add(
        await reader.end_offsets(Partition(HealthEvent.TOPIC, number) for number in range(settings.kafka.partitions))
    )
    door = gateway.server._router.door
    for _ in range(30):
        door.replied(7200.0)
    async with asyncio.timeout(PATIENCE_S):
        async for record in reader:
            event = codec_for(settings).decode_keyed(record.topic, record.key, record.value)
            if isinstance(event, HealthEvent) and event.component == "api":
                assert (event.kind, event.level) == (HealthKind.LOAD_RAISED, 1)
                assert "replies 7200000 of 3600000 ms" in event.reason
                break
    await reader.close()


async def test_every_refused_call_is_in_the_log(gateway: Gateway, settings: Settings) -> None:
    reader = LogReader(settings, "test.health")
    await reader.add(
        await reader.end_offsets(Partition(HealthEvent.TOPIC, number) for number in range(settings.kafka.partitions))
    )
    refused = 0
    sockets = [await websockets.connect(f"{gateway.ws}/v1/calls") for _ in range(20)]
    for socket in sockets:
        caller = Caller(socket)
        await caller.say(type="start")
        refused += (await caller.next())["type"] == "error"
    assert refused
    async with asyncio.timeout(PATIENCE_S):
        async for record in reader:
            event = codec_for(settings).decode_keyed(record.topic, record.key, record.value)
            if isinstance(event, HealthEvent) and event.kind is HealthKind.CALLS_REFUSED:
                assert (event.component, event.tenant_id, event.reason) == ("api", settings.tenant, "expected")
                refused -= event.refused
                if refused == 0:
                    break
    await reader.close()
    for socket in sockets:
        await socket.close()
