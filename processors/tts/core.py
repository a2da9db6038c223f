"""The tts stage: sentences become speech, in order, each chunk as soon as the engine has made it.

A session has one sentence at the engine at a time, so that chunks need no sorting. After a crash, of this stage or an
engine, a sentence goes on where its chunks end: at the very sample where the same voice speaks on, else with the words
that are left (`Spoken.resumed`). What no engine can say goes out as text, so that a display can show it.

Sentences that are not committed are spoken as they come; whoever plays them holds them back. All sentences of one
answer have the same cause, and an answer has samples of its own: where one is void, the next begins at 0 again.

A worker of the llm that wakes up after it was replaced may answer a turn that has ended, and has one end alone. What it
says of a turn that was answered stays silent; where it had ended without a word, it is spoken, and ends the turn again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from processors.agents import Agent, Voice
from processors.engine import Speak, Spoken
from processors.stage import (
    Answered,
    Ask,
    Cancel,
    Drop,
    Emit,
    End,
    Failed,
    Happening,
    Outcome,
    Received,
    Speculated,
    Step,
    caused,
)
from schemas.event import Event
from schemas.events import (
    Control,
    ControlKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    SpeechChunk,
    SpeechChunkKind,
)

SAMPLE_RATE_HZ = 16_000
BYTES_A_SAMPLE = 2
# Engines cut their speech anew each time. Chunks are cut at places that the log decides, so that a chunk's id always
# means the same samples: two workers that speak the same sentence, one of them a straggler, make the same chunks.
# The first are short, so that the caller hears them at once; each of the others is as long as what was said before it,
# up to the longest, since every record costs the log and each reader of it the same, however little it holds. A
# sentence that comes while as much of those before it is still to be heard begins with a longer one.
CHUNK_BYTES = SAMPLE_RATE_HZ * BYTES_A_SAMPLE // 5
CHUNK_BYTES_MAX = 4 * CHUNK_BYTES
# People pause between sentences. The pause is `last_of_sentence`, with what is left of the speech and fills no chunk:
# none that is full waits to learn whether it is the last.
SENTENCE_PAUSE_MS = 100
ASK_S = 6.0
ANSWERS_MAX = 4  # that are known of at a time: a turn that still speaks, and revisions of the next
TRIES_MAX = 2

VoiceOf = Callable[[str], Voice]


@dataclass(frozen=True, slots=True)
class Speaking:
    """The sentence at the engine: how much of it is in the log, and how much of the present stream to leave out.

    `rest` is speech that does not fill a chunk yet; `model` made what was said last. `compute_ms` is model time that no
    chunk names yet. The first chunk has `first_bytes`.
    """

    sentence: Response
    ask_id: str
    tries: int = 1
    chunks: int = 0
    bytes_said: int = 0
    bytes_to_skip: int = 0
    rest: bytes = b""
    model: str = ""
    compute_ms: float = 0.0
    first_bytes: int = CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Answer:
    """How far the speech of an answer has come: the index of its next sample.

    `engine_ms` is what was spent on it before it was committed; `void` ones stay silent. `began_at` is when the first
    sentence came of it that is known, in microseconds since the epoch.
    """

    next_sample: int = 0
    engine_ms: float = 0.0
    void: bool = False
    began_at: int = 0

    def lead_bytes(self, at_us: int) -> int:
        """At least so much of its speech is still to be heard at that time; 0 where that is not known."""
        if not self.began_at:
            return 0
        return (self.next_sample - (at_us - self.began_at) * SAMPLE_RATE_HZ // 1_000_000) * BYTES_A_SAMPLE


@dataclass(frozen=True, slots=True)
class State:
    """Where speech stands.

    `answers` are the latest ones, by the id of their cause; turns up to `void_turn` were interrupted and stay silent.
    Turns up to `ended_turn` have ended, the last of them without a word where that is `ended_silent`.
    `queue` holds what waits behind the sentence at the engine: sentences, those that had been begun, ends of turns.
    """

    answers: Mapping[str, Answer] = field(default_factory=dict)
    void_turn: int = -1
    ended_turn: int = -1
    ended_silent: bool = False
    queue: tuple[Response | Speaking, ...] = ()
    speaking: Speaking | None = None

    def answer_to(self, response: Response) -> Answer:
        """The answer that the sentence is of."""
        return self.answers.get(_cause(response), Answer())

    def with_answer(self, response: Response, **changes: Any) -> "State":
        """The state with that of the answer changed; the oldest are forgotten."""
        answers = {**self.answers, _cause(response): replace(self.answer_to(response), **changes)}
        for cause in list(answers)[: -ANSWERS_MAX or None]:
            del answers[cause]
        return replace(self, answers=answers)


class TtsCore:
    """The pure core of the stage; see `processors.stage.Core`."""

    def __init__(self, voice_of: VoiceOf) -> None:
        self._voice_of = voice_of

    def start(self, session_id: str) -> State:
        """See `Core`."""
        return State()

    def apply(self, state: State, happening: Happening, now_us: int) -> Step[State]:
        """See `Core`."""
        match happening:
            case Received(Response() as response, _, recorded):
                return self._response(state, response, recorded, now_us)
            case Received(Control(kind=ControlKind.BARGE_IN) as barge_in):
                return self._void(state, barge_in.turn, now_us)
            case Received(Session(kind=SessionKind.ENDED)):
                return Step(state, (End(),))
            case Received(Control(kind=ControlKind.ERASE | ControlKind.ERASED)):
                return Step(state, (End(),))
            case Answered(ask_id, reply, last) if state.speaking is not None and state.speaking.ask_id == ask_id:
                return self._spoken(state, state.speaking, reply, last, now_us)
            case Failed(ask_id) if state.speaking is not None and state.speaking.ask_id == ask_id:
                return self._failed(state, state.speaking, now_us)
            case _:
                return Step(state)

    def _response(self, state: State, response: Response, recorded: tuple[Event, ...], now_us: int) -> Step[State]:
        match response.kind:
            case ResponseKind.SENTENCE if response.turn <= state.void_turn or state.answer_to(response).void:
                return Step(state, (Drop("interrupted_turn"),))
            case ResponseKind.SENTENCE if response.turn < state.ended_turn or (
                response.turn == state.ended_turn and not state.ended_silent
            ):
                return Step(state, (Drop("ended_turn"),))
            case ResponseKind.SENTENCE:
                return self._sentence(state, response, recorded, now_us)
            case ResponseKind.COMPLETED:
                return self._completed(state, response, now_us)
            case ResponseKind.CANCELLED if not response.committed:
                return self._leave(state, response, now_us)
            case ResponseKind.CANCELLED:
                voided = self._void(state, response.turn, now_us)
                return Step(voided.state, (*voided.outcomes, Emit(_end_of_turn(response, voided.state, now_us))))
            case _:
                return Step(state)

    def _completed(self, state: State, response: Response, now_us: int) -> Step[State]:
        if response.turn > state.ended_turn:
            state = replace(state, ended_turn=response.turn, ended_silent=response.sentence == 0)
        if response.turn > state.void_turn:
            return self._next(replace(state, queue=(*state.queue, response)), now_us)
        return Step(state, (Emit(_end_of_turn(response, state, now_us)),))

    def _sentence(self, state: State, sentence: Response, recorded: tuple[Event, ...], now_us: int) -> Step[State]:
        begun = (Speculated("begun"),) if not sentence.committed and _cause(sentence) not in state.answers else ()
        answer = state.answer_to(sentence)
        state = state.with_answer(sentence, began_at=answer.began_at if answer.next_sample else sentence.occurred_at)
        chunks = [event for event in recorded if isinstance(event, SpeechChunk)]
        end = (replace(sentence, kind=ResponseKind.COMPLETED),) if sentence.turn == state.ended_turn else ()
        if not chunks:
            step = self._next(replace(state, queue=(*state.queue, sentence, *end)), now_us)
            return Step(step.state, (*begun, *step.outcomes))
        said = sum(len(chunk.pcm) for chunk in chunks)
        next_sample = max(chunk.sample_index + len(chunk.pcm) // BYTES_A_SAMPLE for chunk in chunks)
        state = state.with_answer(sentence, next_sample=max(state.answer_to(sentence).next_sample, next_sample))
        if any(chunk.last_of_sentence for chunk in chunks):
            return Step(state)
        model = next((chunk.model for chunk in reversed(chunks) if chunk.model), "")
        speaking = Speaking(sentence, _ask_id(sentence, 1), 1, len(chunks), said, said, model=model)
        if state.speaking is not None:
            # Two had been begun where the first was cut short, of which this worker has yet to read.
            return Step(replace(state, queue=(*state.queue, speaking, *end)))
        state = replace(state, speaking=speaking, queue=(*state.queue, *end))
        return Step(state, (*begun, self._speak(speaking)))

    def _next(self, state: State, now_us: int) -> Step[State]:
        """Takes from the queue until a sentence is at the engine or nothing waits."""
        outcomes: list[Outcome] = []
        while state.speaking is None and state.queue:
            first, *rest = state.queue
            state = replace(state, queue=tuple(rest))
            if isinstance(first, Response) and first.kind is ResponseKind.COMPLETED:
                if engine_ms := state.answer_to(first).engine_ms:
                    outcomes.append(Speculated("used", engine_ms))
                outcomes.append(Emit(_end_of_turn(first, state, now_us)))
            else:
                speaking = first if isinstance(first, Speaking) else _speaking(state, first)
                state = replace(state, speaking=speaking)
                outcomes.append(self._speak(speaking))
        return Step(state, tuple(outcomes))

    def _speak(self, speaking: Speaking) -> Ask:
        voice = self._voice_of(speaking.sentence.agent_id)
        text, heard = speaking.sentence.text, speaking.bytes_said
        request = Speak(
            text,
            voice.name,
            voice.speed,
            voice.language or "en",
            heard_bytes=heard,
            heard_model=speaking.model if heard else "",
        )
        return Ask(speaking.ask_id, "tts", request, ASK_S, speaking.sentence.turn)

    def _spoken(self, state: State, speaking: Speaking, reply: Spoken | None, last: bool, now_us: int) -> Step[State]:
        outcomes: list[Outcome] = []
        if reply is not None:
            if not speaking.sentence.committed:
                engine_ms = state.answer_to(speaking.sentence).engine_ms + reply.compute_ms
                state = state.with_answer(speaking.sentence, engine_ms=engine_ms)
            if reply.resumed:
                speaking = replace(speaking, bytes_to_skip=0)
            skipped = reply.pcm[: speaking.bytes_to_skip]
            speaking = replace(
                speaking,
                bytes_to_skip=speaking.bytes_to_skip - len(skipped),
                rest=speaking.rest + reply.pcm[len(skipped) :],
                compute_ms=speaking.compute_ms + reply.compute_ms,
            )
            while (size := _size_of_next(speaking)) <= len(speaking.rest):
                state, speaking, event = _chunk(state, speaking, size, now_us, model=reply.model)
                outcomes.append(Emit(event))
            speaking = replace(speaking, model=reply.model)
        state = replace(state, speaking=speaking)
        if not last:
            return Step(state, tuple(outcomes))
        return self._finish(state, speaking, outcomes, now_us)

    def _finish(self, state: State, speaking: Speaking, outcomes: list[Outcome], now_us: int) -> Step[State]:
        if not speaking.bytes_said and not speaking.rest:
            return self._failed(state, speaking, now_us)
        model = speaking.model if speaking.rest else ""
        pause = bytes(SENTENCE_PAUSE_MS * SAMPLE_RATE_HZ // 1000 * BYTES_A_SAMPLE)
        speaking = replace(speaking, rest=speaking.rest + pause)
        state, _, event = _chunk(state, speaking, len(speaking.rest), now_us, model=model, last_of_sentence=True)
        following = self._next(replace(state, speaking=None), now_us)
        return Step(following.state, (*outcomes, Emit(event), *following.outcomes))

    def _failed(self, state: State, speaking: Speaking, now_us: int) -> Step[State]:
        """Once more from where it stopped; then the words go out as text, so that a display can show them."""
        sentence = speaking.sentence
        if speaking.tries < TRIES_MAX:
            tries = speaking.tries + 1
            again = replace(
                speaking,
                ask_id=_ask_id(sentence, tries),
                tries=tries,
                bytes_to_skip=speaking.bytes_said,
                rest=b"",
            )
            return Step(replace(state, speaking=again), (self._speak(again),))
        text = caused(
            sentence,
            SpeechChunk,
            "text",
            now_us,
            kind=SpeechChunkKind.TEXT,
            text=sentence.text,
            sentence=sentence.sentence,
            sample_index=state.answer_to(sentence).next_sample,
            last_of_sentence=True,
            revision=sentence.revision,
            committed=sentence.committed,
            speech_ended_at=sentence.speech_ended_at,
        )
        following = self._next(replace(state, speaking=None), now_us)
        return Step(following.state, (Emit(text), *following.outcomes))

    def _leave(self, state: State, cancelled: Response, now_us: int) -> Step[State]:
        """Silences one answer, which was not committed and will not be."""
        cause = _cause(cancelled)
        outcomes: list[Outcome] = [Speculated("void", state.answer_to(cancelled).engine_ms)]
        state = state.with_answer(cancelled, void=True)
        state, stopped = _without(state, lambda response: _cause(response) == cause)
        following = self._next(state, now_us)
        return Step(following.state, (*outcomes, *stopped, *following.outcomes))

    def _void(self, state: State, turn: int, now_us: int) -> Step[State]:
        """Silences that turn and those before it, whatever has been queued of them; of each the end is told."""
        state = replace(state, void_turn=max(state.void_turn, turn))
        ends = [
            Emit(_end_of_turn(item, state, now_us))
            for item in state.queue
            if isinstance(item, Response) and item.kind is ResponseKind.COMPLETED and item.turn <= turn
        ]
        state, stopped = _without(state, lambda response: response.turn <= turn)
        following = self._next(state, now_us)
        return Step(following.state, (*stopped, *ends, *following.outcomes))

    def save(self, state: State) -> bytes:
        """The answers' positions; nothing waits while no ask is open."""
        if not state.answers and state.void_turn < 0 and state.ended_turn < 0:
            return b""
        return msgspec.msgpack.encode(
            _Durable(state.void_turn, dict(state.answers), state.ended_turn, state.ended_silent)
        )

    def load(self, session_id: str, data: bytes) -> State:
        """See `Core`."""
        if not data:
            return State()
        durable = msgspec.msgpack.decode(data, type=_Durable)
        return State(durable.answers, durable.void_turn, durable.ended_turn, durable.ended_silent)


