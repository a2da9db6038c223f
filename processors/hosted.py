"""The roles whose engines have processes of their own, and how an engine is made in such a process.

Imported by engines that wrap the platform's own, too; so there are no metrics here.
"""

import importlib
from collections.abc import Callable

from processors.engine import Engine, EngineError
from streams.settings import Settings

# Where each role's engines are made: a module with `create(settings) -> Engine`, imported in that process only.
FACTORIES = {
    "stt": "processors.stt.engine",
    "embeddings": "processors.intent.engine",
    "llm": "processors.llm.engine",
    "tts": "processors.tts.engine",
}
HOSTED_ROLES = tuple(FACTORIES)


def hosted_roles(settings: Settings) -> tuple[str, ...]:
    """The roles whose engine runs in a process of ours; a remote one needs none."""
    return tuple(role for role in HOSTED_ROLES if not (role == "llm" and settings.engines.llm == "openai"))


def create(settings: Settings, role: str) -> Engine:
    """From the role's own module, or from the `module:factory` that the settings name; not warm.

    Raises EngineError, models.ModelError, ConfigError or ValueError.
    """
    chosen: str = getattr(settings.engines, role)
    module, colon, factory = chosen.partition(":")
    if not colon:
        module, factory = FACTORIES[role], "create"
    try:
        make: Callable[[Settings], Engine] = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        if not colon:
            raise
        expected = f"expected an engine's name or package.module:factory, found {chosen!r} ({error})"
        raise EngineError("invalid", f"TRUNKLINE_ENGINES__{role.upper()}: {expected}") from error
    return make(settings)
