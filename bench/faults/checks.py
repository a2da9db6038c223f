"""The invariants, as pure functions over what a call left behind: its records, rows and effects, and what was heard.

The first record with an event id is the truth; later ones with the same id are harmless and only counted.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np

from api.client import CallResult
from api.wav import Pcm
from bench.faults.reference import Reference, words
from schemas.event import Event
from schemas.events import (
    AudioFrame,
    Control,
    ControlKind,
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)

EventT = TypeVar("EventT", bound=Event)


class Kind(StrEnum):
    """What is wrong. The first four are about what the caller said and heard."""

    LOST = "lost"
    DOUBLED = "doubled"
    TRANSCRIPT = "transcript"
    CALL = "call"
    EFFECT = "effect"
    ROWS = "rows"
    OFFSETS = "offsets"
    DEAD_LETTERS = "dead_letters"
    PLATFORM = "platform"
    OVERLOAD = "overload"


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant."""

    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one call left: its records in the log's order with repeats, its tickets in the ERP, its rows by table."""

    result: CallResult
    events: Sequence[Event]
    tickets: Sequence[Mapping[str, Any]]
    rows: Mapping[str, int]


class Stretch(NamedTuple):
    """Samples of one turn, or of the caller: from `start` up to, not including, `end`."""

    start: int
    end: int


def distinct(events: Iterable[EventT]) -> list[EventT]:
    """The first event with each id."""
    first: dict[str, EventT] = {}
    for event in events:
        first.setdefault(event.event_id, event)
    return list(first.values())


def counted(events: Sequence[Event]) -> list[Event]:
    """Without what was made for words that were not all that the caller said, which nobody heard.

    Everything of an answer has one cause; the one that counts is that of the turn's end, which is committed.
    """
    responses = [event for event in events if isinstance(event, Response)]
    ends = (ResponseKind.COMPLETED, ResponseKind.CANCELLED)
    causes = {event.turn: event.causation_id for event in responses if event.kind in ends and event.committed}
    void = {e.event_id for e in responses if not e.committed and causes.get(e.turn) != e.causation_id}
    return [
        event
        for event in events
        if event.event_id not in void and not (isinstance(event, SpeechChunk) and event.causation_id in void)
    ]


def repeats(events: Sequence[Event]) -> int:
    """Records that repeat an event id: harmless, and worth knowing."""
    return len(events) - len(distinct(events))


def check(evidence: Evidence, reference: Reference, tables: Mapping[str, str]) -> list[Finding]:
    """Everything about one call; `tables` names the table of each topic."""
    events = distinct(evidence.events)
    answers = counted(events)
    return [
        *check_turns(evidence.result, answers),
        *check_transcripts(evidence.result, reference),
        *check_tools(answers),
        *check_sentences(answers),
        *check_heard(evidence.result, answers),
        *check_caller_audio(evidence.result.caller, events),
        *check_tickets(evidence.tickets, reference),
        *check_rows(evidence.rows, events, tables),
    ]


def check_turns(result: CallResult, events: Sequence[Event]) -> Iterator[Finding]:
    """Every turn has one final, one completed answer and one end of its speech; the client saw each of them once."""
    finals = [event.turn for event in events if isinstance(event, Transcript) and event.kind is TranscriptKind.FINAL]
    taken = [*finals, *(e.turn for e in events if isinstance(e, Response)), *(turn.turn or 0 for turn in result.turns)]
    yield from _once("a final", finals, range(1, max(taken, default=0) + 1))
    answered = (ResponseKind.COMPLETED, ResponseKind.CANCELLED)
    replies = {event.turn for event in events if isinstance(event, Response) and event.kind in answered}
    completed = [e.turn for e in events if isinstance(e, Response) and e.kind is ResponseKind.COMPLETED]
    yield from _once("a completed answer", completed, set(finals) - (replies - set(completed)))
    ended = [e.turn for e in events if isinstance(e, SpeechChunk) and e.kind is SpeechChunkKind.END_OF_TURN]
    yield from _once("an end of its speech", ended, replies)
    for kind in ("final", "completed"):
        seen = [int(event.message.get("turn", -1)) for event in result.events if event.type == kind]
        yield from _once(f"a {kind} at the client", seen, finals)
    for turn in result.turns:
        if turn.error:
            yield Finding(Kind.LOST, f"{turn.file}: {turn.error}")


