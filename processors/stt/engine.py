"""The speech-to-text engines by name; another one is one file here and one row below."""

from collections.abc import Callable

from processors import models
from processors.engine import Engine
from processors.stt.whisper import WhisperEngine, WhisperReader
from streams.settings import Settings


def _faster_whisper(settings: Settings) -> Engine:
    """The first model reads; the other, where there is one, gives a second opinion."""
    first, *others = models.readers(settings)
    second = _reader(settings, others[0]) if others else None
    return WhisperEngine(_reader(settings, first), second, first.licence, device=settings.engines.device)


def _reader(settings: Settings, model: models.Model) -> WhisperReader:
    return WhisperReader(models.resolve(settings, model.name), settings.engines.device, settings.engines.threads)


ENGINES: dict[str, Callable[[Settings], Engine]] = {"faster-whisper": _faster_whisper}


def create(settings: Settings) -> Engine:
    """The engine that `settings.engines.stt` names; raises models.ModelError or ValueError, naming what is expected."""
    make = ENGINES.get(settings.engines.stt)
    if make is None:
        raise ValueError(f"engines.stt: expected one of {', '.join(ENGINES)}, found {settings.engines.stt!r}")
    return make(settings)
