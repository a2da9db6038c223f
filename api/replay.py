"""A call's playback rebuilt from its log, pure: what the caller has, and what is to be sent now.

Time in the log is milliseconds since the epoch; the playback's is monotonic. What was written while the caller was
away is played from now on.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from api.dialects.dialect import Received, Resume
from api.history import Dated, History, is_heard_out
from api.playback import Effect, Playback, Tell, committed_revision
from api.track import SAMPLES_PER_MS
from schemas.event import Event
from schemas.events import (
    Control,
    ControlKind,
    Intent,
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)

# Where nobody says what has been heard, this much is said again, rather than left out.
AGAIN_MS = 200
_ALL = 2**62
_ENDS = (ResponseKind.COMPLETED, ResponseKind.CANCELLED)


@dataclass(slots=True)
class Replayed:
    """`missed` are to be shown, `cut` turns to be cleared again (with what had been heard), `effects` performed."""

    playback: Playback
    missed: list[Event] = field(default_factory=list)
    cut: dict[int, int] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)


def replay(
    history: History,
    ask: Resume,
    now_ms: float,
    wall_ms: float,
    barge_in_ms: int = 1500,
    lead_ms: int = 5000,
) -> Replayed:
    """The playback as of now. Who does not know what it received has what had been played at its last audio."""
    received, event_ids = ask.received, ask.event_ids
    dated, held = _released(_without_repeats(history.events))
    offset_ms = now_ms - wall_ms
    cut = {e.turn: e.heard_ms for _, e in dated if isinstance(e, Control) and e.kind is ControlKind.BARGE_IN}
    over = {e.turn for _, e in dated if is_heard_out(e)}
    if received is None:
        scratch = Playback(barge_in_ms)
        scratch.settle(over, cut)
        received = _played(scratch, dated, history.last_frame_ms, offset_ms)
    waiting, begun = _split(dated, received, event_ids)
    over -= {event.turn for event in waiting if event.kind is SpeechChunkKind.AUDIO}
    playback = Playback(barge_in_ms, lead_ms)
    playback.settle(over, cut)
    replayed = Replayed(playback, cut={turn: heard for turn, heard in cut.items() if turn >= received.turn})
    for at_ms, event in begun:
        replayed.effects += playback.recall(event, min(at_ms + offset_ms, now_ms))
    replayed.effects += playback.resume(now_ms)
    if ask.heard is not None:
        replayed.effects += playback.playout(ask.heard.turn, ask.heard.heard_ms, now_ms)
    replayed.missed = _missed(dated, event_ids, history.last_frame_ms)
    for event in waiting:
        if event.kind is SpeechChunkKind.AUDIO or event.event_id not in event_ids:
            replayed.effects += playback.event(event, now_ms)
        else:
            replayed.effects += [e for e in playback.event(event, now_ms) if not isinstance(e, Tell)]
    for event in held:
        replayed.effects += playback.event(event, now_ms)
    return replayed


def _without_repeats(dated: Sequence[Dated]) -> list[Dated]:
    """The first event with an id is the truth."""
    first: dict[str, Dated] = {}
    for entry in dated:
        first.setdefault(entry.event.event_id, entry)
    return list(first.values())


def _released(dated: Sequence[Dated]) -> tuple[list[Dated], list[Event]]:
    """What was let pass, when it was; and what waits for the caller's words to be final. Void things are left out."""
    committed: dict[int, tuple[int, int]] = {}
    readings: dict[int, Transcript] = {}
    for at_ms, event in dated:
        if isinstance(event, Transcript) and event.kind is TranscriptKind.PARTIAL:
            readings[event.turn] = event
        elif isinstance(event, Transcript) and event.kind is TranscriptKind.FINAL:
            committed[event.turn] = committed_revision(readings.get(event.turn), event), at_ms
    for at_ms, event in dated:
        if isinstance(event, Response) and event.kind in _ENDS and event.committed:
            # Where the final is older than what was read back.
            committed.setdefault(event.turn, (event.revision, at_ms))
    passed: list[Dated] = []
    held: list[Event] = []
    for at_ms, event in dated:
        if not isinstance(event, Response | SpeechChunk | Intent) or event.committed:
            passed.append(Dated(at_ms, event))
        elif isinstance(event, Intent):
            continue
        elif event.turn not in committed:
            held.append(event)
        elif event.revision == committed[event.turn][0]:
            passed.append(Dated(max(at_ms, committed[event.turn][1]), replace(event, committed=True)))
    return sorted(passed, key=lambda entry: entry.at_ms), held


def _played(scratch: Playback, dated: Sequence[Dated], last_ms: int, offset_ms: float) -> Received:
    """By the clock, less a little: how much of the turn in progress had been played when the last audio came."""
    said = -1
    confirmed: dict[int, int] = {}
    for at_ms, event in dated:
        if isinstance(event, Control) and event.kind is ControlKind.PLAYOUT:
            confirmed[event.turn] = max(event.heard_ms, confirmed.get(event.turn, 0))
        if at_ms > last_ms:
            continue
        scratch.recall(event, at_ms + offset_ms)
        if isinstance(event, SpeechChunk):
            said = max(said, event.turn)
    current = scratch.heard_until(last_ms + offset_ms)
    if current is None:
        return Received(said, _ALL)
    turn, heard_ms = current
    heard_ms = max(heard_ms - AGAIN_MS, confirmed.get(turn, 0), 0)
    return Received(turn, round(heard_ms) * SAMPLES_PER_MS)


def _split(
    dated: Sequence[Dated], received: Received, event_ids: Collection[str]
) -> tuple[list[SpeechChunk], list[Dated]]:
    """The speech that the caller's side lacks, in order, and all else; a chunk of which it has a part is cut in two."""
    waiting: list[SpeechChunk] = []
    begun: list[Dated] = []
    for at_ms, event in dated:
        if not isinstance(event, SpeechChunk) or event.turn < received.turn:
            begun.append(Dated(at_ms, event))
        elif event.kind is not SpeechChunkKind.AUDIO:
            known = event.event_id in event_ids and all(chunk.turn != event.turn for chunk in waiting)
            (begun.append(Dated(at_ms, event)) if known else waiting.append(event))
        else:
            size = len(event.pcm) // 2
            position = received.sample_index if event.turn == received.turn else 0
            has = min(max(position - event.sample_index, 0), size)
            if has:
                last = event.last_of_sentence and has == size
                begun.append(Dated(at_ms, replace(event, pcm=event.pcm[: 2 * has], last_of_sentence=last)))
            if has < size:
                waiting.append(replace(event, pcm=event.pcm[2 * has :], sample_index=event.sample_index + has))
    return waiting, begun


def _missed(dated: Sequence[Dated], event_ids: Collection[str], last_ms: int) -> list[Event]:
    """Events to show that came, on their topic, after the last one that the caller's side knows.

    Where it knows none of a topic, those that came after the last audio from it.
    """
    shown = [(at_ms, e) for at_ms, e in dated if isinstance(e, Transcript | Intent | Response)]
    newest: dict[str, int] = {}
    for index, (_, event) in enumerate(shown):
        if event.event_id in event_ids:
            newest[event.TOPIC] = index
    missed: list[Event] = []
    for index, (at_ms, event) in enumerate(shown):
        known = newest.get(event.TOPIC)
        stale = isinstance(event, Transcript) and event.kind is TranscriptKind.PARTIAL and index < len(shown) - 1
        if not stale and (index > known if known is not None else at_ms > last_ms):
            missed.append(event)
    return missed
