"""What came of a call into another system, as one word: by rules, else by the HTTP status."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from processors.templates import ExpressionText

OutcomeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=30)]

AWAY = frozenset({"failed", "timeout"})  # the system did not answer
IN_VAIN = AWAY | {"rejected", "not_found"}

_OUTCOMES = {404: "not_found", 410: "not_found", 408: "timeout", 504: "timeout", 429: "failed"}


class OutcomeRule(BaseModel):
    """Gives an answer its outcome; the first rule whose conditions all hold is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    outcome: OutcomeName
    status: int | None = Field(None, ge=100, le=599)
    when: ExpressionText | None = None

    @model_validator(mode="after")
    def _conditioned(self) -> "OutcomeRule":
        if self.status is None and self.when is None:
            raise ValueError("expected status, when, or both")
        return self


def outcome_of(rules: Iterable[OutcomeRule], status: int, facts: Mapping[str, Any], otherwise: str = "") -> str:
    """The first rule's that holds, else that; else by the status: ok, not_found, rejected, timeout, failed."""
    for rule in rules:
        if (rule.status is None or rule.status == status) and (rule.when is None or rule.when.holds(facts)):
            return rule.outcome
    if otherwise:
        return otherwise
    if 200 <= status < 300:
        return "ok"
    return _OUTCOMES.get(status, "rejected" if 400 <= status < 500 else "failed")
