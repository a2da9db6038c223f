"""Workflows: the file that says what is done in which system when a turn, or a call, ended how.

Where a turn called a tool, its end is the tool's (`ok`, `not_found`, `rejected`, `failed`, `timeout`, or what its own
rules name), else the answer's (`answered`, `failed`, `escalated`, `ended`). A call's end is its disposition.
"""

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from processors.adapters.adapter import Adapter, call_mistakes
from processors.adapters.shape import PlainText
from processors.agents import Name, OperationName
from processors.templates import ExpressionText
from streams.yamlfile import ConfigError, Problem, load_yaml, problem_at

_IDS = uuid.UUID("b8f3c0de-4d0c-5c2b-9e57-776f726b666c")
_OF_BOTH = frozenset({"agent", "caller", "customer", "ended", "outcome", "session_id", "started", "tenant"})
VARIABLES: Mapping[str, frozenset[str]] = {
    "turn": _OF_BOTH | {"arguments", "call_id", "intent", "reply", "result", "sentiment", "text", "turn"},
    "call": _OF_BOTH
    | {"disposition", "duration_s", "health", "intents", "reason", "sentiment", "summary", "transcript", "turns"},
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class When(_Part):
    """Which ends are meant; what is left out may be anything."""

    ended: Literal["turn", "call"] = "turn"
    intent: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    tenant: tuple[str, ...] = ()
    condition: ExpressionText | None = Field(None, description="a Jinja2 expression over the workflow's variables")

    _lists = field_validator("intent", "outcome", "agent", "tenant", mode="before")(_listed)

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether the end that has these facts is meant."""
        named = ((self.intent, "intent"), (self.outcome, "outcome"), (self.agent, "agent"), (self.tenant, "tenant"))
        if any(wanted and facts.get(name) not in wanted for wanted, name in named):
            return False
        return self.condition is None or self.condition.holds(facts)


class Workflow(_Part):
    """One rule: when that ends so, perform this operation with these arguments."""

    name: Name
    description: str = ""
    when: When
    operation: OperationName
    arguments: Mapping[Name, PlainText] = Field(default_factory=dict)
    key: PlainText | None = Field(
        None, description="the idempotency key, where it is not the errand's own: {{ call_id }} finishes a tool's call"
    )

    def errand_id(self, event_id: str) -> str:
        """Stands for what is done for the event: 32 hexadecimal digits, the same whenever it is done."""
        return uuid.uuid5(_IDS, f"{event_id}/{self.name}").hex


class WorkflowFile(_Part):
    """The rules, each of which is looked at by itself."""

    workflows: tuple[Workflow, ...] = Field(min_length=1)


def load_workflows(path: Path | None, adapters: Mapping[str, Adapter]) -> tuple[Workflow, ...]:
    """Those of the file, none without one; raises ConfigError, which names file, line, field and what is expected."""
    if path is None:
        return ()
    written = load_yaml(path, WorkflowFile)
    problems = [problem_at(path, location, expected) for location, expected in _checks(written, adapters)]
    if problems:
        raise ConfigError(sorted(problems, key=_line))
    return written.workflows


def _line(problem: Problem) -> int:
    return problem.line


def _checks(written: WorkflowFile, adapters: Mapping[str, Adapter]) -> Iterator[tuple[tuple[int | str, ...], str]]:
    seen: set[str] = set()
    for index, workflow in enumerate(written.workflows):
        place = ("workflows", index)
        if workflow.name in seen:
            yield (*place, "name"), f"expected a name of its own, {workflow.name!r} is used above"
        seen.add(workflow.name)
        for location, expected in call_mistakes(adapters, workflow.operation, set(workflow.arguments), "write"):
            if location == ("effect",):
                location, expected = ("operation",), f"expected an operation that writes, {workflow.operation} reads"
            yield (*place, *location), expected
        known = VARIABLES[workflow.when.ended]
        if workflow.when.ended == "call" and workflow.when.intent:
            yield (*place, "when", "intent"), "expected none where a call has ended: see condition and intents"
        texts: list[tuple[tuple[str, ...], frozenset[str]]] = [
            (("arguments", name), text.variables) for name, text in workflow.arguments.items()
        ]
        if workflow.key is not None:
            texts.append((("key",), workflow.key.variables))
        if workflow.when.condition is not None:
            texts.append((("when", "condition"), workflow.when.condition.variables))
        for where, used in texts:
            for name in sorted(used - known):
                yield (
                    (*place, *where),
                    f"uses the unknown variable {name!r}; expected one of {', '.join(sorted(known))}",
                )
