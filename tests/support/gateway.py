"""The real gateway on a real broker, in this process, and a peer that plays the stages by writing to the log."""

import asyncio
import contextlib
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import websockets

from api.server import GatewayServer, make_server
from schemas.event import Event
from schemas.events import (
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from streams.client import Partition
from streams.consumer import END, LogReader, Record
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import Settings

PATIENCE_S = 20.0


class Gateway:
    """A running gateway."""

    def __init__(self, server: GatewayServer, port: int) -> None:
        self.server = server
        self.http = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def running_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """The gateway of the settings on a free port of loopback."""
    server = make_server(settings)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        if serving.done():
            serving.result()
        await asyncio.sleep(0.01)
    try:
        yield Gateway(server, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await serving


class Peer:
    """Writes what stages would write, reads what the gateway wrote: a real client of the log."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = LogProducer(settings, "test.peer")
        self._reader = LogReader(settings, "test.peer")
        self._codec = codec_for(settings)
        self._seqs = itertools.count()
        self.records: list[tuple[Record, Event]] = []
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads what comes from now on."""
        topics = ("voice.sessions", "voice.audio.in", "voice.control")
        numbers = range(self._settings.kafka.partitions)
        await self._reader.add({Partition(topic, number): END for topic in topics for number in numbers})
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Stops."""
        if self._reading is not None:
            self._reading.cancel()
        await self._reader.close()
        await self._producer.close()

    async def _read(self) -> None:
        async for record in self._reader:
            self.records.append((record, self._codec.decode_keyed(record.topic, record.key, record.value)))

    async def seen(self, wanted: Callable[[Any], bool]) -> Any:
        """Waits for the first event of the gateway that fits."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for _, event in self.records:
                    if wanted(event):
                        return event
                await asyncio.sleep(0.01)

    def of(self, session_id: str, event_class: type[Event]) -> list[Any]:
        """The gateway's events of that class so far, in order."""
        return [e for _, e in self.records if isinstance(e, event_class) and e.session_id == session_id]

    async def publish(self, event: Event, times: int = 1) -> None:
        """Writes the event, perhaps more than once, and waits until the log has it."""
        for _ in range(times):
            await self._producer.publish(event)

    async def publish_raw(self, topic: str, session_id: str, value: bytes) -> None:
        """Writes bytes under the session's key."""
        await self._producer.publish_raw(topic, session_id.encode(), value)

    def transcript(
        self, session_id: str, kind: TranscriptKind, utterance: int, turn: int, text: str = ""
    ) -> Transcript:
        """A transcript as the stt stage writes it."""
        return Transcript(**self._envelope(session_id, turn), kind=kind, utterance=utterance, text=text, confidence=0.9)

    def audio(self, session_id: str, turn: int, ms: int, **fields: Any) -> SpeechChunk:
        """A piece of speech as the tts stage writes it."""
        fields = {"kind": SpeechChunkKind.AUDIO, "pcm": bytes([turn % 250 + 1, 0]) * (16 * ms), **fields}
        return SpeechChunk(**self._envelope(session_id, turn), **fields)

    def end_of_turn(self, session_id: str, turn: int) -> SpeechChunk:
        """The end of the turn's speech."""
        return SpeechChunk(**self._envelope(session_id, turn), kind=SpeechChunkKind.END_OF_TURN)

    def response(self, session_id: str, kind: ResponseKind, turn: int, **fields: Any) -> Response:
        """A response as the llm stage writes it."""
        return Response(**self._envelope(session_id, turn), kind=kind, **fields)

    def _envelope(self, session_id: str, turn: int) -> dict[str, Any]:
        return {
            "event_id": str(uuid.uuid4()),
            "session_id": session_id,
            "tenant_id": "demo",
            "agent_id": "shop",
            "turn": turn,
            "seq": next(self._seqs),
            "occurred_at": 1_800_000_000_000_000,
        }


class Caller:
    """A client of /v1/calls."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self.socket = socket
        self.session_id = ""

    async def start(self, **fields: Any) -> dict[str, Any]:
        """Starts the call and returns the answer."""
        await self.say(type="start", **fields)
        answer: dict[str, Any] = await self.heard("started")
        self.session_id = answer["session_id"]
        return answer

    async def say(self, **message: Any) -> None:
        """Sends a text message."""
        await self.socket.send(json.dumps(message))

    async def next(self) -> Any:
        """The next message: a dict or bytes."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self.socket.recv()
        return json.loads(message) if isinstance(message, str) else message

    async def heard(self, kind: str) -> Any:
        """The next text message of that type; others are passed over."""
        while True:
            message = await self.next()
            if isinstance(message, dict) and message["type"] == kind:
                return message

    async def closed(self) -> int:
        """Reads to the end and returns the close code."""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await self.socket.recv()
        assert self.socket.close_code is not None
        return self.socket.close_code
