"""Logs and metric labels: ids and numbers, never a caller's words, audio or key.

`configure` sets structlog up once per process: JSON lines on stderr, or coloured lines where stderr is a terminal.
Whatever a log call passes goes through `masked`, which knows the personal fields from the schemas.
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from schemas.event import Event, Part
from schemas.events import EVENTS
from streams.settings import Settings

MASK = "[personal]"


def _personal_names() -> frozenset[str]:
    """Names of the personal fields of all events, and of personal fields inside their parts."""
    names = {name for event in EVENTS for name in event.PII}
    for event in EVENTS:
        for part in event.PARTS.values():
            names |= {name for name, field in part.__dataclass_fields__.items() if not field.repr}
    return frozenset(names)


PERSONAL = _personal_names()


def masked(logger: WrappedLogger, method: str, entries: EventDict) -> EventDict:
    """A structlog processor: personal data is replaced by `MASK`, at any depth; events are reduced to their ids."""
    return {name: MASK if name in PERSONAL else _harmless(value) for name, value in entries.items()}


def _harmless(value: Any) -> Any:
    if isinstance(value, Event):
        return {"event": value.NAME, "event_id": value.event_id, "session_id": value.session_id, "turn": value.turn}
    if isinstance(value, Part | bytes | bytearray | memoryview):
        return MASK
    if isinstance(value, Mapping):
        return {str(name): MASK if name in PERSONAL else _harmless(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_harmless(item) for item in value]
    return value


def configure(settings: Settings, name: str) -> None:
    """Sends this process's logs, the standard library's included, to stderr; `name` is the process's, in every line."""
    structlog.contextvars.clear_contextvars()
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(name),
        masked,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These say at info what each request was.
    for noisy in ("httpx", "httpcore", "asyncio", "faust", "mode", "aiokafka"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def _named(name: str) -> structlog.typing.Processor:
    def add(logger: WrappedLogger, method: str, entries: EventDict) -> EventDict:
        entries.setdefault("process", name)
        return entries

    return add


def _renderers() -> list[structlog.typing.Processor]:
    if sys.stderr.isatty():
        # Tracebacks without local variables: those hold words and audio.
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=_unprintable)]


def _unprintable(value: Any) -> str:
    """Other objects appear by their type: their repr may hold anything."""
    return str(value) if isinstance(value, Exception) or hasattr(value, "__fspath__") else f"<{type(value).__name__}>"


def checked_labels(*names: str) -> tuple[str, ...]:
    """Label names for a Prometheus metric, unchanged; raises ValueError for personal fields and unbounded ids."""
    for name in names:
        if name in PERSONAL:
            raise ValueError(f"label {name}: a personal field cannot be a metric label")
        if name.endswith("_id") and name not in ("tenant_id", "agent_id", "schema_id"):
            raise ValueError(f"label {name}: an id makes a series for each value; log it instead")
    return names
