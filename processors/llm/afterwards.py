"""What a conversation remembers after a tool: the values that may be used again, and what may be said alone now."""

from collections.abc import Mapping

from processors.agents import Agent, IntentSpec
from processors.llm import memory as remembering
from processors.llm.memory import Memory, Pending
from processors.llm.offers import intent_of


def keep(agent: Agent, memory: Memory, turn: int, values: Mapping[str, str]) -> Memory:
    """Remembers those that a later intent may use without asking again."""
    kept = {}
    for name, value in values.items():
        entity = agent.entity(name)
        if entity is not None and entity.keep and value:
            kept[name] = value
    return remembering.remember_values(memory, kept, turn)


def after_tool(agent: Agent, memory: Memory, spec: IntentSpec, values: Mapping[str, str], outcome: str) -> Memory:
    """After a lookup, another value alone ("and 2117?") asks for the same again; a value not found was a wrong one."""
    required = tuple(slot.entity for slot in spec.required)
    reads = spec.tool is not None and agent.tool(spec.tool).effect == "read"
    pending = None
    if outcome == "not_found":
        memory = remembering.forget_values(memory, required)
    if required and (reads or outcome == "not_found"):
        others = {name: value for name, value in values.items() if name != required[-1]}
        pending = Pending(spec.name, required[-1], others, optional=True)
    return remembering.wait_for(memory, pending)


def after_choice(agent: Agent, memory: Memory, turn: int, name: str, values: Mapping[str, str], outcome: str) -> Memory:
    """After a tool that the model chose, as after one of an intent's, where there is such an intent."""
    memory = keep(agent, memory, turn, values)
    tool = next((tool for tool in agent.tools if tool.name == name), None)
    spec = intent_of(agent, tool) if tool is not None else None
    return memory if spec is None else after_tool(agent, memory, spec, values, outcome)
