"""A turn while it is being answered: its events, each with a deterministic id, and what is already in the log of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from processors.agents import IntentSpec, Tool
from processors.engine import Chosen
from processors.llm.decide import Call, Look
from processors.stage import Emit, Outcome, Position, caused, turn_event_id
from schemas.event import Event
from schemas.events import Intent, Response, ResponseKind

_TERMINAL = (ResponseKind.COMPLETED, ResponseKind.CANCELLED)
# One name for both ends of a turn: completed and cancelled by the same record have one id, and the first is the truth.
END = "end"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call under way. `values` are its arguments; `id` is its idempotency key.

    `spec` is the intent that it is for, None where the language model chose it, as its `number`th of the turn.
    """

    spec: IntentSpec | None
    tool: str
    values: dict[str, str] = field(repr=False)
    id: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Consult:
    """A tool that the language model chose and that may be called, with its values."""

    tool: str
    values: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Consulted:
    """A choice of the language model, and what came of it: an outcome of the tool's, or `invalid`, and then no `tool`.

    `said` is how many sentences of the turn were said before it.
    """

    choice: Chosen = field(repr=False)
    outcome: str
    result: Any = field(default=None, repr=False)
    said: int = 0
    tool: Tool | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """What the words cost so far."""

    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """An open turn. `recorded` is what the log already holds of it; that is adopted and not said again.

    `ask_id` is the one ask that is open, or empty. A `void` turn says nothing more: it only waits for its tool.
    What is not `committed` may prove void; `later` is then what waits for the commitment. `held` is the record that is
    needed again until the turn is over. `closest` is what a document says that comes close to the question, for when
    the language model says nothing. `consulted` are the choices that the model made so far, `chosen` is one that it has
    just made, or is writing (`choosing`); `muted`, nothing more of this answer of its is said. It was first asked at
    `began_us`.
    """

    cause: Event
    number: int
    intent: str = ""
    recorded: tuple[Response, ...] = field(default=(), repr=False)
    sentences: tuple[str, ...] = field(default=(), repr=False)
    sources: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    made: Made = Made()
    ask_id: str = ""
    look: Look | None = None
    call: ToolCall | None = None
    buffer: str = field(default="", repr=False)
    told: str = field(default="", repr=False)
    facts: tuple[str, ...] = field(default=(), repr=False)
    closest: tuple[str, ...] = field(default=(), repr=False)
    closest_document: str = ""
    void: bool = False
    committed: bool = True
    later: Call | Look | Consult | None = None
    consulted: tuple[Consulted, ...] = ()
    chosen: Chosen | None = field(default=None, repr=False)
    choosing: bool = False
    muted: bool = False
    began_us: int = 0
    held: Position | None = None

    @property
    def question(self) -> str:
        """What the caller said; empty for the greeting."""
        return self.cause.text.strip() if isinstance(self.cause, Intent) else ""

    def recorded_of(self, *kinds: ResponseKind) -> Response | None:
        """The first recorded event of those kinds."""
        return next((event for event in self.recorded if event.kind in kinds), None)

    @property
    def answer(self) -> tuple[str, ...]:
        """What was said since the language model's last choice, or at all."""
        return self.sentences[self.consulted[-1].said if self.consulted else 0 :]

    @property
    def calls(self) -> int:
        """How many tools that the language model chose were called."""
        return len({one.choice.id for one in self.consulted if one.tool is not None})

    def recorded_choices(self) -> tuple[Response, ...]:
        """The recorded calls of tools that the language model chose."""
        return tuple(
            event for event in self.recorded if event.kind is ResponseKind.TOOL_CALLED and event.source == "model"
        )

    def recorded_return(self, call_id: str) -> Response | None:
        """What the log has of that call's end."""
        return next(
            (e for e in self.recorded if e.kind is ResponseKind.TOOL_RETURNED and e.tool_call_id == call_id), None
        )

    @property
    def terminal(self) -> Response | None:
        """The recorded end of the turn."""
        return self.recorded_of(*_TERMINAL)

    def recorded_sentences(self) -> tuple[Response, ...]:
        """The recorded sentences by index, up to the first gap."""
        by_index = {event.sentence: event for event in self.recorded if event.kind is ResponseKind.SENTENCE}
        found: list[Response] = []
        while len(found) in by_index:
            found.append(by_index[len(found)])
        return tuple(found)


