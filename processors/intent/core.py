"""The intent stage: which of the agent's intents a final transcript means, and the values in it.

The text and each of its sentences are compared with the agent's example phrases by sentence embedding; an intent's
score is that of its best example. `none` is an answer. Where the embeddings cannot be had, the words that examples
share with the text decide (`keywords.py`), with a confidence that says so.

The words at a hesitation pause are judged ahead: the intent goes out with `committed` false, and whoever goes on from
it holds what it makes back. A final of the same revision and words takes that judgement over, so that nobody judges
the same words in two ways; where the caller goes on instead, it is `withdrawn`. The partial is held until one or the
other, so that after a crash the same is known of it.

A caller who goes on right after a final has heard no reply to it: the turn was not over, and what is said next is
judged together with it, once the final is known to mean nothing that has an effect.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from processors.agents import NONE_INTENT, Agent
from processors.engine import Embed, Embedded
from processors.intent import keywords
from processors.intent.entities import extract
from processors.intent.sentiment import sentiment
from processors.stage import (
    ABANDONED,
    Answered,
    Ask,
    Cancel,
    Drop,
    Emit,
    End,
    Failed,
    Happening,
    Hold,
    Outcome,
    Position,
    Received,
    Refuse,
    Release,
    Speculated,
    Step,
    Woken,
    abandonment,
    caused,
    event_id,
)
from schemas.events import Alternative, Intent, IntentKind, Session, SessionKind, Transcript, TranscriptKind

ALTERNATIVES_MAX = 3
ASK_S = 2.0
# Cosine similarity of MiniLM below which two sentences have nothing to do with each other, and from which they agree.
SIMILARITY_NONE, SIMILARITY_SURE = 0.25, 0.75
# Speech that begins so soon after a final is no answer to a reply: until then there is next to nothing to hear of one.
JOIN_MS = 250


@dataclass(frozen=True, slots=True)
class Examples:
    """An agent's example phrases: `vectors` is float32 (n, d), unit rows; `intents` names each row's intent."""

    intents: tuple[str, ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ahead:
    """Words that the caller may still add to; `intent` is what they were judged to mean, once that is known."""

    partial: Transcript
    position: Position
    intent: Intent | None = None

    def is_committed_by(self, final: Transcript) -> bool:
        """Whether what was begun for these words is the beginning of the answer to the final."""
        return _words(self.partial) == _words(final)


@dataclass(frozen=True, slots=True)
class Said:
    """The words of a final, with those it was judged together with; `until_ms` of the caller's audio it took."""

    text: str
    turn: int
    until_ms: int

    def goes_on_in(self, transcript: Transcript) -> bool:
        """Whether the caller had not finished after all."""
        return transcript.turn == self.turn + 1 and 0 <= transcript.audio_start_ms - self.until_ms <= JOIN_MS


@dataclass(frozen=True, slots=True)
class State:
    """Transcripts whose embedding has been asked for, by ask id; what was judged ahead; what was said last.

    A transcript in `pending` has the words of the turn before it, too, where it goes on with that.
    """

    pending: Mapping[str, Transcript]
    ahead: Ahead | None = None
    said: Said | None = None


