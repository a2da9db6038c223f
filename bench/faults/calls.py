"""A real call in real time, and the moment in it at which a fault strikes."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from api.client import CallError, CallEvent, CallResult, Patience, TurnSummary, place_call
from bench.faults.plan import Moment, Phase
from bench.faults.reference import Reference
from bench.faults.speech import Conversation

_LONGEST_S = 180.0
# As long as it may take to start everything again, on a machine that has other things to do.
_PATIENCE = Patience(resume_s=60.0, final_s=60.0, reply_s=60.0)
# An idea of a reply before there is a reference.
_THINKING_MS = 600.0
_REPLY_MS = 2500.0


@dataclass(slots=True)
class Trigger:
    """Watches a call and says when its moment has come: `event` returns the milliseconds to wait from then on, once."""

    moment: Moment
    speech_ms: float
    thinking_ms: float
    reply_ms: float
    _turns_over: int = field(default=0, init=False)
    _set: bool = field(default=False, init=False)

    @classmethod
    def of(cls, moment: Moment, conversation: Conversation, reference: Reference | None) -> "Trigger":
        """For a call of that conversation."""
        speech_ms = conversation.speech_ms(moment.turn)
        if reference is None:
            return cls(moment, speech_ms, _THINKING_MS, _REPLY_MS)
        usual = reference.turns[moment.turn]
        return cls(moment, speech_ms, usual.voice_to_voice_ms, usual.reply_ms)

    def event(self, event: CallEvent) -> float | None:
        """An event of the call."""
        if self._set or self._turns_over != self.moment.turn:
            return None
        part = self.moment.part
        if self.moment.phase is Phase.AGENT:
            awaited, delay_ms = event.type == "audio" and event.message.get("turn", 0) > 0, part * self.reply_ms
        elif self.moment.phase is Phase.CALLER:
            awaited, delay_ms = event.type == "speech_started", part * self.speech_ms
        else:
            awaited, delay_ms = event.type == "speech_started", self.speech_ms + part * self.thinking_ms
        if not awaited:
            return None
        self._set = True
        return delay_ms

    def turn_over(self) -> None:
        """The reply to a turn has been heard."""
        self._turns_over += 1


@dataclass(frozen=True, slots=True)
class Played:
    """A call that was held, or what became of it; `struck_ms` is when each fault began whose moment came."""

    result: CallResult | None
    error: str
    struck_ms: tuple[float, ...]


async def play(
    url: str,
    conversation: Conversation,
    agent: str,
    caller: str,
    strikes: Sequence[tuple[Trigger, Callable[[], None]]] = (),
    started: Callable[[str], None] = lambda session_id: None,
) -> Played:
    """Holds the call; each of `strikes` is called at its trigger's moment, `started` with the session's id."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    struck: list[float] = []
    timers: list[asyncio.TimerHandle] = []

    def fire(at_ms: float, strike: Callable[[], None]) -> None:
        struck.append(at_ms)
        strike()

    def on_event(event: CallEvent) -> None:
        if event.type == "started":
            started(str(event.message.get("session_id", "")))
        for trigger, strike in strikes:
            if (delay_ms := trigger.event(event)) is not None:
                timers.append(loop.call_later(delay_ms / 1000, fire, round(event.at_ms + delay_ms, 1), strike))

    def on_turn(_: TurnSummary) -> None:
        for trigger, _strike in strikes:
            trigger.turn_over()

    result, error = None, ""
    try:
        async with asyncio.timeout(_LONGEST_S):
            result = await place_call(
                url,
                conversation.turns,
                agent=agent,
                caller=caller,
                on_event=on_event,
                on_turn=on_turn,
                patience=_PATIENCE,
            )
    except CallError as failed:
        error = str(failed)
    except TimeoutError:
        error = f"the call was not over after {loop.time() - began_s:.0f} s"
    for timer in timers:
        timer.cancel()
    return Played(result, error, tuple(struck))
