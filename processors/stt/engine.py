"""The speech-to-text engines by name; another one is one file here and one row below."""

from collections.abc import Callable

from processors import models
from processors.engine import Engine
from processors.stt.whisper import WhisperEngine, WhisperReader
from streams.settings import Settings


def _faster_whisper(settings: Settings) -> Engine:
    """The model that the settings name, alone; else the smallest listed one, with the largest for a second opinion."""
    name = "faster-whisper"
    listed = [model for model in models.catalogue(settings) if (model.role, model.engine) == ("stt", name)]
    listed.sort(key=lambda model: model.size_bytes)
    if settings.engines.stt_model or not listed:
        listed = [models.chosen(settings, "stt")]
    quick = _reader(settings, listed[0])
    second = _reader(settings, listed[-1]) if len(listed) > 1 else None
    return WhisperEngine(quick, second, listed[0].licence)


def _reader(settings: Settings, model: models.Model) -> WhisperReader:
    return WhisperReader(models.resolve(settings, model.name), settings.engines.device, settings.engines.threads)


ENGINES: dict[str, Callable[[Settings], Engine]] = {"faster-whisper": _faster_whisper}


def create(settings: Settings) -> Engine:
    """The engine that `settings.engines.stt` names; raises models.ModelError or ValueError, naming what is expected."""
    make = ENGINES.get(settings.engines.stt)
    if make is None:
        raise ValueError(f"engines.stt: expected one of {', '.join(ENGINES)}, found {settings.engines.stt!r}")
    return make(settings)
