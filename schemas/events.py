"""Typed events, generated from `avro/*.avsc` by `python -m schemas.generate`; do not edit.

Personal data (`pii` in the schema) never shows in a `repr`, so logs cannot print it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from schemas.event import Event, Part


class AccessKind(StrEnum):
    """read: the events of a call were shown. listed: which calls there were. followed: events were shown as they came.
    exported: a call was written to a bundle. replayed: events were sent to another system once more. queried: a
    question was asked in SQL. verified: the record of calls was checked, without showing any. enrolled: a person's
    voice was taken in, with their consent. withdrawn: it was removed.
    """

    UNKNOWN = "unknown"
    READ = "read"
    LISTED = "listed"
    FOLLOWED = "followed"
    EXPORTED = "exported"
    REPLAYED = "replayed"
    QUERIED = "queried"
    VERIFIED = "verified"
    ENROLLED = "enrolled"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access(Event):
    """Somebody looked at what is kept of calls: who, which call, when, by which way."""

    NAME: ClassVar[str] = "access"
    TOPIC: ClassVar[str] = "voice.accesses"
    CE_TYPE: ClassVar[str] = "trunkline.access"
    PII: ClassVar[frozenset[str]] = frozenset()
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": AccessKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: AccessKind
    actor: str
    via: str
    what: str = ""
    query: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFrame(Event):
    """A piece of the caller's audio, in order, without gaps in sample_index unless audio was lost on the way."""

    NAME: ClassVar[str] = "audio_frame"
    TOPIC: ClassVar[str] = "voice.audio.in"
    CE_TYPE: ClassVar[str] = "trunkline.audio.in"
    PII: ClassVar[frozenset[str]] = frozenset({"pcm"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    pcm: bytes = field(default=b"", repr=False)
    sample_index: int
    sample_rate_hz: int = 16000
    captured_at: int


@dataclass(frozen=True, slots=True)
class ChainHead(Part):
    """One of `heads`."""

    record_key: str
    topic: str
    partition: int
    position: int
    offset: int
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Event):
    """The platform's signature under how far the hash chains of the audit record are."""

    NAME: ClassVar[str] = "checkpoint"
    TOPIC: ClassVar[str] = "voice.checkpoints"
    CE_TYPE: ClassVar[str] = "trunkline.checkpoint"
    PII: ClassVar[frozenset[str]] = frozenset()
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {"heads": ChainHead}
    LISTS: ClassVar[tuple[str, ...]] = ()

    statement: str
    signature: str
    public_key: str
    heads: tuple[ChainHead, ...] = ()


class ControlKind(StrEnum):
    """barge_in: the caller spoke over the agent; the turn's remaining speech is void. dtmf: a key was pressed. playout:
    how much of a turn the caller has heard. transfer, hang_up: end of the agent's part. erase: forget the call; nobody
    can read its personal fields from here on. erased: a store has done so, or all have. quiet: the caller's side is
    connected and has sent no audio for a second, so what was said is over.
    """

    UNKNOWN = "unknown"
    BARGE_IN = "barge_in"
    DTMF = "dtmf"
    PLAYOUT = "playout"
    TRANSFER = "transfer"
    HANG_UP = "hang_up"
    ERASE = "erase"
    QUIET = "quiet"
    ERASED = "erased"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control(Event):
    """What steers a call besides speech."""

    NAME: ClassVar[str] = "control"
    TOPIC: ClassVar[str] = "voice.control"
    CE_TYPE: ClassVar[str] = "trunkline.control"
    PII: ClassVar[frozenset[str]] = frozenset({"digit", "heard_text"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": ControlKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: ControlKind
    digit: str = field(default="", repr=False)
    heard_ms: int = 0
    sentence: int = 0
    heard_text: str = field(default="", repr=False)
    target: str = ""
    reason: str = ""
    document: str = ""


class CustomerKind(StrEnum):
    """scored: a call is over, and says how the customer fares."""

    UNKNOWN = "unknown"
    SCORED = "scored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer(Event):
    """How a call went, and how the customer who called fares since."""

    NAME: ClassVar[str] = "customer"
    TOPIC: ClassVar[str] = "voice.customers"
    CE_TYPE: ClassVar[str] = "trunkline.customer"
    PII: ClassVar[frozenset[str]] = frozenset({"caller", "summary"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": CustomerKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ("intents",)

    kind: CustomerKind
    customer: str = ""
    caller: str | None = field(default=None, repr=False)
    score: int = 0
    score_before: int = -1
    calls: int = 1
    call_score: int = 0
    disposition: str = ""
    sentiment: float = 0.0
    summary: str = field(default="", repr=False)
    intents: tuple[str, ...] = ()
    turns: int = 0
    duration_ms: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter(Event):
    """A record that could not be processed, whole."""

    NAME: ClassVar[str] = "dead_letter"
    TOPIC: ClassVar[str] = "voice.deadletters"
    CE_TYPE: ClassVar[str] = "trunkline.deadletter"
    PII: ClassVar[frozenset[str]] = frozenset({"record_headers", "record_key", "record_value"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    source_topic: str
    source_partition: int
    source_offset: int
    stage: str
    reason: str
    detail: str = ""
    record_key: bytes | None = field(default=None, repr=False)
    record_value: bytes | None = field(default=None, repr=False)
    record_headers: Mapping[str, bytes] = field(default_factory=dict, repr=False)


class DeliveryKind(StrEnum):
    """attempted: will be tried again. delivered: accepted. dead: given up, the record is in the dead letters. disabled:
    after this attempt nothing more is sent to the endpoint.
    """

    UNKNOWN = "unknown"
    ATTEMPTED = "attempted"
    DELIVERED = "delivered"
    DEAD = "dead"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(Event):
    """An attempt to tell another system of an event."""

    NAME: ClassVar[str] = "delivery"
    TOPIC: ClassVar[str] = "voice.deliveries"
    CE_TYPE: ClassVar[str] = "trunkline.delivery"
    PII: ClassVar[frozenset[str]] = frozenset()
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": DeliveryKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: DeliveryKind
    endpoint_id: str
    message_id: str
    source_topic: str
    source_partition: int
    source_offset: int
    attempt: int = 1
    status_code: int = 0
    duration_ms: float = 0.0
    reason: str = ""


class HealthKind(StrEnum):
    """breaker_opened: an engine is not asked any more, breaker_half_opened: it is being tried, breaker_closed: it
    answers again. load_raised, load_lowered: the platform does less for each call, or more again; level says how much.
    load_measured: how busy the process is, said again and again while it has calls. calls_refused: new calls were
    turned away for load since this was last said. burn_raised, burn_lowered: an error budget of the tenant is spent
    faster than its objective bears, or slower again.
    """

    UNKNOWN = "unknown"
    BREAKER_OPENED = "breaker_opened"
    BREAKER_HALF_OPENED = "breaker_half_opened"
    BREAKER_CLOSED = "breaker_closed"
    LOAD_RAISED = "load_raised"
    LOAD_LOWERED = "load_lowered"
    LOAD_MEASURED = "load_measured"
    CALLS_REFUSED = "calls_refused"
    BURN_RAISED = "burn_raised"
    BURN_LOWERED = "burn_lowered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health(Event):
    """How the platform itself fares: what stopped answering, what was done about it, and when it was over."""

    NAME: ClassVar[str] = "health"
    TOPIC: ClassVar[str] = "voice.health"
    CE_TYPE: ClassVar[str] = "trunkline.health"
    PII: ClassVar[frozenset[str]] = frozenset()
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": HealthKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: HealthKind
    component: str
    engine: str = ""
    level: int = 0
    reason: str = ""
    utilisation: float = 0.0
    calls: int = 0
    refused: int = 0
    objective: str = ""
    burn_rate: float = 0.0
    window_s: int = 0


class IntentKind(StrEnum):
    """detected: the judgement on one transcript. withdrawn: the caller went on, what was begun for the speculative
    judgements of the turn up to this revision is void.
    """

    UNKNOWN = "unknown"
    DETECTED = "detected"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Alternative(Part):
    """One of `alternatives`."""

    intent: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Entity(Part):
    """One of `entities`."""

    name: str
    value: str = field(repr=False)
    raw: str = field(repr=False)
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent(Event):
    """What the caller wants."""

    NAME: ClassVar[str] = "intent"
    TOPIC: ClassVar[str] = "voice.intents"
    CE_TYPE: ClassVar[str] = "trunkline.intent"
    PII: ClassVar[frozenset[str]] = frozenset({"entities", "text"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": IntentKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {"alternatives": Alternative, "entities": Entity}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: IntentKind
    intent: str
    confidence: float
    alternatives: tuple[Alternative, ...] = ()
    entities: tuple[Entity, ...] = field(default=(), repr=False)
    sentiment: float = 0.0
    text: str = field(default="", repr=False)
    utterance: int = 0
    revision: int = 0
    committed: bool = True
    speech_ended_at: int | None = None
    model: str = ""
    compute_ms: float = 0.0


class RefusalKind(StrEnum):
    """unauthenticated: nothing was shown that lets in. forbidden: the key's role may not do that. foreign: what was
    asked for is another tenant's; who asked was told that it does not exist. limited: the key asked more often than it
    may.
    """

    UNKNOWN = "unknown"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    FOREIGN = "foreign"
    LIMITED = "limited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(Event):
    """Somebody asked for what is not theirs: who, what, why. It holds no secret that was shown."""

    NAME: ClassVar[str] = "refusal"
    TOPIC: ClassVar[str] = "voice.refusals"
    CE_TYPE: ClassVar[str] = "trunkline.refusal"
    PII: ClassVar[frozenset[str]] = frozenset()
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": RefusalKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: RefusalKind
    component: str
    key_id: str = ""
    role: str = ""
    action: str = ""
    target: str = ""
    permission: str = ""
    reason: str = ""
    count: int = 1


class ResponseKind(StrEnum):
    """sentence: one sentence to be spoken. tool_called / tool_returned: around an effect in another system. completed:
    nothing more comes for this turn. cancelled: the rest was dropped, for a barge-in or because the caller went on.
    """

    UNKNOWN = "unknown"
    SENTENCE = "sentence"
    TOOL_CALLED = "tool_called"
    TOOL_RETURNED = "tool_returned"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(Event):
    """What the agent says and does."""

    NAME: ClassVar[str] = "response"
    TOPIC: ClassVar[str] = "voice.responses"
    CE_TYPE: ClassVar[str] = "trunkline.response"
    PII: ClassVar[frozenset[str]] = frozenset({"arguments", "result", "text"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": ResponseKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ("documents",)

    kind: ResponseKind
    sentence: int = 0
    text: str = field(default="", repr=False)
    source: str = ""
    intent: str = ""
    revision: int = 0
    committed: bool = True
    tool: str = ""
    tool_call_id: str = ""
    arguments: str = field(default="", repr=False)
    result: str = field(default="", repr=False)
    outcome: str = ""
    action: str = ""
    action_target: str = ""
    documents: tuple[str, ...] = ()
    speech_ended_at: int | None = None
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    compute_ms: float = 0.0


class SessionKind(StrEnum):
    """What happened to the session."""

    UNKNOWN = "unknown"
    STARTED = "started"
    UPDATED = "updated"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(Event):
    """The life of a call."""

    NAME: ClassVar[str] = "session"
    TOPIC: ClassVar[str] = "voice.sessions"
    CE_TYPE: ClassVar[str] = "trunkline.session"
    PII: ClassVar[frozenset[str]] = frozenset({"caller", "context"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": SessionKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: SessionKind
    channel: str = ""
    caller: str | None = field(default=None, repr=False)
    language: str = "en"
    context: Mapping[str, str] = field(default_factory=dict, repr=False)
    reason: str = ""
    duration_ms: int = 0
    gateway: str = ""


class SpeechChunkKind(StrEnum):
    """audio: PCM. end_of_turn: no more audio comes for the turn. text: no voice could be made, display the text
    instead.
    """

    UNKNOWN = "unknown"
    AUDIO = "audio"
    END_OF_TURN = "end_of_turn"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechChunk(Event):
    """A piece of the agent's speech."""

    NAME: ClassVar[str] = "speech_chunk"
    TOPIC: ClassVar[str] = "voice.audio.out"
    CE_TYPE: ClassVar[str] = "trunkline.audio.out"
    PII: ClassVar[frozenset[str]] = frozenset({"pcm", "text"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": SpeechChunkKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: SpeechChunkKind
    pcm: bytes = field(default=b"", repr=False)
    sample_rate_hz: int = 16000
    sample_index: int = 0
    sentence: int = 0
    last_of_sentence: bool = False
    text: str = field(default="", repr=False)
    revision: int = 0
    committed: bool = True
    speech_ended_at: int | None = None
    model: str = ""
    compute_ms: float = 0.0


class SuggestionKind(StrEnum):
    """answer: what to say, from the intent's template. action: what to look up or do, the agent's tool. passage: what
    the agent's documents say. record: who calls.
    """

    UNKNOWN = "unknown"
    ANSWER = "answer"
    ACTION = "action"
    PASSAGE = "passage"
    RECORD = "record"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion(Event):
    """A hint for a person who follows the call."""

    NAME: ClassVar[str] = "suggestion"
    TOPIC: ClassVar[str] = "voice.assist"
    CE_TYPE: ClassVar[str] = "trunkline.suggestion"
    PII: ClassVar[frozenset[str]] = frozenset({"text"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": SuggestionKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: SuggestionKind
    intent: str = ""
    title: str = ""
    text: str = field(default="", repr=False)
    document: str = ""
    score: float = 0.0


class TranscriptKind(StrEnum):
    """speech_started: the caller begins to speak. partial: the best reading so far; with pause_ms > 0 it is worth
    working on speculatively. speech_resumed: the caller went on, the last revision is void. final: the utterance is
    complete and commits its revision.
    """

    UNKNOWN = "unknown"
    SPEECH_STARTED = "speech_started"
    PARTIAL = "partial"
    SPEECH_RESUMED = "speech_resumed"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Word(Part):
    """One of `words`."""

    word: str = field(repr=False)
    start_ms: int
    end_ms: int
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript(Event):
    """What the caller is heard to say."""

    NAME: ClassVar[str] = "transcript"
    TOPIC: ClassVar[str] = "voice.transcripts"
    CE_TYPE: ClassVar[str] = "trunkline.transcript"
    PII: ClassVar[frozenset[str]] = frozenset({"text", "words"})
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {"kind": TranscriptKind}
    PARTS: ClassVar[Mapping[str, type[Part]]] = {"words": Word}
    LISTS: ClassVar[tuple[str, ...]] = ()

    kind: TranscriptKind
    utterance: int
    revision: int = 0
    text: str = field(default="", repr=False)
    words: tuple[Word, ...] = field(default=(), repr=False)
    confidence: float = 0.0
    language: str = "en"
    pause_ms: int = 0
    audio_start_ms: int = 0
    audio_end_ms: int = 0
    speech_ended_at: int | None = None
    model: str = ""
    compute_ms: float = 0.0
    failure: str = ""


EVENTS: tuple[type[Event], ...] = (
    Access,
    AudioFrame,
    Checkpoint,
    Control,
    Customer,
    DeadLetter,
    Delivery,
    Health,
    Intent,
    Refusal,
    Response,
    Session,
    SpeechChunk,
    Suggestion,
    Transcript,
)
