"""What to do about an utterance: a pure choice from the agent's rules, the call's memory and the detected intent."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from processors.agents import Agent, IntentSpec, Slot
from processors.llm.caller import Caller
from processors.llm.memory import VALUE_CHARS_MAX, Memory, Pending
from processors.llm.sentences import word_set
from processors.templates import Template
from schemas.events import Intent

ASK_TRIES_MAX = 2
WRITE_MEMORY_TURNS = 3
OVERRIDE_CONFIDENCE = 0.6
ALTERNATIVE_CONFIDENCE = 0.7

_FILLERS = word_set(
    "a an and number order it is its it's i my the that that's this please yes yeah yep sure okay ok um uh er oh "
    "well so for about of would be want need to sorry no i'd i'm like looking have got s what how zero one two "
    "three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand double triple"
)


@dataclass(frozen=True, slots=True)
class Say:
    """Speak a text that is at hand. `pending` is what the answer is expected to complete."""

    text: str
    source: str
    intent: str = ""
    outcome: str = "answered"
    action: str = ""
    action_target: str = ""
    pending: Pending | None = None
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """Call the intent's tool with these values, and speak its template."""

    spec: IntentSpec
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Look:
    """Look into the knowledge documents; only into the intent's own where it names some, else the model may answer."""

    spec: IntentSpec | None


Plan = Say | Call | Look


def decide(agent: Agent, memory: Memory, event: Intent) -> Plan:
    """The plan for a committed intent."""
    shared = shared_values(agent, memory)
    text = event.text.strip()
    if not text:
        # Only what no engine could read comes without any text.
        return Say(pick(agent.texts.unheard, event.turn).render(shared), "clarification", pending=memory.pending)
    if not any(character.isalnum() for character in text):
        clarification = pick(agent.texts.clarification, event.turn).render(shared)
        return Say(clarification, "clarification", pending=memory.pending)
    spec = _meant(agent, event)
    if agent.escalation.target and ((spec and spec.escalate) or _contains(text, agent.escalation.phrases)):
        return _escalate(agent, spec, event.turn, shared)
    said = {entity.name: entity.value[:VALUE_CHARS_MAX] for entity in event.entities if entity.value}
    if memory.pending is not None:
        plan = _continue(agent, memory, memory.pending, event, spec, said)
        if plan is not None:
            return plan
    if spec is None:
        return Look(None)
    return _fulfil(agent, memory, spec, said, event.turn)


def _meant(agent: Agent, event: Intent) -> IntentSpec | None:
    """The intent, unless it is too unsure. In "Hello. Where is my order?" the order is meant, not the greeting."""
    spec = agent.intent(event.intent) if event.confidence >= agent.limits.confidence_min else None
    if spec is None or not spec.courtesy:
        return spec
    for alternative in event.alternatives:
        other = agent.intent(alternative.intent)
        if other is not None and not other.courtesy and alternative.confidence >= ALTERNATIVE_CONFIDENCE:
            return other
    return spec


def shared_values(agent: Agent, memory: Memory) -> dict[str, object]:
    """What every template may use."""
    return {"agent": agent.name, "caller": Caller(memory.caller, memory.record), "context": memory.context}


def pick(variants: tuple[Template, ...], turn: int) -> Template:
    """A variant that differs from turn to turn and is the same whenever the turn is worked on again."""
    return variants[turn % len(variants)]


def _escalate(agent: Agent, spec: IntentSpec | None, turn: int, shared: Mapping[str, object]) -> Say:
    named = next((intent for intent in agent.intents if intent.escalate), None)
    spec = spec if spec is not None and spec.escalate else named
    texts = spec.templates.get("ok", agent.texts.escalation) if spec else agent.texts.escalation
    return Say(
        pick(texts, turn).render({**shared, **dict.fromkeys(spec.entity_names if spec else (), "")}),
        "escalation",
        intent=spec.name if spec else "",
        outcome="escalated",
        action="transfer",
        action_target=agent.escalation.target,
    )


