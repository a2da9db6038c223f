"""A media socket: takes its messages in order, and has a call once one was started or resumed on it."""

import asyncio
from collections.abc import Callable, Iterable

from starlette.websockets import WebSocket

from api.admission import Refusal
from api.beat import MORE, ON_BEAT
from api.calls import Call, new_call
from api.dialects.dialect import (
    Audio,
    Bad,
    Command,
    Dialect,
    Dtmf,
    HangUp,
    Message,
    Playout,
    Resume,
    Start,
    bad_token,
    resumed_elsewhere,
)
from api.line import Line
from api.resume import take_up
from api.resume_tokens import ResumeToken
from api.session_router import SessionRouter, Summary
from api.visit import Visit
from api.waiting import GOING_AWAY, Arrival
from processors.access.limits import Bucket
from schemas.events import RefusalKind
from streams.client import LogError

START_TIMEOUT_S = 30.0
FLOODS_MAX = 2000
# Closed on purpose; 1005 is a close without a code, as browsers send it by default.
CLOSED_BY_CALLER = (1000, 1005)
# Pieces of audio that a call takes at once: more than a beat has, and few beside what a fast client may be ahead.
TOGETHER_MAX = 25
_CROWDED_S = 0.01

Authorise = Callable[[Start], bool]


class Connection:
    """A socket and, once it has started one, its call."""

    def __init__(
        self,
        websocket: WebSocket,
        dialect: Dialect,
        router: SessionRouter,
        visit: Visit,
        authorise: Authorise | None = None,
    ) -> None:
        """`visit` is that of the socket; `authorise` looks at the proof in its first message, if one is due."""
        self._websocket = websocket
        self._dialect = dialect
        self._router = router
        self._visit = visit
        self._authorise = authorise
        self._line = Line(websocket, router.metrics)
        self._call: Call | None = None
        self._arrival: Arrival | None = None
        self._over = asyncio.Event()
        self._close = (1000, "")
        now_s = router.clock.monotonic_s()
        self._texts = Bucket(dialect.text_rate_per_s, 2 * dialect.text_rate_per_s, now_s)
        self._errors = Bucket(5, 20, now_s)
        self._floods = 0

    async def run(self) -> None:
        """Serves the socket until the call is over, and closes it."""
        offered = self._websocket.scope.get("subprotocols", [])
        await self._websocket.accept(subprotocol="trunkline" if "trunkline" in offered else None)
        self._line.start()
        try:
            self._router.connected(1)
            if crowded := self._router.door.crowded():
                self._refuse(crowded)
            else:
                await self._serve()
        except Exception:
            self._close = (1011, "failed")
            raise
        finally:
            await self._finish()
            self._router.connected(-1)

    async def _serve(self) -> None:
        receiving = asyncio.create_task(self._receive())
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({receiving, over}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if self._call is None and not receiving.done() and not over.done():
                self._error(Bad("start_timeout", "No call was started.", f"Send start within {START_TIMEOUT_S:.0f} s."))
                self._close = (1008, "start_timeout")
                return
            await asyncio.wait({receiving, over}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                receiving.result()
        finally:
            receiving.cancel()
            over.cancel()

    async def _finish(self) -> None:
        try:
            if self._call is not None:
                self._call.end("failed", 1011)
                self._close = (self._call.close_code, self._call.close_reason)
            await self._line.close(*self._close)
        finally:
            for one in (self._call, self._arrival):
                if one is not None:
                    one.finished()

    def _refuse(self, refusal: Refusal) -> None:
        self._router.door.refused(refusal)
        self._error(Bad(refusal.code, refusal.message, refusal.hint, refusal.retry_after_s))
        self._close = (1013, refusal.code)

    async def _receive(self) -> None:
        """Handles messages in order; returns when the socket is closed or the caller hangs up."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                # The server tells a socket that broke by the same code as one closed without any, but gives no reason.
                self._disconnected(message.get("code", 1006) if "reason" in message else 1006)
                return
            text = message.get("text")
            await self._take((message["bytes"] if text is None else text, *message.get(MORE, ())))
            if self._over.is_set():
                return

    async def _take(self, messages: Iterable[Message]) -> None:
        """What was read together, in order; of audio that comes without a break the call is told at once."""
        pieces: list[bytes] = []
        for message in messages:
            for command in self._commands(message):
                if isinstance(command, Audio) and self._call is not None:
                    pieces.append(command.data)
                    if len(pieces) == TOGETHER_MAX:
                        await self._hear(pieces)
                else:
                    await self._hear(pieces)
                    if not self._over.is_set():
                        await self._handle(command)
                if self._over.is_set():
                    return
        await self._hear(pieces)

    async def _hear(self, pieces: list[bytes]) -> None:
        """Gives the call what has come, and empties the list."""
        call = self._call
        if call is None or not pieces:
            return
        ahead_s = call.audio(*pieces)
        pieces.clear()
        while call.crowded and not call.ended.is_set():
            await self._router.clock.sleep(_CROWDED_S)
        if ahead_s:
            # A client that sends faster than people speak is slowed down to their pace by its own socket.
            self._router.metrics.paused_seconds.inc(ahead_s)
            await self._router.clock.sleep(ahead_s)

    def _disconnected(self, code: int) -> None:
        if self._call is None:
            return
        if code in CLOSED_BY_CALLER:
            self._call.end("hung_up")
        else:
            self._call.lost()

    def _commands(self, message: Message) -> Iterable[Command]:
        if isinstance(message, bytes):
            return self._dialect.receive_bytes(message)
        if self._texts.take(self._router.clock.monotonic_s()):
            return self._dialect.receive_text(message)
        self._floods += 1
        self._router.metrics.dropped.labels("text", "rate_limit").inc()
        if self._floods > FLOODS_MAX:
            self._stop(1008, "rate_limited")
        rate = self._dialect.text_rate_per_s
        return (Bad("rate_limited", "Too many text messages; this one was dropped.", f"Send at most {rate} a second."),)

    async def _handle(self, command: Command) -> None:
        if isinstance(command, Bad):
            self._error(command)
        elif isinstance(command, Start):
            await self._started(command)
        elif isinstance(command, Resume):
            await self._resumed(command)
        elif self._call is None:
            self._not_started(command)
        elif isinstance(command, Playout):
            self._call.playout(command)
        elif isinstance(command, Dtmf):
            self._call.dtmf(command.digit, command.press_id)
        else:
            self._call.end("hung_up")

    def _not_started(self, command: Command) -> None:
        if isinstance(command, HangUp):
            self._stop(1000, "hung_up")
        else:
            self._error(Bad("not_started", "No call has been started.", "Send a start message first."))

    async def _started(self, start: Start) -> None:
        if self._again():
            return
        agents = self._router.agents_of(self._visit.principal)
        agent_id = start.agent or next(iter(agents), "")
        if agent_id not in agents:
            if agent_id in self._router.agents:
                self._refused(RefusalKind.FOREIGN, "tenant")
            self._error(Bad("unknown_agent", "There is no such agent.", f"agent is one of {', '.join(agents)}."))
            return
        if self._authorise is not None and not self._authorise(start):
            self._refused(RefusalKind.UNAUTHENTICATED, "bad_call_token")
            self._error(Bad("unauthorized", "The call is not authorised.", "Start it through /v1/twilio/voice."))
            self._stop(1008, "unauthorized")
            return
        session_id = ""
        if start.session_token:
            token = self._token(start.session_token)
            if token is None or await self._announced(start, token):
                return
            session_id = token.session_id
        if refusal := self._router.door.refusal(start.call_id):
            self._refuse(refusal)
            self._over.set()
            return
        self._router.door.taken()
        tenant = self._router.tenant_of(self._visit.principal, agent_id)
        self._call = new_call(
            self._router, self._dialect, self._line, start, tenant, agent_id, self._over.set, session_id=session_id
        )
        try:
            await self._call.begin()
            self._join_beat()
        except LogError:
            self._unavailable()

    def _join_beat(self) -> None:
        """From now on audio comes, which can wait for that of others."""
        join = self._websocket.scope.get(ON_BEAT)
        if join is not None and self._call is not None:
            join(self._call.may_wait)

    async def _announced(self, start: Start, token: ResumeToken) -> bool:
        """Whether a session that was announced had been begun, and goes on here or is over."""
        if not start.again and self._router.find(token.session_id) is None:
            return False
        begun = await self._taken_up(Resume(start.session_token), token)
        if self._call is not None:
            self._call.summary.call_id = start.call_id
        return begun

    async def _resumed(self, resume: Resume) -> None:
        if self._again():
            return
        token = self._token(resume.token)
        if token is not None and not await self._taken_up(resume, token):
            self._error(Bad("unknown_session", "The session is not in the log.", "Start a new call."))
            self._stop(1008, "unknown_session")

    def _again(self) -> bool:
        if self._call is not None:
            self._error(Bad("already_started", "The call has been started.", "Open another socket for another call."))
        return self._call is not None

    def _token(self, text: str) -> ResumeToken | None:
        token = self._router.tokens.read(text, self._router.clock.now_us())
        if token is not None and self._visit.principal.sees(token.tenant):
            return token
        if token is None:
            self._refused(RefusalKind.UNAUTHENTICATED, "bad_resume_token")
        else:
            self._refused(RefusalKind.FOREIGN, "tenant", token.session_id)
        self._error(bad_token())
        self._stop(1008, "bad_resume_token")
        return None

    async def _taken_up(self, resume: Resume, token: ResumeToken) -> bool:
        """Resumes the call, or tells how it ended; False where it has never begun."""
        summary = Summary(token.session_id, token.tenant, "", self._dialect.channel, token.since_us)
        arrival = self._arrival = Arrival(summary, self._gone)
        try:
            outcome = await take_up(self._router, self._dialect, self._line, resume, arrival, self._stop)
        except LogError:
            if not arrival.gone:
                self._unavailable()
            return True
        if isinstance(outcome, Call):
            self._call = outcome
            self._join_beat()
        elif outcome is not None:
            self._line.send(self._dialect.ended(outcome))
            self._stop(1000, outcome)
        return outcome is not None or arrival.gone

    def _gone(self, why: str) -> None:
        """What was to be resumed here is not."""
        if why == GOING_AWAY:
            self._line.send(self._dialect.going_away())
            self._stop(1012, why)
        else:
            self._error(resumed_elsewhere())
            self._stop(1008, why)

    def _unavailable(self) -> None:
        self._error(Bad("log_unavailable", "The call could not be recorded.", "Try again in a few seconds."))
        self._stop(1013, "log_unavailable")

    def _refused(self, kind: RefusalKind, reason: str, session_id: str = "") -> None:
        self._router.refusals.tell(kind, reason, self._visit.principal, self._visit.action, session_id)

    def _stop(self, code: int, reason: str) -> None:
        self._close = (code, reason)
        self._over.set()

    def _error(self, bad: Bad) -> None:
        self._router.metrics.errors.labels(self._dialect.channel, bad.code).inc()
        if self._errors.take(self._router.clock.monotonic_s()):
            self._line.send(self._dialect.error(bad.code, bad.message, bad.hint, bad.retry_after_s))
