"""A call as the CRM sees it: a fold of its events, and what it came to. Pure."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from processors.json_text import json_in
from processors.llm.caller import Caller
from processors.llm.memory import Memory, recognise
from processors.outcomes import IN_VAIN
from schemas.event import Event
from schemas.events import Intent, IntentKind, Response, ResponseKind, Session, SessionKind

TURNS_MAX = 500
AHEAD_MAX = 8
TEXT_CHARS_MAX = 400
QUOTES_MAX = 4
QUOTE_CHARS_MAX = 160
_PSEUDONYM_CHARS = 32

_CLEAR = frozenset({"clarification", "apology"})


@dataclass(slots=True)
class Exchange:
    """A turn: what the caller said, was taken to want, and was answered."""

    text: str = field(default="", repr=False)
    intent: str = ""
    sentiment: float = 0.0
    reply: str = field(default="", repr=False)
    source: str = ""
    tool: str = ""
    outcome: str = ""
    is_over: bool = False

    @property
    def is_solved(self) -> bool:
        """Whether the caller got what was asked for."""
        return bool(self.reply) and self.outcome not in IN_VAIN and self.source not in _CLEAR


@dataclass(frozen=True, slots=True)
class End:
    """A turn, or the call, is over: what workflows look at, and the event that says so."""

    event: Event
    facts: Mapping[str, Any] = field(repr=False)


@dataclass(slots=True)
class Call:
    """What is known of a call. Its events may come twice: a turn, and the call, ends once.

    `key` makes customers' pseudonyms: without it a telephone number would soon be guessed from its hash.
    """

    session_id: str
    key: bytes = field(repr=False)
    started: Session | None = None
    ended: Session | None = None
    record: dict[str, str] = field(default_factory=dict, repr=False)
    turns: dict[int, Exchange] = field(default_factory=dict)
    _called: dict[str, Response] = field(default_factory=dict, repr=False)
    _tools: dict[str, Response] = field(default_factory=dict, repr=False)

    def take(self, event: Event) -> End | None:
        """Takes the event in; the end of a turn where it is one."""
        match event:
            case Session():
                self._session(event)
            case Intent() if event.committed and event.kind is IntentKind.DETECTED:
                turn = self._turn(event.turn)
                turn.text, turn.intent, turn.sentiment = event.text[:TEXT_CHARS_MAX], event.intent, event.sentiment
            case Response():
                return self._response(event)
        return None

    def score(self) -> int:
        """How the call went, 0 to 100: the caller's mood, and what became of what was asked."""
        heard = self.asked
        mood = fmean(turn.sentiment for turn in heard) if heard else 0.0
        effect = {"resolved": 15, "unresolved": -15, "escalated": -10, "failed": -25}.get(self.disposition, 0)
        return max(0, min(100, round(55 + 40 * mood + effect)))

    @property
    def asked(self) -> list[Exchange]:
        """The turns in which the caller said something that wanted an answer."""
        return [turn for number, turn in sorted(self.turns.items()) if number and turn.text and _wants(turn)]

    @property
    def disposition(self) -> str:
        """What it came to: resolved, unresolved, escalated, abandoned, failed."""
        reason = self.ended.reason if self.ended is not None else ""
        asked = self.asked
        if reason == "failed":
            return "failed"
        if reason == "transferred" or any(turn.outcome == "escalated" for turn in asked):
            return "escalated"
        if not asked:
            return "abandoned"
        last = next((turn for turn in reversed(asked) if turn.tool or not turn.is_solved), asked[-1])
        return "resolved" if last.is_solved else "unresolved"

    @property
    def sentiment(self) -> float:
        """Mean of the caller's turns."""
        asked = self.asked
        return round(fmean(turn.sentiment for turn in asked), 3) if asked else 0.0

    @property
    def intents(self) -> tuple[str, ...]:
        """What was wanted, in the order of the first time."""
        return tuple(dict.fromkeys(turn.intent for turn in self.asked if turn.intent not in ("", "none")))

    @property
    def customer(self) -> str:
        """Stands for the caller in this tenant; empty where nobody knows who called."""
        if self.started is None or not self.started.caller:
            return ""
        who = f"{self.started.tenant_id}/{self.started.caller}"
        return hmac.digest(self.key, who.encode(), "sha256").hex()[:_PSEUDONYM_CHARS]

    def summary(self) -> str:
        """The caller's own words for what mattered most, what came of each, and how it ended."""
        asked = list(self.asked)
        # What led to another system tells most, then what was said at length.
        chosen = sorted(asked, key=lambda turn: (bool(turn.tool), len(turn.text)), reverse=True)[:QUOTES_MAX]
        quotes = [f'"{_clip(turn.text)}"{_label(turn)}' for turn in asked if turn in chosen]
        said = f"Asked: {' '.join(quotes)}." if quotes else "The caller said nothing."
        return f"{said} Came to: {self.disposition}. Ended: {self.ended.reason if self.ended else ''}."

    def transcript(self) -> str:
        """Who said what, a line each."""
        lines = []
        for _, turn in sorted(self.turns.items()):
            lines += [f"Caller: {turn.text}"] if turn.text else []
            lines += [f"Agent: {turn.reply}"] if turn.reply else []
        return "\n".join(lines)

    def facts(self, event: Event) -> dict[str, Any]:
        """What workflows of turns and of calls may use."""
        started = self.started.occurred_at if self.started is not None else event.occurred_at
        caller = self.started.caller if self.started is not None else ""
        return {
            "agent": event.agent_id,
            "caller": Caller(caller or "", self.record),
            "customer": self.customer,
            "ended": _rfc3339(event.occurred_at),
            "session_id": event.session_id,
            "started": _rfc3339(started),
            "tenant": event.tenant_id,
        }

    def call_end(self, event: Event, health: int) -> End:
        """The end of the call; `event` says how it went."""
        duration_ms = self.ended.duration_ms if self.ended is not None else 0
        facts = {
            **self.facts(event),
            "disposition": self.disposition,
            "outcome": self.disposition,
            "duration_s": round(duration_ms / 1000),
            "health": health,
            "intents": list(self.intents),
            "reason": self.ended.reason if self.ended is not None else "",
            "sentiment": self.sentiment,
            "summary": self.summary(),
            "transcript": self.transcript(),
            "turns": len(self.asked),
        }
        return End(event, facts)

    def _session(self, event: Session) -> None:
        if event.kind is SessionKind.STARTED:
            self.started = self.started or event
        elif event.kind is SessionKind.ENDED:
            self.ended = self.ended or event

    def _response(self, event: Response) -> End | None:
        """A turn's committed end is its end; what its tool did may have been done ahead, by the same cause."""
        cause = event.causation_id or ""
        match event.kind:
            case ResponseKind.TOOL_CALLED:
                self._called[cause] = event
                if len(self._called) > AHEAD_MAX:
                    self._tools.pop(oldest := next(iter(self._called)), None)
                    del self._called[oldest]
            case ResponseKind.TOOL_RETURNED if event.turn == 0:
                self.record = recognise(Memory(), json_in(event.result)).record
            case ResponseKind.TOOL_RETURNED:
                self._returned(cause, event)
            case ResponseKind.COMPLETED | ResponseKind.CANCELLED if event.committed:
                called = self._called.pop(cause, None)
                return self._turn_end(event, self._tools.pop(cause, called))
        return None

    def _returned(self, cause: str, event: Response) -> None:
        """Of several tools in a turn the last one counts, unless it came to nothing where one before did not."""
        known = self._tools.get(cause)
        if known is None or known.outcome in IN_VAIN or event.outcome not in IN_VAIN:
            called = self._called.get(cause, event)
            self._tools[cause] = replace(event, arguments=called.arguments)
            if len(self._tools) > AHEAD_MAX:
                del self._tools[next(iter(self._tools))]

    def _turn_end(self, event: Response, tool: Response | None) -> End | None:
        turn = self._turn(event.turn)
        if turn.is_over:
            return None
        turn.is_over = True
        turn.reply, turn.source = event.text[:TEXT_CHARS_MAX], event.source
        returned = tool is not None and tool.kind is ResponseKind.TOOL_RETURNED
        if tool is not None and returned:
            turn.tool, turn.outcome = tool.tool, tool.outcome
        else:
            turn.outcome = event.outcome
        if event.turn == 0 or not turn.outcome:
            return None
        facts = {
            **self.facts(event),
            "arguments": (json_in(tool.arguments) if tool is not None else None) or {},
            "call_id": tool.tool_call_id if tool is not None else "",
            "intent": event.intent or turn.intent,
            "outcome": turn.outcome,
            "reply": turn.reply,
            "result": (json_in(tool.result) if tool is not None else None) or {},
            "sentiment": turn.sentiment,
            "text": turn.text,
            "turn": event.turn,
        }
        return End(event, facts)

    def _turn(self, number: int) -> Exchange:
        if number not in self.turns and len(self.turns) >= TURNS_MAX:
            del self.turns[min(self.turns)]
        return self.turns.setdefault(number, Exchange())


def _wants(turn: Exchange) -> bool:
    return turn.outcome not in ("backchannel", "echo")


def _label(turn: Exchange) -> str:
    known = [word for word in (turn.intent if turn.intent != "none" else "", turn.outcome) if word]
    return f" ({': '.join(known)})" if known else ""


def _clip(text: str) -> str:
    return text if len(text) <= QUOTE_CHARS_MAX else text[: QUOTE_CHARS_MAX - 1] + "…"


def _rfc3339(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
