"""Four calls of yesterday, two tenants', made up so that every question about them has an answer known by hand."""

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.event import Event
from schemas.events import (
    AudioFrame,
    Control,
    ControlKind,
    Customer,
    CustomerKind,
    DeadLetter,
    Delivery,
    DeliveryKind,
    Health,
    HealthKind,
    Intent,
    IntentKind,
    Refusal,
    RefusalKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    SpeechChunk,
    SpeechChunkKind,
    Suggestion,
    SuggestionKind,
    Transcript,
    TranscriptKind,
)

CHUNK = b"\1\0" * 3200  # 200 ms


@dataclass
class KnownCalls:
    """`acme` and `beta` are the tenants' names, told apart from other tests' by a suffix; `day` is yesterday."""

    suffix: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    events: list[Event] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.acme, self.beta = f"acme-{self.suffix}", f"beta-{self.suffix}"
        self.ten = (datetime.now(UTC) - timedelta(days=1)).replace(hour=10, minute=0, second=0, microsecond=0)
        self.day = self.ten.date().isoformat()
        self._acme()
        self._beta()

    def _acme(self) -> None:
        self._session("A1", 0, 120, "hung_up", "+431")
        self._greeting("A1", 0.1)
        self._turn("A1", 1, 10, (500, 20, 80, 100), "Where is my order?", 0.9, "order_status", 0.8, 0.0)
        self._tool("A1", 1, 10.55, 50, "ok")
        self._put(Intent, "A1", 1, 10.4, **judged("order_status", 0.8, "Where is my order?", committed=False))
        self._turn("A1", 2, 60, (600, 10, 300, 90), "Tell me about tents.", 0.7, "products", 0.6, 0.5, "model", "")
        self._put(Control, "A1", 2, 62, kind=ControlKind.BARGE_IN, heard_ms=200)
        # Of 21 frames one was lost.
        for at in (*range(10), *range(11, 21)):
            self._frame("A1", at)
        self._session("A2", 60, 90, "transferred", "+431")
        self._turn("A2", 1, 65, (700, 10, 200, 490), "Do you sell unicorns?", 0.4, "none", 0.7, -0.5, "clarification")
        self._turn(
            "A2",
            2,
            75,
            (500, 10, 90, 110),
            "Where is my order?",
            0.8,
            "order_status",
            0.8,
            -1.0,
            "escalation",
            "escalated",
        )
        self._tool("A2", 2, 75.52, 200, "timeout")
        self._session("A3", 3600, None, "", "+432")
        self._turn("A3", 1, 3610, (4000, 10, 10, 80), "", 0.0, "none", 0.0, 0.0, "apology", "failed")
        self._delivery("A1", "crm", "m1", DeliveryKind.ATTEMPTED, 5, attempt=1, status_code=503)
        self._delivery("A1", "crm", "m1", DeliveryKind.DELIVERED, 6, attempt=2, status_code=204)
        self._delivery("A2", "crm", "m2", DeliveryKind.DEAD, 7, attempt=1, status_code=410, reason="gone")
        breaker = {"component": "stt", "engine": "stt.0", "reason": "3 timeouts"}
        self._put(Health, "stt", 0, 3600, kind=HealthKind.BREAKER_OPENED, **breaker)
        refused = {"kind": RefusalKind.FORBIDDEN, "component": "api.0", "reason": "role", "permission": "call"}
        self._put(Refusal, "api", 0, 3602, **refused)
        self._hint("A1", 10.5)
        letter = {"source_topic": "voice.transcripts", "source_partition": 0, "source_offset": 1}
        self._put(DeadLetter, "A3", 0, 3601, stage="intent", reason="invalid_field", **letter)

    def _beta(self) -> None:
        self._session("B1", 30, 90, "completed", "+499")
        words = "What is my balance?"
        self._turn("B1", 1, 40, (300, 10, 50, 40), words, 0.95, "balance", 0.9, 1.0, "template", "ended")
        for at in range(10):
            self._frame("B1", at)
        self._hint("B1", 40.5)
        self._put(Refusal, "B1", 0, 51, kind=RefusalKind.LIMITED, component="api.0", reason="rate", count=9)
        self._delivery("B1", "erp", "m3", DeliveryKind.DELIVERED, 50, attempt=1, status_code=200)

    def at(self, seconds: float) -> str:
        """The time so many seconds after ten, as ClickHouse writes a DateTime."""
        return (self.ten + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")

    def of(self, kind: type[Event], tenant: str) -> list[Event]:
        """The tenant's events of the kind."""
        return [event for event in self.events if isinstance(event, kind) and event.tenant_id == tenant]

    def _put(self, event: Any, call: str, turn: int, at_s: float, /, **fields: Any) -> None:
        session_id = self.ids.setdefault(call, str(uuid.uuid4()))
        self.events.append(
            event(
                event_id=str(uuid.uuid4()),
                session_id=session_id,
                tenant_id=self.beta if call == "B1" else self.acme,
                agent_id="bank" if call == "B1" else "shop",
                turn=turn,
                seq=len(self.events),
                occurred_at=self._us(at_s),
                **fields,
            )
        )

    def _us(self, at_s: float) -> int:
        return round((self.ten.timestamp() + at_s) * 1_000_000)

    def _session(self, call: str, start_s: float, end_s: float | None, reason: str, caller: str) -> None:
        who = {"channel": "websocket", "caller": caller}
        self._put(Session, call, 0, start_s, kind=SessionKind.STARTED, **who)
        if end_s is not None:
            end = {"reason": reason, "duration_ms": round(1000 * (end_s - start_s))}
            self._put(Session, call, 0, end_s, kind=SessionKind.ENDED, **who, **end)

    def _hint(self, call: str, at_s: float) -> None:
        self._put(Suggestion, call, 1, at_s, kind=SuggestionKind.ANSWER, title="Orders", text="It is on its way.")
        self._put(
            Customer, call, 0, at_s + 200, kind=CustomerKind.SCORED, customer=f"c-{call}", score=70, call_score=70
        )

    def _greeting(self, call: str, at_s: float) -> None:
        said = {"text": "Hello.", "source": "greeting"}
        self._put(Response, call, 0, at_s, kind=ResponseKind.SENTENCE, **said)
        self._put(Response, call, 0, at_s, kind=ResponseKind.COMPLETED, outcome="answered", **said)
        self._speech(call, 0, at_s + 0.1, None)

    def _turn(
        self,
        call: str,
        turn: int,
        ended_s: float,
        steps_ms: tuple[int, int, int, int],
        heard: str,
        confidence: float,
        intent: str,
        intent_confidence: float,
        sentiment: float,
        source: str = "template",
        outcome: str = "answered",
    ) -> None:
        """`steps_ms` are what stt, intent, llm and tts take. Without an outcome the caller speaks over the answer."""
        final_s, intent_s, sentence_s, audio_s = (ended_s + sum(steps_ms[:count]) / 1000 for count in (1, 2, 3, 4))
        ended = {"speech_ended_at": self._us(ended_s)}
        read = {
            "utterance": turn - 1,
            "revision": 1,
            "text": heard,
            "confidence": confidence,
            "audio_start_ms": 1000,
            "audio_end_ms": 3000,
            "model": "ear",
            "compute_ms": 40.0,
            **ended,
        }
        # The partial and the final are one reading, which cost once.
        self._put(Transcript, call, turn, ended_s + 0.2, kind=TranscriptKind.PARTIAL, pause_ms=100, **read)
        failure = {} if heard else {"failure": "timeout"}
        self._put(Transcript, call, turn, final_s, kind=TranscriptKind.FINAL, pause_ms=300, **read, **failure)
        self._put(
            Intent, call, turn, intent_s, sentiment=sentiment, **judged(intent, intent_confidence, heard), **ended
        )
        said = {"text": "Well.", "source": source, "intent": intent, "revision": 1, **ended}
        self._put(Response, call, turn, sentence_s, kind=ResponseKind.SENTENCE, **said)
        cost = {"model": "small", "tokens_in": 50, "tokens_out": 10, "compute_ms": 100.0} if source == "model" else {}
        kind = ResponseKind.COMPLETED if outcome else ResponseKind.CANCELLED
        self._put(Response, call, turn, sentence_s + 0.5, kind=kind, outcome=outcome, **said, **cost)
        self._speech(call, turn, audio_s, ended["speech_ended_at"])

    def _speech(self, call: str, turn: int, at_s: float, ended_at: int | None) -> None:
        for index in range(2):
            made = {
                "pcm": CHUNK,
                "sample_index": 3200 * index,
                "compute_ms": 30.0 * (index == 0),
                "revision": int(turn > 0),
            }
            kind = SpeechChunkKind.AUDIO
            self._put(SpeechChunk, call, turn, at_s + index, kind=kind, speech_ended_at=ended_at, **made)
        self._put(SpeechChunk, call, turn, at_s + 2, kind=SpeechChunkKind.END_OF_TURN, sample_index=6400)
        if (call, turn) != ("A1", 2):
            self._put(Control, call, turn, at_s + 3, kind=ControlKind.PLAYOUT, heard_ms=400)

    def _tool(self, call: str, turn: int, at_s: float, duration_ms: int, outcome: str) -> None:
        tool = {"tool": "get_order", "tool_call_id": f"{call}-{turn}", "intent": "order_status"}
        self._put(Response, call, turn, at_s, kind=ResponseKind.TOOL_CALLED, arguments='{"number": 1}', **tool)
        end_s = at_s + duration_ms / 1000
        took = {"outcome": outcome, "result": "{}", "compute_ms": float(duration_ms)}
        self._put(Response, call, turn, end_s, kind=ResponseKind.TOOL_RETURNED, **tool, **took)

    def _frame(self, call: str, index: int) -> None:
        at_s = 1 + index / 10
        self._put(AudioFrame, call, 0, at_s, pcm=b"\0\0" * 1600, sample_index=1600 * index, captured_at=self._us(at_s))

    def _delivery(self, call: str, endpoint: str, message: str, kind: DeliveryKind, at_s: float, **fields: Any) -> None:
        source = {"source_topic": "voice.sessions", "source_partition": 0, "source_offset": 0}
        named = {"endpoint_id": endpoint, "message_id": message}
        self._put(Delivery, call, 0, at_s, kind=kind, **named, **source, **fields)


def judged(intent: str, confidence: float, text: str, *, committed: bool = True) -> dict[str, Any]:
    """The fields of a judgement; one made ahead and its commitment are one, which cost once."""
    cost = {"model": "meaning", "compute_ms": 8.0}
    kept = {"intent": intent, "confidence": confidence, "text": text, "revision": 1, "committed": committed}
    return {"kind": IntentKind.DETECTED, **kept, **cost}