class _Durable(msgspec.Struct, frozen=True):
    void_turn: int
    answers: dict[str, Answer]
    ended_turn: int = -1
    ended_silent: bool = False


def _response(item: Response | Speaking) -> Response:
    return item.sentence if isinstance(item, Speaking) else item


def _without(state: State, silenced: Callable[[Response], bool]) -> tuple[State, list[Outcome]]:
    """The state without what is silenced, and what stops the engine if that was at it."""
    state = replace(state, queue=tuple(item for item in state.queue if not silenced(_response(item))))
    if state.speaking is None or not silenced(state.speaking.sentence):
        return state, []
    return replace(state, speaking=None), [Cancel(state.speaking.ask_id)]


def _cause(response: Response) -> str:
    """What all of one answer has in common: the record that it answers."""
    return response.causation_id or f"turn {response.turn}"


def _ask_id(sentence: Response, tries: int) -> str:
    return f"{sentence.event_id}/{tries}"


def _speaking(state: State, sentence: Response) -> Speaking:
    """The sentence as it goes to the engine for the first time."""
    lead_bytes = state.answer_to(sentence).lead_bytes(sentence.occurred_at)
    # As long as a chunk behind so much of the same sentence.
    first_bytes = max(CHUNK_BYTES, chunk_end(min(lead_bytes, CHUNK_BYTES_MAX)) // 2)
    return Speaking(sentence, _ask_id(sentence, 1), first_bytes=first_bytes)


def _size_of_next(speaking: Speaking) -> int:
    return chunk_end(speaking.bytes_said) - speaking.bytes_said if speaking.chunks else speaking.first_bytes


def chunk_end(said_bytes: int) -> int:
    """Where the chunk ends that begins, or goes on, there: after 0.2, 0.4, 0.8 s of the sentence, then every 0.8 s."""
    if said_bytes >= CHUNK_BYTES_MAX:
        return (said_bytes // CHUNK_BYTES_MAX + 1) * CHUNK_BYTES_MAX
    end = CHUNK_BYTES
    while end <= said_bytes:
        end *= 2
    return end


def _chunk(
    state: State, speaking: Speaking, size: int, now_us: int, *, model: str = "", last_of_sentence: bool = False
) -> tuple[State, Speaking, SpeechChunk]:
    """Takes the next chunk, so many bytes, from what is at hand."""
    sentence, pcm = speaking.sentence, speaking.rest[:size]
    event: SpeechChunk = caused(
        sentence,
        SpeechChunk,
        f"chunk-{speaking.chunks}",
        now_us,
        kind=SpeechChunkKind.AUDIO,
        pcm=pcm,
        sample_index=state.answer_to(sentence).next_sample,
        sentence=sentence.sentence,
        last_of_sentence=last_of_sentence,
        text=sentence.text if speaking.chunks == 0 else "",
        revision=sentence.revision,
        committed=sentence.committed,
        speech_ended_at=sentence.speech_ended_at,
        model=model,
        compute_ms=speaking.compute_ms,
    )
    state = state.with_answer(sentence, next_sample=event.sample_index + len(pcm) // BYTES_A_SAMPLE)
    speaking = replace(
        speaking,
        chunks=speaking.chunks + 1,
        bytes_said=speaking.bytes_said + len(pcm),
        rest=speaking.rest[size:],
        compute_ms=0.0,
    )
    return state, speaking, event


def _end_of_turn(response: Response, state: State, now_us: int) -> SpeechChunk:
    event: SpeechChunk = caused(
        response,
        SpeechChunk,
        "end-of-turn",
        now_us,
        kind=SpeechChunkKind.END_OF_TURN,
        sample_index=state.answer_to(response).next_sample,
        sentence=response.sentence,
        revision=response.revision,
        committed=response.committed,
        speech_ended_at=response.speech_ended_at,
    )
    return event


def create_core(agents: Mapping[str, Agent]) -> TtsCore:
    """The core with the agents' voices; an unknown agent speaks with the engine's default voice."""

    def voice_of(agent_id: str) -> Voice:
        agent = agents.get(agent_id)
        return agent.voice.model_copy(update={"language": agent.spoken_language}) if agent is not None else Voice()

    return TtsCore(voice_of)
