"""A client's connection to `/v1/calls`, which comes back after it broke."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from api.errors import OperatorError
from api.track import SAMPLES_PER_MS
from streams.clock import Clock

BACKOFF_S = 0.05
BACKOFF_S_MAX = 1.0
ATTEMPT_S = 5.0
EVENT_IDS_MAX = 200
# After these close codes there is nothing to come back to: an orderly end, or a refusal.
FINAL_CODES = (1000, 1008)
_FINAL_ERRORS = ("bad_resume_token", "unknown_session", "unauthorized")


class CallError(OperatorError):
    """The call could not be made or held; the message says why and what to try."""


@dataclass(slots=True)
class Inbox:
    """What a client has got of a call, as `resume` tells it: the newest events' ids, and how much speech of a turn.

    What comes again is among the newest EVENT_IDS_MAX: a gateway sends what follows those that it was told.
    """

    turn: int = 0
    samples: int = 0
    _ids: dict[str, None] = field(default_factory=dict)  # in the order in which they came

    def event(self, message: Mapping[str, Any]) -> bool:
        """A text message other than `audio` came; False when it had come before."""
        event_id = message.get("event_id")
        if event_id is None:
            return True
        if event_id in self._ids:
            return False
        self._ids[event_id] = None
        if len(self._ids) > EVENT_IDS_MAX:
            del self._ids[next(iter(self._ids))]
        return True

    def audio(self, message: Mapping[str, Any], samples: int) -> None:
        """A piece of speech came."""
        turn = int(message.get("turn", 0))
        if turn > self.turn:
            self.turn, self.samples = turn, 0
        if turn == self.turn:
            self.samples = int(message.get("sample_index", self.samples)) + samples

    def cleared(self, message: Mapping[str, Any]) -> None:
        """Speech is void from where it was heard to; if it goes on, then from there."""
        if message.get("turn") == self.turn:
            self.samples = min(self.samples, int(message.get("heard_ms", 0)) * SAMPLES_PER_MS)

    def told(self) -> dict[str, Any]:
        """The fields of `resume`."""
        return {"received": {"turn": self.turn, "sample_index": self.samples}, "event_ids": list(self._ids)}


class Link:
    """One WebSocket after the other, to the same call."""

    def __init__(self, url: str, key: str, clock: Clock, grace_s: float) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._clock = clock
        self._grace_s = grace_s
        self._socket: ClientConnection | None = None
        self._connected = asyncio.Event()
        self.reconnects = 0

    async def open(self) -> None:
        """Connects for the first time; raises CallError."""
        try:
            self._socket = await self._connect()
        except InvalidStatus as error:
            status = error.response.status_code
            hint = "; give a key that may hold calls, by --key or TRUNKLINE_API__KEY" if status in (401, 403) else ""
            raise CallError(f"{self._url} refused the call with HTTP status {status}{hint}") from error
        except (InvalidURI, InvalidHandshake) as error:
            raise CallError(f"{self._url} does not speak WebSocket: {error}") from error
        except (OSError, TimeoutError) as error:
            raise CallError(
                f"nothing answers at {self._url} ({error}); start the platform with `trunkline up`"
            ) from error
        self._connected.set()

    async def send(self, data: str | bytes) -> bool:
        """Sends, if there is a connection; whether it arrived is told by the server alone."""
        if self._socket is None or not self._connected.is_set():
            return False
        try:
            await self._socket.send(data)
        except ConnectionClosed:
            return False
        return True

    async def say(self, **message: Any) -> None:
        """Sends a message as soon as there is a connection."""
        await self._connected.wait()
        await self.send(json.dumps(message))

    async def receive(self) -> str | bytes | None:
        """The next message; None when the connection broke, and `resume` may help. Raises CallError where it cannot."""
        assert self._socket is not None
        try:
            return await self._socket.recv()
        except ConnectionClosed as error:
            self._connected.clear()
            if self._socket.close_code in FINAL_CODES:
                raise CallError(
                    f"the connection was closed before the call had ended ({error}); see `trunkline status`"
                ) from error
            return None

    async def resume(self, message: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Connects again, as often as it takes, and says `message`; returns the answer: resumed or ended.

        Raises CallError when nobody has answered within the grace, or the call is refused for good.
        """
        give_up_s = self._clock.monotonic_s() + self._grace_s
        backoff_s = BACKOFF_S
        trouble = "the server does not know the call"
        while self._clock.monotonic_s() < give_up_s:
            try:
                return await self._resumed(message)
            except (ConnectionClosed, InvalidHandshake, OSError, TimeoutError) as error:
                trouble = str(error) or type(error).__name__
            await self._clock.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
        raise CallError(
            f"the connection to {self._url} broke and did not come back within {self._grace_s:g} s ({trouble}); "
            "see `trunkline status`"
        )

    async def close(self) -> None:
        """Closes the last connection in order."""
        if self._socket is not None:
            await self._socket.close()

    async def _connect(self) -> ClientConnection:
        return await connect(
            self._url,
            additional_headers=self._headers,
            compression=None,
            max_size=2**22,
            proxy=None,
            open_timeout=ATTEMPT_S,
            close_timeout=1,
            ping_interval=2,
            ping_timeout=4,
        )

    async def _resumed(self, message: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        socket = await self._connect()
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await socket.send(json.dumps(message()))
                answer: Mapping[str, Any] = json.loads(await socket.recv())
        except BaseException:
            await socket.close()
            raise
        if answer.get("type") == "error":
            await socket.close()
            if answer.get("code") in _FINAL_ERRORS:
                raise CallError(f"the call cannot be resumed: {answer.get('message')} {answer.get('hint')}")
            raise OSError(str(answer.get("message")))
        self._socket = socket
        self.reconnects += 1
        self._connected.set()
        return answer
