"""The speech-to-text engines by name; another one is one file here and one row below."""

from collections.abc import Callable

import structlog

from processors import models
from processors.engine import Engine
from processors.stt.completeness import Completeness
from processors.stt.reader import WhisperReader
from processors.stt.together import Together
from processors.stt.whisper import WhisperEngine
from streams.settings import Settings

log = structlog.get_logger(__name__)


def _faster_whisper(settings: Settings) -> Engine:
    """The first model reads; the other, where there is one, gives a second opinion."""
    first, *others = models.readers(settings)
    engines = settings.engines
    together = Together(engines.readings_at_once, engines.batch_wait_ms / 1000 if engines.device == "cuda" else 0.0)
    second = _reader(settings, others[0], together) if others else None
    quick = _reader(settings, first, together)
    complete = _completeness(settings)
    return WhisperEngine(quick, second, first.licence, together, engines.device, complete=complete)


def _completeness(settings: Settings) -> Completeness | None:
    """What tells whole sentences; none where its model is not here, since then the marks tell, less well."""
    name = settings.engines.completeness
    if not name:
        return None
    try:
        return Completeness(models.resolve(settings, name).path)
    except (models.ModelError, RuntimeError) as error:
        log.warning("no model tells whole sentences: marks alone do", model=name, error=type(error).__name__)
        return None


def _reader(settings: Settings, model: models.Model, together: Together) -> WhisperReader:
    engines = settings.engines
    return WhisperReader(
        models.resolve(settings, model.name), engines.device, engines.threads, together, engines.compute_type
    )


ENGINES: dict[str, Callable[[Settings], Engine]] = {"faster-whisper": _faster_whisper}


def create(settings: Settings) -> Engine:
    """The engine that `settings.engines.stt` names; raises models.ModelError or ValueError, naming what is expected."""
    make = ENGINES.get(settings.engines.stt)
    if make is None:
        raise ValueError(f"engines.stt: expected one of {', '.join(ENGINES)}, found {settings.engines.stt!r}")
    return make(settings)
