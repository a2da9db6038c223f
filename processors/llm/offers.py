"""Which of an agent's tools its language model may choose, and whether what it chose may be called.

A model that writes arguments may write anything. Only values that were said, or that other systems told, are taken: a
number that nobody named is another customer's order.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from processors.agents import Agent, EntityType, IntentSpec, Slot, Tool
from processors.engine import Chosen, Offered
from processors.json_text import valid
from processors.llm.choosing import object_in
from processors.llm.grounding import ISO_DATE, is_grounded, numbers_in
from processors.llm.memory import VALUE_CHARS_MAX

_SORTS = {
    "order_number": "digits",
    "digits": "digits",
    "date": "a date as YYYY-MM-DD",
    "amount": "an amount with its currency, as in 12.50 EUR",
    "choice": "",
    "text": "",
}


@dataclass(frozen=True, slots=True)
class Wrong:
    """Why a choice cannot be followed, for the model to mend.

    Where an entity was not said, it is `missing` of the `tool`, for which there are these `values` already.
    """

    why: str
    tool: Tool | None = None
    missing: str = ""
    values: Mapping[str, str] = field(default_factory=dict, repr=False)


def offers_of(agent: Agent) -> tuple[Offered, ...]:
    """What the model is offered, in the order of the file."""
    return tuple(
        Offered(tool.name, tool.description, json.dumps(_parameters(agent, tool)))
        for tool in agent.tools
        if tool.offered
    )


def intent_of(agent: Agent, tool: Tool) -> IntentSpec | None:
    """The first intent with that tool: it has words for what is missing, and for what comes of the call."""
    return next((intent for intent in agent.intents if intent.tool == tool.name), None)


def question_for(agent: Agent, wrong: Wrong) -> tuple[IntentSpec, Slot] | None:
    """Where an intent of the tool's has a question for what is missing."""
    spec = intent_of(agent, wrong.tool) if wrong.tool is not None else None
    slot = next((slot for slot in spec.required if slot.entity == wrong.missing), None) if spec is not None else None
    return (spec, slot) if spec is not None and slot is not None else None


def entities_of(agent: Agent, tool: Tool) -> tuple[EntityType, ...]:
    """The entities that the tool uses, in the order of the file."""
    return tuple(entity for entity in agent.entities if entity.name in tool.variables)


def checked(agent: Agent, chosen: Chosen, told: Callable[[Tool], str]) -> tuple[Tool, dict[str, str]] | Wrong:
    """The tool and its values, without those that were left out; `told` is all that a tool's values may come from."""
    tool = next((tool for tool in agent.tools if tool.offered and tool.name == chosen.tool), None)
    if tool is None:
        return Wrong("there is no such tool")
    written = object_in(chosen.arguments)
    if written is None:
        return Wrong("the arguments are no JSON object")
    values: dict[str, str] = {}
    wrong: Wrong | None = None
    for entity in entities_of(agent, tool):
        value = _plain(written.get(entity.name))
        fitting = _fitting(entity, value, told(tool)) if value else None
        if fitting is not None:
            values[entity.name] = fitting
        elif value or not _is_optional(agent, tool, entity):
            why = "is not what the caller said" if value else "is missing"
            wrong = wrong or Wrong(f"{entity.name} {why}: ask the caller for it", tool, entity.name, values)
    return wrong or (tool, values)


def _parameters(agent: Agent, tool: Tool) -> dict[str, Any]:
    """A schema that servers can hold a model to: everything is required, what is optional may be null."""
    entities = entities_of(agent, tool)
    return {
        "type": "object",
        "properties": {entity.name: _parameter(entity, _is_optional(agent, tool, entity)) for entity in entities},
        "required": [entity.name for entity in entities],
        "additionalProperties": False,
    }


def _parameter(entity: EntityType, optional: bool) -> dict[str, Any]:
    sort = _SORTS[entity.kind]
    description = ": ".join(part for part in (entity.description, sort) if part)
    written: dict[str, Any] = {"description": description} if description else {}
    written["type"] = ["string", "null"] if optional else "string"
    if entity.kind == "choice":
        written["enum"] = [*entity.values, *([None] if optional else [])]
    return written


def _is_optional(agent: Agent, tool: Tool, entity: EntityType) -> bool:
    spec = intent_of(agent, tool)
    return spec is not None and entity.name in spec.optional


def _fitting(entity: EntityType, value: str, told: str) -> str | None:
    """The value as the entity has it; None where it is none, or was not said."""
    match entity.kind:
        case "choice":
            return next((name for name in entity.values if name.lower() == value.lower()), None)
        case "order_number" | "digits":
            value = re.sub(r"[\s-]", "", value)
            fits = not entity.pattern or re.fullmatch(entity.pattern, value) is not None
            return value if fits and value in numbers_in(ISO_DATE.sub(" ", told)) else None
        case "date":
            return value if ISO_DATE.fullmatch(value) and value in told else None
        case _:
            return value if is_grounded(value, told) else None


def _plain(value: Any) -> str:
    """As one line that everything takes; empty for what says nothing, such as the dots of a path."""
    plain = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    plain = "".join(character if character.isprintable() else " " for character in valid(plain)).strip()
    return plain[:VALUE_CHARS_MAX] if any(character.isalnum() for character in plain) else ""
