"""Which rungs each role's ladder has: the engines that the settings name, and what stands in for them."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from processors import models
from processors.breaker import Breaker, OnChange
from processors.choices import Choice, Watched, settings_for
from processors.engine import Embed, EngineClient, Generate, Message, Request, Speak, Transcribe
from processors.engine_client import SocketEngine, replicas
from processors.engine_frames import of_generation
from processors.generations import Generations
from processors.health import Health
from processors.hosted import hosted_roles
from processors.ladder import BYTES_A_SECOND, Ladder, Manner, Rung
from processors.lane import Lane
from schemas.events import HealthKind
from streams.clock import Clock
from streams.settings import Settings

QUICK_AFTER_S = 2.0  # what is read by now is read by the model that is surely in time

MANNERS: Mapping[str, Manner] = {
    "stt": Manner(0.5, 1.0, 1.5, 2.0, 1.6, Transcribe(bytes(BYTES_A_SECOND), partial=True)),
    "embeddings": Manner(0.2, 0.4, 0.6, 2.0, 0.6, Embed(("Is anybody there?",))),
    "llm": Manner(0.3, 0.5, 2.0, 2.5, 1.5, Generate((Message("user", "Hello"),), max_tokens=1)),
    "tts": Manner(0.3, 0.7, 1.2, 2.0, 2.5, Speak("Hello there.")),
}
_KINDS = {
    "CLOSED": HealthKind.BREAKER_CLOSED,
    "HALF_OPEN": HealthKind.BREAKER_HALF_OPENED,
    "OPEN": HealthKind.BREAKER_OPENED,
}


__all__ = ["MANNERS", "OnChange", "generations", "ladder", "reporter"]


def reporter(health: Health) -> OnChange:
    """Tells `voice.health` of every change of a breaker's state."""

    def changed(breaker: Breaker, reason: str) -> None:
        health.report(_KINDS[breaker.state.name], engine=breaker.name, reason=reason)

    return changed


def ladder(
    settings: Settings,
    role: str,
    clock: Clock,
    on_change: OnChange = lambda breaker, reason: None,
    generation: int = 0,
) -> Ladder:
    """The ladder of a role, over one generation of its engines.

    Raises ValueError for an endpoint that is none, ConfigError for a bad models.yaml.
    """
    whose = of_generation(role, generation)

    def lane(name: str, client: EngineClient) -> Lane:
        return Lane(name, client, Breaker(name, clock, on_change))

    if role in hosted_roles(settings):
        own = [
            lane(f"{whose}.{replica}", SocketEngine(settings, role, replica=replica, generation=generation))
            for replica in range(replicas(settings, role))
        ]
    else:
        from processors.llm.openai_compatible import OpenAICompatible

        own = [
            lane(f"{role}.{number}", OpenAICompatible(settings, number=number))
            for number in range(len(settings.engines.llm_endpoints))
        ]
    rungs = [Rung(one) for one in own]
    match role:
        case "stt":
            rungs += [Rung(one, 1, f"{one.name} quick", _quick, QUICK_AFTER_S) for one in own]
        case "llm" if settings.engines.llm_fallback_base_url:
            from processors.llm.openai_compatible import OpenAICompatible

            rungs.append(Rung(lane("llm.fallback", OpenAICompatible(settings, fallback=True)), 1))
        case "tts":
            rungs += _other_voices(settings, whose, own, lane)
    return Ladder(role, rungs, clock, _manner(settings, role))


def generations(settings: Settings, role: str, clock: Clock, on_change: OnChange) -> Generations:
    """The generations of a hosted role, each with a ladder of its own; raises as `ladder` does."""

    def make(choice: Choice) -> Ladder:
        return ladder(settings_for(settings, role, choice), role, clock, on_change, choice.generation)

    return Generations(role, Watched(settings, role), make, clock)


def _manner(settings: Settings, role: str) -> Manner:
    """An endpoint's deadlines are settings: how far away it is, and how busy, differs more than our own engines do."""
    if role in hosted_roles(settings):
        return MANNERS[role]
    engines = settings.engines
    return dataclasses.replace(MANNERS[role], first_s=engines.llm_first_token_s, stall_s=engines.llm_between_tokens_s)


def _quick(request: Request) -> Request | None:
    """The smallest model alone; a rough reading is that already."""
    if not isinstance(request, Transcribe) or request.partial or request.quick:
        return None
    return replace(request, quick=True)


def _other_voices(
    settings: Settings, whose: str, own: list[Lane], lane: Callable[[str, EngineClient], Lane]
) -> list[Rung]:
    """A second engine where it is installed, else a second voice of the first."""
    name = settings.engines.tts_fallback
    if name and (program := shutil.which(name)):
        from processors.tts.espeak import MODEL, Espeak

        return [Rung(lane(f"{whose}.{MODEL}", Espeak(program)), 1, model=MODEL)]
    listed = {model.name: model.voice for model in models.catalogue(settings) if model.engine == settings.engines.tts}
    voices = [voice for voice in listed.values() if voice]
    default = listed.get(settings.engines.tts_model) or next(iter(voices), "")

    def other(request: Request) -> Request | None:
        if not isinstance(request, Speak):
            return None
        voice = next((voice for voice in voices if voice != (request.voice or default)), "")
        return replace(request, voice=voice) if voice else None

    return [Rung(one, 1, f"{one.name} other voice", other) for one in own] if len(voices) > 1 else []
