"""What the log says of sessions, read back when their gateway did not live to tell.

Only the end of a call is read, however long it has lasted: windows that reach back further and further until they hold
what is needed. Sessions that are asked for together are read together, since a gateway that dies loses all its calls
at once.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.event import Event
from schemas.events import (
    AudioFrame,
    Control,
    ControlKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    SpeechChunk,
)
from streams.client import Partition
from streams.clock import Clock
from streams.codec import Codec, CodecError
from streams.consumer import END, LogReader, Record, read_range
from streams.keys import partition_of
from streams.settings import Settings

TEXTS = ("voice.control", "voice.transcripts", "voice.intents", "voice.responses")
# Records are stamped by the machines that write them.
CLOCK_SKEW_MS = 5000
TEXTS_MS = 150_000
AUDIO_MS = 4000
WIDER = 4
TOGETHER_S = 0.01
_NAME = "trunkline.api.history"


class Dated(NamedTuple):
    """An event and when it was written, in milliseconds since the epoch."""

    at_ms: int
    event: Event


class Wanted(NamedTuple):
    """A session to be read: `since_us` is not after its first event; speech is wanted from `turn` on, though heard."""

    session_id: str
    since_us: int
    turn: int | None = None


@dataclass(slots=True)
class Marks:
    """How far a session's events have come: numbers of the next ones, and the index of the caller's next sample."""

    frame: int = 0
    sample_index: int = 0
    control: int = 0
    session: int = 0
    turn: int = 0


@dataclass(slots=True)
class History:
    """The end of a session's log. `last_frame_ms` is when the newest caller's audio was written, 0 without any."""

    started: Session
    ended: Session | None
    marks: Marks
    last_frame_ms: int = 0
    events: list[Dated] = field(default_factory=list)

    @property
    def hang_up_asked(self) -> bool:
        """Whether somebody wanted the call ended while nobody served it."""
        return any(
            isinstance(event, Control) and event.kind is ControlKind.HANG_UP and event.reason == "requested"
            for _, event in self.events
        )

    @property
    def transfer_target(self) -> str:
        """Whom the caller is handed on to; empty where to nobody."""
        targets = [e.target for _, e in self.events if isinstance(e, Control) and e.kind is ControlKind.TRANSFER]
        return targets[-1] if targets and self.ended is not None and self.ended.reason == "transferred" else ""


@dataclass(slots=True)
class _Draft:
    """What has been read of one session so far."""

    wanted: Wanted
    number: int
    sessions: list[Dated] = field(default_factory=list)
    texts: list[Dated] = field(default_factory=list)
    speech: list[Dated] = field(default_factory=list)
    frame: Dated | None = None

    def add(self, record: Record, event: Event) -> None:
        dated = Dated(record.timestamp_ms, event)
        if isinstance(event, Session):
            self.sessions.append(dated)
        elif isinstance(event, AudioFrame):
            if self.frame is None or _end(event) > _end(self.frame.event):
                self.frame = dated
        elif isinstance(event, SpeechChunk):
            self.speech.append(dated)
        else:
            self.texts.append(dated)

    @property
    def since_ms(self) -> int:
        return self.wanted.since_us // 1000 - CLOCK_SKEW_MS

    def open_turns(self) -> set[int]:
        """Turns whose speech the caller may not have heard to the end."""
        over = {event.turn for _, event in self.texts if _is_over(event)}
        turns = {event.turn for _, event in self.texts if isinstance(event, Response)}
        newest = self.wanted.turn
        return {turn for turn in turns if turn not in over or (newest is not None and turn >= newest)}

    def speech_from_ms(self) -> int | None:
        """When the first open turn began to be said; None where none is open."""
        turns = self.open_turns()
        begun = [at_ms for at_ms, event in self.texts if isinstance(event, Response) and event.turn in turns]
        return min(begun) - CLOCK_SKEW_MS if begun else None

    def texts_suffice(self) -> bool:
        """Whether the open turns, and the newest, are there from their first sentence on."""
        sentences = [e for _, e in self.texts if isinstance(e, Response) and e.kind is ResponseKind.SENTENCE]
        begun = {event.turn for event in sentences if event.sentence == 0}
        return bool(sentences) and all(event.turn in begun for event in sentences if event.turn in self.open_turns())

    def history(self) -> History | None:
        started = next((e for _, e in self.sessions if isinstance(e, Session) and e.kind is SessionKind.STARTED), None)
        if started is None:
            return None
        ended = next((e for _, e in self.sessions if isinstance(e, Session) and e.kind is SessionKind.ENDED), None)
        frame = self.frame.event if self.frame is not None else None
        controls = [event.seq for _, event in self.texts if isinstance(event, Control) and event.reason != "requested"]
        events = sorted([*self.texts, *self.speech], key=lambda dated: dated.at_ms)
        marks = Marks(
            frame=frame.seq + 1 if frame is not None else 0,
            sample_index=_end(frame) if frame is not None else 0,
            control=max(controls, default=-1) + 1,
            session=max(event.seq for _, event in self.sessions) + 1,
            turn=max((event.turn for _, event in [*self.sessions, *events]), default=0),
        )
        return History(started, ended, marks, self.frame.at_ms if self.frame is not None else 0, events)


class Histories:
    """Reads the histories of sessions; one reading at a time, of all that are wanted by then."""

    def __init__(self, settings: Settings, codec: Codec, clock: Clock) -> None:
        self._settings = settings
        self._codec = codec
        self._clock = clock
        self._wanted: dict[Wanted, asyncio.Future[History | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def of(self, wanted: Wanted) -> History | None:
        """The session's history; None where the log has no start of it. Raises LogError."""
        future = self._wanted.get(wanted)
        if future is None:
            future = self._wanted[wanted] = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._serve())
        return await asyncio.shield(future)

    async def open_sessions(self, numbers: Iterable[int], since_us: int) -> list[tuple[Session, Session]]:
        """Of the sessions in those partitions that began since and have not ended: the start, the newest resumption."""
        starts = {Partition("voice.sessions", number): since_us // 1000 for number in numbers}
        started: dict[str, Session] = {}
        held: dict[str, Session] = {}
        async for record in read_range(self._settings, await self._ranges(starts), _NAME):
            event = self._decoded(record)
            if isinstance(event, Session) and event.kind is SessionKind.ENDED:
                started.pop(event.session_id, None)
            elif isinstance(event, Session) and event.kind is SessionKind.STARTED:
                started[event.session_id] = event
            elif isinstance(event, Session) and event.reason == "resumed":
                held[event.session_id] = event
        return [(event, held.get(session_id, event)) for session_id, event in started.items()]

    async def life(self, session_id: str, since_us: int) -> tuple[Session | None, Session | None]:
        """The session's start and its end, as far as they are in the log and not before that time."""
        partition = Partition("voice.sessions", self._number(session_id))
        found: dict[SessionKind, Session] = {}
        async for record in read_range(self._settings, await self._ranges({partition: since_us // 1000}), _NAME):
            if record.key == session_id.encode() and isinstance(event := self._decoded(record), Session):
                found.setdefault(event.kind, event)
        return found.get(SessionKind.STARTED), found.get(SessionKind.ENDED)

    async def active_since(self, session_ids: Iterable[str], since_ms: int, topics: Iterable[str]) -> set[str]:
        """Those of the sessions of which something was written to the topics since then."""
        keys = {session_id.encode(): session_id for session_id in session_ids}
        numbers = {self._number(session_id) for session_id in keys.values()}
        starts = {Partition(topic, number): since_ms for topic in topics for number in numbers}
        records = read_range(self._settings, await self._ranges(starts), _NAME)
        return {keys[record.key] async for record in records if record.key in keys}

    async def _serve(self) -> None:
        await asyncio.sleep(TOGETHER_S)
        while self._wanted:
            asked, self._wanted = self._wanted, {}
            try:
                found = await self._read([_Draft(wanted, self._number(wanted.session_id)) for wanted in asked])
            except Exception as error:
                for future in asked.values():
                    future.set_exception(error)
                    future.exception()  # those who waited may be gone
                continue
            for wanted, future in asked.items():
                future.set_result(found[wanted])
        self._task = None

    def _number(self, session_id: str) -> int:
        return partition_of(session_id, self._settings.kafka.partitions)

    async def _read(self, drafts: list[_Draft]) -> Mapping[Wanted, History | None]:
        now_ms = self._clock.now_us() // 1000
        numbers = {draft.number for draft in drafts}
        starts = {Partition("voice.audio.in", number): now_ms - AUDIO_MS for number in numbers}
        starts |= {Partition(topic, number): now_ms - TEXTS_MS for topic in TEXTS for number in numbers}
        for draft in drafts:
            _earlier(starts, Partition("voice.sessions", draft.number), draft.since_ms)
        await self._collect(drafts, starts)
        known = [draft for draft in drafts if draft.history() is not None]
        await self._look_back(known, ("voice.audio.in",), now_ms, AUDIO_MS, lambda draft: draft.frame is not None)
        await self._look_back(known, TEXTS, now_ms, TEXTS_MS, _Draft.texts_suffice)
        speech: dict[Partition, int] = {}
        for draft in known:
            if (start_ms := draft.speech_from_ms()) is not None:
                _earlier(speech, Partition("voice.audio.out", draft.number), start_ms)
        await self._collect(known, speech)
        return {draft.wanted: draft.history() for draft in drafts}

    async def _look_back(
        self, drafts: list[_Draft], topics: Iterable[str], now_ms: int, reach_ms: int, enough: Callable[[_Draft], bool]
    ) -> None:
        """Reads further and further back for those that have not enough, to their beginnings at most."""
        while lacking := [draft for draft in drafts if not enough(draft) and draft.since_ms < now_ms - reach_ms]:
            before_ms, reach_ms = now_ms - reach_ms, reach_ms * WIDER
            wanted = {Partition(topic, draft.number) for topic in topics for draft in lacking}
            await self._collect(lacking, dict.fromkeys(wanted, now_ms - reach_ms), before_ms)

    async def _collect(
        self, drafts: list[_Draft], starts: Mapping[Partition, int], before_ms: int | None = None
    ) -> None:
        """Gives the drafts their records written from then on (milliseconds), or until `before_ms`."""
        if not starts:
            return
        keys = defaultdict(list)
        for draft in drafts:
            keys[draft.wanted.session_id.encode()].append(draft)
        async for record in read_range(self._settings, await self._ranges(starts, before_ms), _NAME):
            if record.key is not None and record.key in keys and (event := self._decoded(record)) is not None:
                for draft in keys[record.key]:
                    draft.add(record, event)

    async def _ranges(
        self, starts: Mapping[Partition, int], before_ms: int | None = None
    ) -> dict[Partition, tuple[int, int]]:
        """From times in milliseconds to offsets."""
        moments = defaultdict(list)
        for partition, start_ms in starts.items():
            moments[max(0, start_ms)].append(partition)
        first: dict[Partition, int] = {}
        async with LogReader(self._settings, _NAME) as reader:
            for start_ms, partitions in moments.items():
                first |= await reader.offsets_at(partitions, start_ms)
            last = dict.fromkeys(starts, END)
            if before_ms is not None:
                last = await reader.offsets_at(starts, before_ms)
        return {partition: (first[partition], last[partition]) for partition in starts}

    def _decoded(self, record: Record) -> Event | None:
        try:
            return self._codec.decode_keyed(record.topic, record.key, record.value)
        except CodecError:
            return None  # the stage that guards the topic reports it


def _earlier(starts: dict[Partition, int], partition: Partition, start_ms: int) -> None:
    starts[partition] = min(starts.get(partition, start_ms), start_ms)


def _end(event: Event) -> int:
    """The index of the sample after the frame's or chunk's last."""
    assert isinstance(event, AudioFrame)
    return event.sample_index + len(event.pcm) // 2


def is_heard_out(event: Event) -> bool:
    """Whether the event says that its turn's speech was heard to the end."""
    return isinstance(event, Control) and event.kind is ControlKind.PLAYOUT and event.reason == "end_of_turn"


def _is_over(event: Event) -> bool:
    """Whether the event says that its turn's speech was heard to the end, or cut."""
    return is_heard_out(event) or (isinstance(event, Control) and event.kind is ControlKind.BARGE_IN)