class IntentCore:
    """The pure core of the stage; see `processors.stage.Core`."""

    def __init__(
        self,
        agents: Mapping[str, Agent],
        examples: Mapping[str, Examples],
        speculates: Callable[[], bool] = lambda: True,
    ) -> None:
        """`speculates` says whether there is time to spare for what may be in vain.

        It decides for all stages: they go ahead with what is judged ahead. A repeated step may find it otherwise.
        """
        self._agents = agents
        self._examples = examples
        self._speculates = speculates

    def start(self, session_id: str) -> State:
        """See `Core`."""
        return State({})

    def apply(self, state: State, happening: Happening, now_us: int) -> Step[State]:
        """See `Core`."""
        match happening:
            case Received(Transcript() as transcript, position, recorded):
                return self._transcript(state, transcript, position, recorded, now_us)
            case Received(Session(kind=SessionKind.ENDED)):
                return Step(state, (End(),))
            case Woken(name) if name == ABANDONED:
                state, outcomes = _leave(state)
                return Step(state, tuple(outcomes))
            case Answered(ask_id, Embedded() as embedded, _) if ask_id in state.pending and self._fits(embedded):
                heard = state.pending[ask_id]
                scores = similarities(self._examples[heard.agent_id], embedded)
                model, compute_ms = embedded.model, embedded.compute_ms
            case Answered(ask_id) | Failed(ask_id) if ask_id in state.pending:
                heard = state.pending[ask_id]
                scores = keywords.scores(self._agents[heard.agent_id], heard.text)
                model, compute_ms = keywords.MODEL, 0.0
            case _:
                return Step(state)
        intent = self._judged(heard, scores, now_us, model=model, compute_ms=compute_ms)
        ahead = state.ahead
        if ahead is not None and ahead.partial.event_id == heard.event_id:
            ahead = replace(ahead, intent=intent)
        state = replace(state, pending=_without(state.pending, ask_id), ahead=ahead)
        return Step(self._settled(state, intent), (Emit(intent),))

    def _transcript(
        self, state: State, transcript: Transcript, position: Position, recorded: tuple[Any, ...], now_us: int
    ) -> Step[State]:
        match transcript.kind:
            case TranscriptKind.PARTIAL if transcript.pause_ms > 0 and transcript.text.strip():
                return self._judge_ahead(state, transcript, position, recorded, now_us)
            case TranscriptKind.SPEECH_RESUMED:
                return self._withdraw(state, transcript, now_us)
            case TranscriptKind.FINAL:
                return self._final(state, transcript, recorded, now_us)
            case _:
                return Step(state)

    def _judge_ahead(
        self, state: State, partial: Transcript, position: Position, recorded: tuple[Any, ...], now_us: int
    ) -> Step[State]:
        """What the log already holds of it was begun, whatever there is time for now.

        Where the log has it only withdraw the partial before it, there was no time, and it stays at that: whoever reads
        the withdrawal takes everything up to its revision for void.
        """
        agent = self._agents.get(partial.agent_id)
        if agent is None or not agent.pauses.speculate:
            return Step(state)
        intent = _detected(recorded)
        if intent is None and (recorded or not self._speculates()):
            step = self._withdraw(state, partial, now_us)  # of the same turn: it is superseded
            return Step(step.state, (*step.outcomes, Drop("no_time_to_speculate")))
        state, outcomes = _leave(state)
        outcomes += [Hold(), Speculated("begun"), abandonment(now_us)]
        state = replace(state, ahead=Ahead(partial, position, intent))
        if intent is None:
            state, ask = _asked(state, partial)
            outcomes.append(ask)
        return Step(state, tuple(outcomes))

    def _withdraw(self, state: State, resumed: Transcript, now_us: int) -> Step[State]:
        """Gives up what was begun for revisions up to that one."""
        ahead = state.ahead
        if ahead is None or ahead.partial.turn != resumed.turn or ahead.partial.revision > resumed.revision:
            return Step(state)
        state, outcomes = _leave(state)
        if ahead.intent is not None:
            fields = {"intent": NONE_INTENT, "confidence": 0.0, "committed": False}
            fields |= {"utterance": resumed.utterance, "revision": resumed.revision}
            outcomes.append(Emit(caused(resumed, Intent, "withdrawn", now_us, kind=IntentKind.WITHDRAWN, **fields)))
        return Step(state, tuple(outcomes))

    def _final(self, state: State, final: Transcript, recorded: tuple[Any, ...], now_us: int) -> Step[State]:
        ahead, known = state.ahead, _detected(recorded)
        if ahead is not None and ahead.is_committed_by(final):
            return self._commit(state, ahead, final, known, now_us)
        state, outcomes = _leave(state)
        text = known.text if known is not None else _whole(state, final).text
        step = Step(state) if recorded else self._judge(state, final, now_us)
        return Step(self._settled(_after(step.state, final, text), known), (*outcomes, *step.outcomes))

    def _commit(self, state: State, ahead: Ahead, final: Transcript, known: Intent | None, now_us: int) -> Step[State]:
        """What was judged ahead is the final's, with the words that it was judged with; `known` is what the log has."""
        pending, ask_id = dict(state.pending), ahead.partial.event_id
        judged = known or ahead.intent
        text = judged.text if judged is not None else pending[ask_id].text
        engine_ms = ahead.intent.compute_ms if ahead.intent is not None else 0.0
        done: list[Outcome] = [Speculated("used", engine_ms), _release(ahead)]
        if ahead.intent is not None:
            done.append(Emit(_committed(ahead.intent, final, now_us)))
        elif known is not None:
            del pending[ask_id]
            done.append(Cancel(ask_id))
        else:
            # The answer that is on its way is the final's.
            pending[ask_id] = replace(final, text=text)
        state = _after(replace(state, pending=pending, ahead=None), final, text)
        return Step(self._settled(state, judged), tuple(done))

    def _settled(self, state: State, intent: Intent | None) -> State:
        """What may have had its effect by the time the caller goes on is not judged again.

        None stands for what is still to be judged. A recorded intent may be of an agent that there is no more.
        """
        said, agent = state.said, self._agents.get(intent.agent_id) if intent is not None else None
        if said is None or intent is None or agent is None or said.turn != intent.turn:
            return state
        spec = agent.intent(intent.intent)
        acts = spec is not None and spec.tool is not None and agent.tool(spec.tool).effect == "write"
        return replace(state, said=None) if acts else state

    def _fits(self, embedded: Embedded) -> bool:
        """Whether the vectors are of the model that the examples were embedded with."""
        return all(embedded.dimensions == one.vectors.shape[1] for one in self._examples.values())

    def _judge(self, state: State, final: Transcript, now_us: int) -> Step[State]:
        """Asks for the meaning of the words; what no engine could read means nothing, and is answered all the same."""
        if final.agent_id not in self._agents:
            return Step(state, (Refuse("unknown_agent", "agent_id: the name of an agent's file is expected"),))
        if final.failure and not final.text:
            return Step(state, (Emit(self._judged(final, {}, now_us)),))
        if not final.text.strip():
            return Step(state, (Drop("no_words"),))
        state, ask = _asked(state, final)
        return Step(state, (ask,))

    def _judged(self, final: Transcript, scores: Mapping[str, float], now_us: int, **model: Any) -> Intent:
        agent = self._agents[final.agent_id]
        ranked = sorted(scores.items(), key=lambda pair: -pair[1])
        name, confidence = ranked[0] if ranked else (NONE_INTENT, 0.0)
        others = ranked[1 : 1 + ALTERNATIVES_MAX]
        if confidence < agent.limits.confidence_min:
            others = ranked[:ALTERNATIVES_MAX]
            name, confidence = NONE_INTENT, 1.0 - confidence
        event: Intent = caused(
            final,
            Intent,
            "detected",
            now_us,
            kind=IntentKind.DETECTED,
            intent=name,
            confidence=confidence,
            alternatives=tuple(Alternative(intent=other, confidence=score) for other, score in others),
            entities=extract(final.text, agent.entities, final.occurred_at),
            sentiment=sentiment(final.text),
            text=final.text,
            utterance=final.utterance,
            revision=final.revision,
            committed=final.kind is TranscriptKind.FINAL,
            speech_ended_at=final.speech_ended_at,
            **model,
        )
        return event

    def save(self, state: State) -> bytes:
        """What is pending is redone from its transcript; `said` counts for a moment only, and is not worth a record."""
        return b""

    def load(self, session_id: str, data: bytes) -> State:
        """See `Core`."""
        return State({})


