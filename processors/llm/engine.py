"""Which language models there are: an engine's name in the settings, and how it is made."""

from collections.abc import Callable, Mapping

from processors import models
from processors.engine import Engine, EngineError
from streams.settings import Settings


def _llama_cpp(settings: Settings) -> Engine:
    from processors.llm.llama_cpp import LlamaCpp

    model = models.resolve(settings, models.chosen(settings, "llm").name)
    engines = settings.engines
    # Its threads wait for each other at every layer: with one for each core, a busy core stalls every token.
    threads = max(1, engines.threads // 2)
    return LlamaCpp(model.path, model.name, model.licence, threads, gpu=engines.device == "cuda")


# `openai` is not here: it is no process of ours but a service, which stages ask through `openai_compatible.py`.
ENGINES: Mapping[str, Callable[[Settings], Engine]] = {"llama-cpp": _llama_cpp}


def create(settings: Settings) -> Engine:
    """The engine that `settings.engines.llm` names, loaded; raises EngineError or ModelError."""
    make = ENGINES.get(settings.engines.llm)
    if make is None:
        known = ", ".join(ENGINES)
        raise EngineError("invalid", f"TRUNKLINE_ENGINES__LLM: expected {known}, found {settings.engines.llm!r}")
    return make(settings)
