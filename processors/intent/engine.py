"""Which embedding models there are: an engine's name in the settings, and how it is made."""

from collections.abc import Callable, Mapping

from processors import models
from processors.engine import Engine, EngineError
from streams.settings import Settings


def _minilm(settings: Settings) -> Engine:
    from processors.intent.embeddings import SentenceEmbeddings

    model = models.resolve(settings, models.chosen(settings, "embeddings").name)
    files = (model.files["model.onnx"], model.files["tokenizer.json"])
    return SentenceEmbeddings(*files, model.name, model.licence, settings.engines.threads)


ENGINES: Mapping[str, Callable[[Settings], Engine]] = {"minilm": _minilm}


def create(settings: Settings) -> Engine:
    """The engine that `settings.engines.embeddings` names, loaded; raises EngineError or ModelError."""
    make = ENGINES.get(settings.engines.embeddings)
    if make is None:
        expected = f"expected {', '.join(ENGINES)}, found {settings.engines.embeddings!r}"
        raise EngineError("invalid", f"TRUNKLINE_ENGINES__EMBEDDINGS: {expected}")
    return make(settings)
