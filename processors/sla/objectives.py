"""What tenants were promised: a YAML file for each tier, with the tenants that have it."""

from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streams.yamlfile import ConfigError, load_yaml, problem_at

Percent = Annotated[float, Field(gt=0, lt=100)]
Milliseconds = Annotated[float, Field(gt=0)]
PERCENTILES = (50, 95, 99)


class Objective(NamedTuple):
    """One promise: at most the share `allowed` of the events may be bad."""

    name: str
    allowed: float


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SessionSuccess(_Section):
    """How many calls end as they should; see docs/sla.md for those that do not."""

    target_percent: Percent = Field(description="the percentage of calls that must succeed, below 100")
    answer_within_ms: int = Field(
        10_000, gt=0, description="milliseconds after which a caller who leaves unanswered counts as a failure"
    )


class VoiceToVoice(_Section):
    """From the end of the caller's speech to the first audio of the reply: each percentile's highest value."""

    p50: Milliseconds = Field(description="milliseconds within which half of the turns are answered")
    p95: Milliseconds = Field(description="milliseconds within which 95 % of the turns are answered")
    p99: Milliseconds = Field(description="milliseconds within which 99 % of the turns are answered")

    @model_validator(mode="after")
    def _ascending(self) -> "VoiceToVoice":
        if not self.p50 <= self.p95 <= self.p99:
            raise ValueError("expected p50 <= p95 <= p99")
        return self


class SttConfidence(_Section):
    """How sure recognition is of what it heard."""

    at_least: float = Field(gt=0, le=1, description="the confidence, above 0 to 1, that a transcript must have")
    target_percent: Percent = Field(description="the percentage of final transcripts that must have it, below 100")


class Tier(_Section):
    """What the tenants of one tier were promised."""

    name: str = Field(min_length=1, description="the tier's name, for people")
    tenants: tuple[str, ...] = Field(description="the ids of the tenants that have it, as a list")
    session_success: SessionSuccess = Field(description="target_percent, answer_within_ms")
    voice_to_voice_ms: VoiceToVoice = Field(description="p50, p95 and p99")
    stt_confidence: SttConfidence = Field(description="at_least, target_percent")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Every promise as a share of events that may be bad: that p95 is at most x says that 5 % may be above x."""
        return (
            Objective("session_success", _allowed(self.session_success.target_percent)),
            *(Objective(f"voice_to_voice_p{percent}", _allowed(percent)) for percent in PERCENTILES),
            Objective("stt_confidence", _allowed(self.stt_confidence.target_percent)),
        )


def _allowed(target_percent: float) -> float:
    """The rest to a hundred, as a share; rounded, since 100 - 99.99 is not 0.01 in binary."""
    return round((100 - target_percent) / 100, 12)


def load_tiers(directory: Path) -> dict[str, Tier]:
    """The tier of every tenant that has one. Raises ConfigError, which names file, line, field and what is expected."""
    tenants: dict[str, Tier] = {}
    files: dict[str, Path] = {}
    if not directory.is_dir():
        return tenants
    for path in sorted(directory.glob("*.yaml")):
        tier = load_yaml(path, Tier)
        for index, tenant in enumerate(tier.tenants):
            if tenant in tenants:
                expected = f"expected in one tier only, {tenant!r} has that of {files[tenant].name}, too"
                raise ConfigError([problem_at(path, ("tenants", index), expected)])
            tenants[tenant], files[tenant] = tier, path
    return tenants