def opened(cause: Event, number: int, recorded: tuple[Event, ...], intent: str = "") -> Turn:
    """A new turn."""
    responses = tuple(event for event in recorded if isinstance(event, Response))
    return Turn(cause, number, intent, responses, committed=not isinstance(cause, Intent) or cause.committed)


def respond(turn: Turn, name: str, kind: ResponseKind, now_us: int, **fields: Any) -> Emit:
    """The turn's event called `name`."""
    if isinstance(turn.cause, Intent):
        fields = {
            "revision": turn.cause.revision,
            "committed": turn.committed,
            "speech_ended_at": turn.cause.speech_ended_at,
            **fields,
        }
    event = caused(turn.cause, Response, name, now_us, turn=turn.number, kind=kind, intent=turn.intent, **fields)
    return Emit(event)


def speak(
    turn: Turn, texts: tuple[str, ...], source: str, now_us: int, documents: tuple[str, ...] = ()
) -> tuple[Turn, list[Outcome]]:
    """Says sentences; where the log already holds one of that index, that one was said, and is kept."""
    outcomes: list[Outcome] = []
    recorded = turn.recorded_sentences()
    sentences, sources = list(turn.sentences), list(turn.sources)
    for text in texts:
        index = len(sentences)
        if index < len(recorded):
            sentences.append(recorded[index].text)
            sources.append(recorded[index].source)
            continue
        sentences.append(text)
        sources.append(source)
        outcomes.append(
            respond(
                turn,
                f"sentence-{index}",
                ResponseKind.SENTENCE,
                now_us,
                sentence=index,
                text=text,
                source=source,
                documents=documents,
                model=turn.made.model if source == "model" else "",
            )
        )
    known = tuple(dict.fromkeys((*turn.documents, *documents)))
    return replace(turn, sentences=tuple(sentences), sources=tuple(sources), documents=known), outcomes


def complete(turn: Turn, outcome: str, now_us: int, action: str = "", target: str = "") -> list[Outcome]:
    """The turn's last event."""
    if turn.terminal is not None:
        return []
    fields = {
        "sentence": len(turn.sentences),
        "text": " ".join(turn.sentences),
        "source": turn.sources[-1] if turn.sources else "",
        "outcome": outcome,
        "action": action,
        "action_target": target,
        "documents": turn.documents,
        **_cost(turn),
    }
    return [_end(turn, ResponseKind.COMPLETED, now_us, fields)]


def cancelled(turn: Turn, now_us: int) -> list[Outcome]:
    """The turn's last event where the rest of it was dropped. Caused by the same record as all of the turn.

    So, when the record is worked on again after a crash, the cancellation is found with the rest, and adopted.
    """
    if turn.terminal is not None:
        return []
    text = " ".join(turn.sentences)
    fields = {"sentence": len(turn.sentences), "text": text, **_cost(turn)}
    return [_end(turn, ResponseKind.CANCELLED, now_us, fields)]


def committed_end(end: Response) -> Response:
    """A turn's last event as that of a committed turn, which has one."""
    return replace(end, event_id=turn_event_id(end.session_id, end.turn, END), committed=True)


def _end(turn: Turn, kind: ResponseKind, now_us: int, fields: Mapping[str, Any]) -> Emit:
    event = respond(turn, END, kind, now_us, **fields).event
    assert isinstance(event, Response)
    return Emit(committed_end(event) if turn.committed else event)


def _cost(turn: Turn) -> dict[str, Any]:
    """What models took for the turn, where they said so before it ended."""
    made = turn.made
    return {
        "model": made.model,
        "tokens_in": made.tokens_in,
        "tokens_out": made.tokens_out,
        "compute_ms": made.compute_ms,
    }
