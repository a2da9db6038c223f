"""The intent stage: which of the agent's intents a final transcript means, and the values in it.

The text and each of its sentences are compared with the agent's example phrases by sentence embedding; an intent's
score is that of its best example. `none` is an answer. Where the embeddings cannot be had, the words that examples
share with the text decide (`keywords.py`), with a confidence that says so.
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
    Answered,
    Ask,
    Drop,
    Emit,
    End,
    Failed,
    Happening,
    Received,
    Refuse,
    Step,
    caused,
)
from schemas.events import Alternative, Intent, IntentKind, Session, SessionKind, Transcript, TranscriptKind

ALTERNATIVES_MAX = 3
ASK_S = 2.0
# Cosine similarity of MiniLM below which two sentences have nothing to do with each other, and from which they agree.
SIMILARITY_NONE, SIMILARITY_SURE = 0.25, 0.75


@dataclass(frozen=True, slots=True)
class Examples:
    """An agent's example phrases: `vectors` is float32 (n, d), unit rows; `intents` names each row's intent."""

    intents: tuple[str, ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class State:
    """Transcripts whose embedding has been asked for, by ask id."""

    pending: Mapping[str, Transcript]


class IntentCore:
    """The pure core of the stage; see `processors.stage.Core`."""

    def __init__(self, agents: Mapping[str, Agent], examples: Mapping[str, Examples]) -> None:
        self._agents = agents
        self._examples = examples

    def start(self, session_id: str) -> State:
        """See `Core`."""
        return State({})

    def apply(self, state: State, happening: Happening, now_us: int) -> Step[State]:
        """See `Core`."""
        match happening:
            case Received(Transcript(kind=TranscriptKind.FINAL) as final, _, recorded):
                return Step(state) if recorded else self._judge(state, final, now_us)
            case Received(Session(kind=SessionKind.ENDED)):
                return Step(state, (End(),))
            case Answered(ask_id, Embedded() as embedded, _) if ask_id in state.pending and self._fits(embedded):
                final = state.pending[ask_id]
                scores = similarities(self._examples[final.agent_id], embedded)
                model, compute_ms = embedded.model, embedded.compute_ms
            case Answered(ask_id) | Failed(ask_id) if ask_id in state.pending:
                final = state.pending[ask_id]
                scores = keywords.scores(self._agents[final.agent_id], final.text)
                model, compute_ms = keywords.MODEL, 0.0
            case _:
                return Step(state)
        intent = self._judged(final, scores, now_us, model=model, compute_ms=compute_ms)
        pending = {key: value for key, value in state.pending.items() if key != ask_id}
        return Step(replace(state, pending=pending), (Emit(intent),))

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
        pending = {**state.pending, final.event_id: final}
        request = Embed(tuple(readings(final.text)))
        return Step(replace(state, pending=pending), (Ask(final.event_id, "embeddings", request, ASK_S),))

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
            speech_ended_at=final.speech_ended_at,
            **model,
        )
        return event

    def save(self, state: State) -> bytes:
        """Nothing outlives a transcript: what is pending is redone from the transcript itself."""
        return b""

    def load(self, session_id: str, data: bytes) -> State:
        """See `Core`."""
        return State({})


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


def create_core(agents: Mapping[str, Agent], embed: Callable[[tuple[str, ...]], NDArray[np.float32]]) -> IntentCore:
    """The core with every agent's examples embedded; `embed` gives unit vectors, float32 (n, d)."""
    examples = {}
    for agent in agents.values():
        pairs = [(intent.name, example) for intent in agent.intents for example in intent.examples]
        vectors = embed(tuple(example for _, example in pairs))
        examples[agent.id] = Examples(tuple(name for name, _ in pairs), vectors)
    return IntentCore(agents, examples)
