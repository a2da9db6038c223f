"""What a voice can be asked for: one set of limits, and one wording for whoever asks for more."""

from collections.abc import Sequence

from processors.engine import EngineError, Request, Speak

TEXT_CHARS_MAX = 5000
SPEED_MIN, SPEED_MAX = 0.5, 2.0


def within(request: Request) -> Speak:
    """The request; raises EngineError (`invalid`), which names the field, what is expected and what was found."""
    if not isinstance(request, Speak):
        raise EngineError("invalid", f"expected Speak, found {type(request).__name__}")
    if len(request.text) > TEXT_CHARS_MAX:
        raise EngineError("invalid", f"text: expected at most {TEXT_CHARS_MAX} characters, found {len(request.text)}")
    if not SPEED_MIN <= request.speed <= SPEED_MAX:
        raise EngineError("invalid", f"speed: expected {SPEED_MIN} to {SPEED_MAX}, found {request.speed:g}")
    return request


def language_meant(wanted: str, languages: Sequence[str]) -> str:
    """The one of the languages that is meant, whatever the region or case; raises EngineError with those there are."""
    lower = wanted.lower().replace("_", "-")
    if lower in languages:
        return lower
    base = lower.partition("-")[0]
    for language in languages:
        if language.lower().partition("-")[0] == base:
            return language
    raise EngineError("invalid", f"language: expected one of {', '.join(languages)}; found {wanted!r}")