def _words(transcript: Transcript) -> tuple[int, int, int, str]:
    return transcript.turn, transcript.utterance, transcript.revision, transcript.text


def _committed(intent: Intent, final: Transcript, now_us: int) -> Intent:
    """The judgement, now on what the caller certainly said."""
    return replace(
        intent,
        event_id=event_id(final.event_id, "detected"),
        causation_id=final.event_id,
        occurred_at=now_us,
        committed=True,
        speech_ended_at=final.speech_ended_at,
    )


def _leave(state: State) -> tuple[State, list[Outcome]]:
    """What was judged ahead is void."""
    ahead = state.ahead
    if ahead is None:
        return state, []
    outcomes: list[Outcome] = [_release(ahead)]
    if ahead.partial.event_id in state.pending:
        outcomes.append(Cancel(ahead.partial.event_id))
    outcomes.append(Speculated("void", ahead.intent.compute_ms if ahead.intent is not None else 0.0))
    return replace(state, pending=_without(state.pending, ahead.partial.event_id), ahead=None), outcomes


def _whole(state: State, transcript: Transcript) -> Transcript:
    """The transcript with all that the caller said in one go.

    Without the words before it while those are still being judged: they may have an effect, and would have it twice.
    """
    said = state.said
    if said is None or not said.goes_on_in(transcript):
        return transcript
    if any(heard.turn == said.turn for heard in state.pending.values()):
        return transcript
    return replace(transcript, text=f"{said.text} {transcript.text}")


