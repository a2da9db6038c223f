"""What agents always say in the same words is synthesised once and kept: greetings, questions, apologies.

Only sentences of the agents' files that hold no variable: nothing that concerns one caller stays here, and their
number is bounded.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import structlog

from processors.agents import Agent
from processors.engine import Capabilities, Engine, EngineError, Reply, Request, Speak, Spoken
from processors.llm.sentences import split_sentences
from processors.templates import Template

log = structlog.get_logger(__name__)

_Wanted = tuple[str, str, float, str]


class KeptSpeech:
    """An `Engine` for the role tts that knows these agents' sentences, and leaves all else to the one it wraps."""

    def __init__(self, engine: Engine, agents: Iterable[Agent]) -> None:
        self._engine = engine
        self._agents = tuple(agents)
        self._fixed = frozenset(text for agent in self._agents for text in fixed_sentences(_templates(agent)))
        self._kept: dict[_Wanted, tuple[str, Sequence[Spoken]]] = {}
        # A name may come to mean another voice; an engine where that is so says which one it means now.
        self._meant: Callable[[str], str] = getattr(engine, "voice_meant", lambda name: name)

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return self._engine.capabilities

    def warm(self) -> None:
        """See `Engine`; greetings are made now, since many callers may come at once.

        An agent that the engine cannot speak for, say in its language, keeps it from no other.
        """
        self._engine.warm()
        for agent in self._agents:
            try:
                for text in fixed_sentences(agent.greeting):
                    for _ in self.answer(Speak(text, agent.voice.name, agent.voice.speed, agent.spoken_language)):
                        pass
            except EngineError as error:
                if error.reason != "invalid":
                    raise
                log.error("the engine cannot speak for an agent", agent=agent.id, why=error.detail)

    def answer(self, request: Request) -> Iterator[Reply]:
        """See `Engine`; what is kept costs nothing."""
        if not isinstance(request, Speak) or request.text not in self._fixed:
            return self._engine.answer(request)
        wanted = request.text, request.voice, request.speed, request.language
        meant = self._meant(request.voice)
        kept_of, kept = self._kept.get(wanted, ("", None))
        return iter(kept) if kept is not None and kept_of == meant else self._made(wanted, meant, request)

    def _made(self, wanted: _Wanted, meant: str, request: Speak) -> Iterator[Reply]:
        """Kept where it was made to its end."""
        pieces = []
        for piece in self._engine.answer(request):
            if isinstance(piece, Spoken):
                pieces.append(msgspec.structs.replace(piece, compute_ms=0.0))
            yield piece
        self._kept[wanted] = meant, tuple(pieces)


def fixed_sentences(templates: Iterable[Template]) -> Iterator[str]:
    """The sentences of those that say the same to everyone."""
    for template in templates:
        if not template.variables:
            yield from split_sentences(template.render({}))


def _templates(agent: Agent) -> Iterator[Template]:
    yield from agent.greeting
    for name in type(agent.texts).model_fields:
        yield from getattr(agent.texts, name)
    for intent in agent.intents:
        yield from (slot.question for slot in intent.required)
        for variants in intent.templates.values():
            yield from variants
