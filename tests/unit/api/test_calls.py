"""A call of the gateway, without its socket and its log."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import msgspec

from api.calls import new_call
from api.dialects.dialect import Start
from api.dialects.native import NativeDialect
from processors.stage import caused
from schemas.event import Event
from schemas.events import Response, ResponseKind
from streams.clock import SystemClock
from streams.settings import Settings


class Gateway:
    """What a call needs of its gateway: a log that acknowledges when it is told to, a line that remembers."""

    def __init__(self) -> None:
        self.published: list[Event] = []
        self.acknowledged: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sent: list[dict[str, Any]] = []
        self.router = MagicMock(
            clock=SystemClock(),
            settings=Settings(),
            agents={"shop": SimpleNamespace(languages=("en",))},
            producer=SimpleNamespace(publish=self.publish),
        )
        self.router.mint.return_value = "c1a5a8e2-b45f-4d0f-a99c-537e67854882"
        self.router.resume_token.return_value = "token"
        self.line = MagicMock(send=self.send, stuck=False)

    def publish(self, event: Event) -> asyncio.Future[Any]:
        self.published.append(event)
        return self.acknowledged

    def send(self, frames: Iterable[str], **rules: Any) -> None:
        self.sent += [msgspec.json.decode(frame) for frame in frames]


async def test_started_comes_first_even_when_the_greeting_is_faster_than_the_logs_acknowledgement() -> None:
    gateway = Gateway()
    call = new_call(gateway.router, NativeDialect(), gateway.line, Start(), "shop", lambda: None)
    beginning = asyncio.create_task(call.begin())
    await asyncio.sleep(0)
    (started,) = gateway.published
    greeting = caused(started, Response, "greeting", 1, kind=ResponseKind.SENTENCE, text="Hello.")
    call.deliver(greeting)
    call.deliver(greeting)
    gateway.acknowledged.set_result(None)
    await beginning
    call.deliver(caused(started, Response, "more", 2, kind=ResponseKind.SENTENCE, sentence=1, text="How can I help?"))
    assert [(message["type"], message.get("text")) for message in gateway.sent] == [
        ("started", None),
        ("sentence", "Hello."),
        ("sentence", "How can I help?"),
    ]
    call.end("hung_up")