def _detected(recorded: tuple[Any, ...]) -> Intent | None:
    """The judgement among what the log has of a record, where there is one."""
    known = (event for event in recorded if isinstance(event, Intent))
    return next((intent for intent in known if intent.kind is IntentKind.DETECTED), None)


def _asked(state: State, transcript: Transcript) -> tuple[State, Ask]:
    whole = _whole(state, transcript)
    request = Embed(tuple(readings(whole.text)))
    pending = {**state.pending, whole.event_id: whole}
    return replace(state, pending=pending), Ask(whole.event_id, "embeddings", request, ASK_S)


def _after(state: State, final: Transcript, text: str) -> State:
    """`text` is what the final is judged by."""
    said = Said(text, final.turn, final.audio_end_ms + final.pause_ms)
    return replace(state, said=said if final.text.strip() else None)


def _release(ahead: Ahead) -> Release:
    return Release(ahead.position.topic, ahead.position.offset + 1)


def _without(pending: Mapping[str, Transcript], ask_id: str) -> dict[str, Transcript]:
    return {key: value for key, value in pending.items() if key != ask_id}


def readings(text: str) -> list[str]:
    """What is compared with the examples: the whole text, and each sentence where there are several."""
    sentences = [sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+", text) if len(sentence.split()) > 1]
    return [text, *sentences] if len(sentences) > 1 else [text]


def similarities(examples: Examples, embedded: Embedded) -> dict[str, float]:
    """Confidence 0 to 1 for each intent, from the best pair of a reading and an example."""
    vectors = np.frombuffer(embedded.vectors, np.float32).reshape(-1, embedded.dimensions)
    best = (examples.vectors @ vectors.T).max(axis=1)
    scores: dict[str, float] = {}
    for intent, similarity in zip(examples.intents, best.tolist(), strict=True):
        scores[intent] = max(scores.get(intent, -1.0), similarity)
    return {intent: confidence_of(similarity) for intent, similarity in scores.items()}


def confidence_of(similarity: float) -> float:
    """Maps a cosine similarity to 0 to 1."""
    return min(1.0, max(0.0, (similarity - SIMILARITY_NONE) / (SIMILARITY_SURE - SIMILARITY_NONE)))


def create_core(
    agents: Mapping[str, Agent],
    embed: Callable[[tuple[str, ...]], NDArray[np.float32]],
    speculates: Callable[[], bool] = lambda: True,
) -> IntentCore:
    """The core with every agent's examples embedded; `embed` gives unit vectors, float32 (n, d)."""
    examples = {}
    for agent in agents.values():
        pairs = [(intent.name, example) for intent in agent.intents for example in intent.examples]
        vectors = embed(tuple(example for _, example in pairs))
        examples[agent.id] = Examples(tuple(name for name, _ in pairs), vectors)
    return IntentCore(agents, examples, speculates)
