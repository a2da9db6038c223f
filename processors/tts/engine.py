"""Which voices there are: an engine's name in the settings, and how it is made."""

from collections.abc import Callable, Mapping

from processors import models
from processors.agents import load_agents
from processors.engine import Engine, EngineError
from processors.tts.kept import KeptSpeech
from streams.settings import Settings


def _hibari(settings: Settings) -> Engine:
    from processors.tts.hibari import HibariVoices

    first = models.chosen(settings, "tts")
    voices = {model.voice: model.name for model in models.catalogue(settings) if model.engine == "hibari"}
    return HibariVoices(
        first.voice,
        models.resolve(settings, first.name),
        lambda voice: models.resolve(settings, voices[voice], False),
        voices,
    )


def _coqui(settings: Settings) -> Engine:
    try:
        from processors.tts.coqui import CoquiVoices
    except ImportError as error:
        expected = "an environment made from infra/locks/coqui.lock is expected for coqui"
        raise EngineError("invalid", f"TRUNKLINE_ENGINES__TTS: {expected} ({error})") from error
    directory = settings.engines.tts_dir
    if directory is not None:
        return CoquiVoices(settings, directory, directory.resolve().name)
    model = models.resolve(settings, models.chosen(settings, "tts").name)
    return CoquiVoices(settings, model.directory, model.name, model.licence)


ENGINES: Mapping[str, Callable[[Settings], Engine]] = {"hibari": _hibari, "coqui": _coqui}


def create(settings: Settings) -> Engine:
    """The engine that `settings.engines.tts` names, loaded; raises EngineError, ModelError or ConfigError."""
    make = ENGINES.get(settings.engines.tts)
    if make is None:
        known = ", ".join(ENGINES)
        raise EngineError("invalid", f"TRUNKLINE_ENGINES__TTS: expected {known}, found {settings.engines.tts!r}")
    return KeptSpeech(make(settings), load_agents(settings.agents_dir).values())