def _continue(
    agent: Agent, memory: Memory, pending: Pending, event: Intent, spec: IntentSpec | None, said: dict[str, str]
) -> Plan | None:
    """The plan where the utterance completes what was asked for, or fails to; None when it is about something else."""
    waiting = agent.intent(pending.intent)
    entity = agent.entity(pending.entity)
    slot = next((slot for slot in waiting.required if slot.entity == pending.entity), None) if waiting else None
    if waiting is None or entity is None or slot is None:
        return None  # the agent's file was changed during the call, and no longer needs it
    leaving = spec is not None and spec.name != waiting.name
    if entity.kind == "text":
        if leaving and spec is not None and (spec.end_call or spec.escalate):
            return None
        return _fulfil(agent, memory, waiting, {**pending.values, **said, entity.name: _whole(event)}, event.turn)
    if entity.name in said:
        elsewhere = pending.optional or event.confidence >= OVERRIDE_CONFIDENCE
        if leaving and elsewhere and not _is_bare_answer(event):
            return None
        return _fulfil(agent, memory, waiting, {**pending.values, **said}, event.turn)
    if spec is not None or pending.optional:
        return None
    if pending.tries >= ASK_TRIES_MAX:
        return Say(pick(agent.texts.unknown, event.turn).render(shared_values(agent, memory)), "clarification")
    return ask(agent, memory, waiting, slot, {**pending.values, **said}, pending.tries + 1)


def _whole(event: Intent) -> str:
    return event.text.strip()[:VALUE_CHARS_MAX]


def _fulfil(agent: Agent, memory: Memory, spec: IntentSpec, said: Mapping[str, str], turn: int) -> Plan:
    """Answers an intent, or asks for the first value that it lacks."""
    values: dict[str, str] = {}
    for name in spec.entity_names:
        value = said.get(name) or _remembered(agent, memory, spec, name, turn)
        if value is not None:
            values[name] = value
    for slot in spec.required:
        if slot.entity not in values:
            again = memory.pending is not None and memory.pending.intent == spec.name and not memory.pending.optional
            tries = memory.pending.tries + 1 if again and memory.pending is not None else 0
            return ask(agent, memory, spec, slot, values, tries)
    if spec.tool is not None:
        return Call(spec, values)
    if "ok" not in spec.templates and spec.documents:
        return Look(spec)
    texts = spec.templates.get("ok", agent.texts.goodbye if spec.end_call else agent.texts.unknown)
    rendered = pick(texts, turn).render(template_values(agent, memory, spec, values))
    outcome, action = ("ended", "hang_up") if spec.end_call else ("answered", "")
    return Say(rendered, "template", spec.name, outcome, action, values=values)


def template_values(
    agent: Agent, memory: Memory, spec: IntentSpec, values: Mapping[str, str], **more: object
) -> dict[str, object]:
    """What the intent's templates may use; optional entities that were not said are empty."""
    return {**shared_values(agent, memory), **dict.fromkeys(spec.entity_names, ""), **values, **more}


def _remembered(agent: Agent, memory: Memory, spec: IntentSpec, name: str, turn: int) -> str | None:
    entity, value = agent.entity(name), memory.known(name)
    if entity is None or value is None or not entity.keep:
        return None
    if spec.tool is None or agent.tool(spec.tool).effect == "read":
        return value.value
    # What acts takes only what it needs, and only while the talk is still about it.
    return value.value if name not in spec.optional and turn - value.turn <= WRITE_MEMORY_TURNS else None


def ask(agent: Agent, memory: Memory, spec: IntentSpec, slot: Slot, values: Mapping[str, str], tries: int = 0) -> Say:
    """Asks the caller for a value, and waits for it; raises RenderError."""
    text = slot.question.render(template_values(agent, memory, spec, values))
    pending = Pending(spec.name, slot.entity, dict(values), tries)
    return Say(text, "clarification", spec.name, pending=pending, values=values)


def _contains(text: str, phrases: tuple[str, ...]) -> bool:
    """Whether any of the phrases is among the words, in whatever script; one without a word is in no text."""
    words = _words(text)
    return any(phrase.strip() and phrase in words for phrase in map(_words, phrases))


def _is_bare_answer(event: Intent) -> bool:
    """Whether nothing but values was said, as in answer to a question: "return 1187" says more than "it is 1187"."""
    rest = event.text
    for entity in sorted(event.entities, key=lambda entity: -entity.start):
        rest = f"{rest[: entity.start]} {rest[entity.end :]}"
    return not set(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", rest.lower())) - _FILLERS


def _words(text: str) -> str:
    found = re.findall(r"[^\W_]+", text.lower())
    return f" {' '.join(found)} "
