"""Many callers at once from one cheap process: `python -m bench.crowd --url U --sessions N --seconds S` prints JSON.

Each sends a frame of 20 ms all the time, over Twilio's wire, and speaks once in a period; what can be made before
is made before, so that the callers do not become what is measured. Meant for cores that the platform does not use.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import math
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from api.audio import mulaw_to_pcm, pcm_to_mulaw
from bench.caller import AUDIBLE, TwilioWire
from bench.utterances import FRAME_MS, Utterance, load
from streams.settings import REPOSITORY

TURN_EVERY_S = 10.0
_UTTERANCE = REPOSITORY / "infra" / "demo" / "3_returns.wav"
_WORDS = "How long do I have to return an item?"
_SILENCE = base64.b64encode(b"\xff" * 160).decode()
_START_S = 20.0
_LATE_EVERY_FRAMES = 25
_PATIENCE_S = 3.0


@dataclass(slots=True)
class Tally:
    """What all callers of this process saw; `late_ms` is by how much their own frames were late.

    Of its `turns` each has an answer in `answer_ms`, was answered too early, or not at all.
    """

    answer_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    turns: int = 0
    unanswered: int = 0
    early: int = 0
    failed: int = 0


class OneOfMany:
    """A caller that says one thing again and again."""

    def __init__(self, tally: Tally, utterance: Utterance, speaks_from_s: float) -> None:
        """Its first turn begins then, of time.monotonic(); the call may begin before."""
        self._tally = tally
        self._speaks_from_s = speaks_from_s
        self._last_frame = utterance.speech[1]
        encoded = (pcm_to_mulaw(frame.astype("<i2").tobytes()) for frame in utterance.frames)
        self._payloads = [base64.b64encode(data).decode() for data in encoded]
        self._ended_s: float | None = None
        self._speaking = False
        self._counts = False

    async def call(self, url: str, counted_from_s: float, until_s: float) -> None:
        """Holds the call until then; turns before `counted_from_s` are not counted. Times are of time.monotonic()."""
        wire = TwilioWire("shop", f"crowd-{uuid.uuid4()}")
        try:
            async with connect(url + wire.path, compression=None, open_timeout=_START_S, max_queue=None) as socket:
                for message in wire.opening():
                    await socket.send(message)
                listening = asyncio.create_task(self._listen(socket))
                try:
                    await self._speak(socket, counted_from_s, until_s)
                    await socket.send(wire.closing())
                finally:
                    listening.cancel()
        except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake):
            self._tally.failed += 1

    async def _speak(self, socket: ClientConnection, counted_from_s: float, until_s: float) -> None:
        frames = int(TURN_EVERY_S * 1000 / FRAME_MS)
        # Callers do not send in the same instant either.
        frames_before = math.floor((self._speaks_from_s - time.monotonic()) * 1000 / FRAME_MS)
        began_s = self._speaks_from_s - frames_before * FRAME_MS / 1000
        for number in itertools.count():
            due_s = began_s + number * FRAME_MS / 1000
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            now_s = time.monotonic()
            if number % _LATE_EVERY_FRAMES == 0 and now_s >= counted_from_s:
                self._tally.late_ms.append((now_s - due_s) * 1000)
            if now_s > until_s:
                self.hung_up(now_s)
                return
            await self._frame(socket, number, (number - frames_before) % frames, now_s >= counted_from_s)

    async def _frame(self, socket: ClientConnection, number: int, place: int, counts: bool) -> None:
        speaking = place < len(self._payloads)
        if place == 0:
            self._finish_turn()
            self._speaking, self._counts = True, counts
        payload = self._payloads[place] if speaking else _SILENCE
        media = f'{{"track":"inbound","chunk":"{number}","timestamp":"{number * FRAME_MS}","payload":"{payload}"}}'
        await socket.send(f'{{"event":"media","sequenceNumber":"{number}","streamSid":"MZbench","media":{media}}}')
        if place == self._last_frame and self._speaking:
            self._ended_s, self._speaking = time.monotonic(), False
            self._tally.turns += self._counts

    def _finish_turn(self) -> None:
        if self._ended_s is not None and self._counts:
            self._tally.unanswered += 1
        self._ended_s = None

    def hung_up(self, now_s: float) -> None:
        """A turn that was waited for long enough is unanswered, one that has just ended is none."""
        if self._ended_s is None or not self._counts:
            return
        if now_s - self._ended_s > _PATIENCE_S:
            self._tally.unanswered += 1
        else:
            self._tally.turns -= 1

    async def _listen(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for data in socket:
                if self._ended_s is not None and '"media"' in data and _audible(str(data)):
                    if self._counts:
                        self._tally.answer_ms.append((time.monotonic() - self._ended_s) * 1000)
                    self._ended_s = None
                elif self._speaking and self._counts and '"media"' in data and _audible(str(data)):
                    # A turn, too, though nobody waits for an answer to it.
                    self._tally.turns += 1
                    self._tally.early += 1
                    self._speaking = False


def _audible(message: str) -> bool:
    pcm = np.frombuffer(mulaw_to_pcm(base64.b64decode(json.loads(message)["media"]["payload"])), "<i2")
    return bool((np.abs(pcm.astype(np.int32)) > AUDIBLE).any())


async def crowd(url: str, sessions: int, settle_s: float, seconds: float) -> Tally:
    """So many callers for so long, after they have settled."""
    tally = Tally()
    utterance = load(_UTTERANCE, _WORDS, "synthetic", TwilioWire.rate_hz)
    now_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(sessions):
            # Turns are spread evenly over the period, whenever the calls began.
            one = OneOfMany(tally, utterance, now_s + number * TURN_EVERY_S / sessions)
            group.create_task(one.call(url, now_s + settle_s, now_s + settle_s + seconds))
            # A crowd that arrives in one instant is measured elsewhere.
            await asyncio.sleep(min(0.1, settle_s / 2 / sessions))
    return tally


def main() -> None:
    """Prints what was seen, as JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m {Path(__file__).stem}")
    parser.add_argument("--url", required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--settle", type=float, default=8.0)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    print(json.dumps(asdict(asyncio.run(crowd(given.url, given.sessions, given.settle, given.seconds)))))


if __name__ == "__main__":
    main()