def check_transcripts(result: CallResult, reference: Reference) -> Iterator[Finding]:
    """Each file was heard as it is heard when nothing is broken, or better."""
    for turn, usual in zip(result.turns, reference.turns, strict=True):
        if not usual.is_right(words(turn.transcript)):
            expected = " | ".join(" ".join(one) for one in sorted(usual.transcripts))
            yield Finding(Kind.TRANSCRIPT, f"{turn.file}: heard {turn.transcript!r}, undisturbed {expected!r}")


def check_tools(events: Sequence[Event]) -> Iterator[Finding]:
    """Each call of a tool has one result."""
    responses = [event for event in events if isinstance(event, Response)]
    called = [event.tool_call_id for event in responses if event.kind is ResponseKind.TOOL_CALLED]
    returned = [event.tool_call_id for event in responses if event.kind is ResponseKind.TOOL_RETURNED]
    if called != returned and Counter(called) != Counter(returned):
        yield Finding(Kind.EFFECT, f"{len(called)} calls of tools, {len(returned)} results")


def check_sentences(events: Sequence[Event]) -> Iterator[Finding]:
    """Sentences are numbered without gaps, and each of a turn that nobody interrupted is spoken once, whole."""
    sentences: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, list[int]] = defaultdict(list)
    stretches: dict[int, list[Stretch]] = defaultdict(list)
    for event in events:
        if isinstance(event, Response) and event.kind is ResponseKind.SENTENCE:
            sentences[event.turn].append(event.sentence)
        elif isinstance(event, SpeechChunk) and event.kind is not SpeechChunkKind.END_OF_TURN:
            stretches[event.turn].append(Stretch(event.sample_index, event.sample_index + len(event.pcm) // 2))
            if event.last_of_sentence:
                ends[event.turn].append(event.sentence)
    closing = (ResponseKind.COMPLETED, ResponseKind.CANCELLED)
    counts = {event.turn: event.sentence for event in events if isinstance(event, Response) and event.kind in closing}
    for turn in sorted({*sentences, *counts}):
        numbers = sentences[turn]
        yield from _once(f"sentence of turn {turn}", numbers, range(counts.get(turn, max(numbers, default=-1) + 1)))
        if turn not in _interrupted(events):
            yield from _once(f"spoken sentence of turn {turn}", ends[turn], set(numbers))
            yield from check_stretches(f"speech of turn {turn} in the log", stretches[turn], _ends_at(events, turn))


def check_heard(result: CallResult, events: Sequence[Event]) -> Iterator[Finding]:
    """What the client received of each turn is all that the log has of it, in order, without a sample twice."""
    heard: dict[int, list[Stretch]] = defaultdict(list)
    for event in result.events:
        if event.type == "audio":
            start = int(event.message.get("sample_index", -1))
            heard[int(event.message.get("turn", 0))].append(Stretch(start, start + event.message["size_bytes"] // 2))
    cut = _interrupted(events) | {event.message.get("turn") for event in result.events if event.type == "clear"}
    for turn in {event.turn for event in events if isinstance(event, SpeechChunk)}:
        ends_at = None if turn in cut else _ends_at(events, turn)
        yield from check_stretches(f"speech of turn {turn} at the client", heard[turn], ends_at)
    if cut:
        yield Finding(Kind.LOST, f"turns {sorted(map(str, cut))} were cut short, and nobody spoke over them")


def check_caller_audio(sent: Pcm, events: Sequence[Event]) -> Iterator[Finding]:
    """The caller's audio is in the log from its first sample, once, as it was sent; silence may miss at its end."""
    frames = [event for event in events if isinstance(event, AudioFrame)]
    stretches = [Stretch(frame.sample_index, frame.sample_index + len(frame.pcm) // 2) for frame in frames]
    broken = list(check_stretches("the caller's audio in the log", stretches, None))
    yield from broken
    if broken:
        return
    logged = np.frombuffer(b"".join(frame.pcm for frame in frames), "<i2")
    known = min(len(logged), len(sent))
    if not np.array_equal(logged[:known], sent[:known]):
        at = int(np.flatnonzero(logged[:known] != sent[:known])[0])
        yield Finding(Kind.LOST, f"the caller's audio in the log is not what was sent, from sample {at}")
    if np.any(logged[known:]) or np.any(sent[known:]):
        yield Finding(Kind.LOST, f"the caller's audio: {len(sent)} samples were sent, {len(logged)} are in the log")


def check_stretches(what: str, stretches: Sequence[Stretch], ends_at: int | None) -> Iterator[Finding]:
    """Stretches follow one another from 0, in order, to `ends_at` where that is known."""
    expected = 0
    for start, end in stretches:
        if start > expected:
            yield Finding(Kind.LOST, f"{what}: samples {expected} to {start} are missing")
        elif start < expected:
            yield Finding(Kind.DOUBLED, f"{what}: samples {start} to {min(end, expected)} came twice")
        expected = max(expected, end)
    if ends_at is not None and expected < ends_at:
        yield Finding(Kind.LOST, f"{what}: samples {expected} to {ends_at} are missing")
    if ends_at is not None and expected > ends_at:
        yield Finding(Kind.DOUBLED, f"{what}: samples {ends_at} to {expected} are more than the turn has")


def check_tickets(tickets: Sequence[Mapping[str, Any]], reference: Reference) -> Iterator[Finding]:
    """The call had the effects in the ERP that it has undisturbed."""
    if len(tickets) != reference.tickets:
        yield Finding(Kind.EFFECT, f"{len(tickets)} tickets in the ERP, undisturbed {reference.tickets}")


def check_rows(rows: Mapping[str, int], events: Sequence[Event], tables: Mapping[str, str]) -> Iterator[Finding]:
    """As many rows as distinct events, table by table."""
    expected = Counter(tables[event.TOPIC] for event in events)
    for table in sorted({*expected, *rows}):
        if rows.get(table, 0) != expected[table]:
            yield Finding(Kind.ROWS, f"{table}: {rows.get(table, 0)} rows, {expected[table]} events in the topic")


def check_offsets(committed: Mapping[str, int | None], ends: Mapping[str, int]) -> Iterator[Finding]:
    """Every group has committed all that its topics hold; keys name group, topic and partition."""
    for name, end in sorted(ends.items()):
        if end and committed.get(name) != end:
            yield Finding(Kind.OFFSETS, f"{name}: committed {committed.get(name)}, the topic ends at {end}")


Place = tuple[str, int, int]


def check_dead_letters(letters: Sequence[Place], required: Iterable[Place], allowed: Iterable[Place]) -> list[Finding]:
    """One dead letter for each record that is no event, none for anything else; `allowed` ones may have one."""
    count = Counter(letters)
    needed = set(required)
    foreign = set(count) - needed - set(allowed)
    missing = needed - set(count)
    twice = [place for place, number in count.items() if number > 1]
    return [
        Finding(Kind.DEAD_LETTERS, f"{len(places)} {what}, such as {sorted(places)[0]}")
        for what, places in (
            ("records have no dead letter", missing),
            ("records have several dead letters", twice),
            ("dead letters are of records that nobody poisoned", foreign),
        )
        if places
    ]


def _once(what: str, found: Sequence[int], expected: Iterable[int]) -> Iterator[Finding]:
    """Each number that is expected was found once."""
    count = Counter(found)
    for number in sorted({*expected} - set(count)):
        yield Finding(Kind.LOST, f"{what}: {number} is missing")
    for number in sorted(number for number, times in count.items() if times > 1):
        yield Finding(Kind.DOUBLED, f"{what}: {number} is there {count[number]} times")


def _interrupted(events: Sequence[Event]) -> set[int | None]:
    cancelled = {event.turn for event in events if isinstance(event, Response) and event.kind is ResponseKind.CANCELLED}
    barged = {event.turn for event in events if isinstance(event, Control) and event.kind is ControlKind.BARGE_IN}
    return {*cancelled, *barged}


def _ends_at(events: Sequence[Event], turn: int) -> int | None:
    """How many samples the turn's speech has, by its end; None before that is there."""
    ends = (e for e in events if isinstance(e, SpeechChunk) and e.kind is SpeechChunkKind.END_OF_TURN)
    return next((event.sample_index for event in ends if event.turn == turn), None)


def kinds(findings: Iterable[Finding]) -> Callable[[Kind], int]:
    """Counts findings by kind."""
    count = Counter(finding.kind for finding in findings)
    return lambda kind: count[kind]
