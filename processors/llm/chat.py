"""What the language model is asked: the chat of a turn, its fixed part first, so that it is read once for all turns."""

import json
import re
from dataclasses import replace

from processors.agents import Agent, Tool
from processors.engine import Generate, Message, Offered
from processors.llm.decide import WRITE_MEMORY_TURNS
from processors.llm.grounding import ISO_DATE, is_grounded
from processors.llm.memory import Memory
from processors.llm.turn import Consulted, Turn
from processors.outcomes import IN_VAIN
from processors.stage import Ask
from processors.templates import spoken_date
from schemas.events import Intent

RESULT_CHARS_MAX = 2000

_ITEM = re.compile(r"\d{1,2}[.)]\s+")


def asked(
    agent: Agent, memory: Memory, turn: Turn, deadline_s: float, tools: tuple[Offered, ...] = ()
) -> tuple[Turn, Ask]:
    """The turn's question to the model, with what was said of the answer so far for it to go on from.

    The turn then knows what the model was `told`, which all its facts have to come from.
    """
    messages = _messages(agent, memory, turn)
    # Rules name what must not be invented, so they are no ground for it.
    told = " ".join([agent.persona, *turn.facts, _about(memory), *(message.content for message in messages[1:])])
    may_choose = len(turn.consulted) < agent.limits.tools_max
    request = Generate(messages, agent.limits.tokens_max, tools=tools, may_choose=bool(tools) and may_choose)
    turn = replace(turn, told=f"{told} {_spoken_dates(told)}", chosen=None, choosing=False, muted=False)
    return turn, Ask(turn.ask_id, "llm", request, deadline_s, turn.number)


def rehearsal_of(agent: Agent, number: int) -> Generate:
    """A question to the agent's model as a call may begin with it, for finding out how soon it begins to answer.

    The longest examples, one for each `number`: a short one may have a short answer, which is made sooner than most,
    and one that was asked before is known to the model.
    """
    examples = sorted((example for intent in agent.intents for example in intent.examples), key=len, reverse=True)
    question = examples[number % len(examples)]
    return Generate((Message("system", _rules(agent)), Message("user", question)), agent.limits.tokens_max)


def sources_of(turn: Turn, memory: Memory, tool: Tool) -> str:
    """All that the tool's values may come from: what was said in the call, and what other systems told.

    For a tool with an effect that is the caller's question, with values from the latest turns, and this turn's results.
    """
    entities = turn.cause.entities if isinstance(turn.cause, Intent) else ()
    told = [turn.question, *(entity.value for entity in entities), *(_told(one) for one in turn.consulted if one.tool)]
    if tool.effect == "write":
        told += [value.value for value in memory.values if turn.number - value.turn <= WRITE_MEMORY_TURNS]
    else:
        told += [value.value for value in memory.values]
        told += [words for known in memory.history for words in (known.caller, *known.agent)]
    return " ".join([*told, _about(memory)])


def sayable(text: str, turn: Turn) -> str:
    """What the model may say of the sentence, empty where nothing: see `is_grounded`.

    A number before it that nobody has told it only counts the items of a list, or is invented: it is left out.
    """
    if _is_sayable(text, turn):
        return text
    found = _ITEM.match(text)
    rest = text[found.end() :] if found is not None else ""
    return rest if rest and _is_sayable(rest, turn) else ""


def _is_sayable(text: str, turn: Turn) -> bool:
    known = [(one.tool, one.outcome) for one in turn.consulted if one.tool is not None and one.outcome not in IN_VAIN]
    done = " ".join(
        f"{tool.name} {tool.description}" for tool, outcome in known if tool.effect == "write" and outcome == "ok"
    )
    return is_grounded(text, turn.told, looked_up=bool(known), done=done)


def _messages(agent: Agent, memory: Memory, turn: Turn) -> tuple[Message, ...]:
    """The rules, the facts, the latest history, the question, and what came of the answer so far."""
    system = [_rules(agent)]
    if turn.facts:
        system.append("What you know: " + " ".join(turn.facts))
    if memory.record:
        system.append("The caller: " + _about(memory))
    messages = [Message("system", "\n".join(system))]
    for exchange in memory.history[-agent.limits.history_turns :]:
        if exchange.caller:
            messages.append(Message("user", exchange.caller))
        if exchange.agent:
            messages.append(Message("assistant", " ".join(exchange.agent)))
    messages.append(Message("user", turn.question))
    return (*messages, *_answer_so_far(turn))


def _rules(agent: Agent) -> str:
    return "\n".join([agent.persona, *agent.rules])


def _answer_so_far(turn: Turn) -> list[Message]:
    messages, before = [], 0
    for one in turn.consulted:
        messages.append(Message("assistant", " ".join(turn.sentences[before : one.said]), one.choice))
        messages.append(Message("tool", _told(one), one.choice))
        before = one.said
    if turn.answer:
        messages.append(Message("assistant", " ".join(turn.answer)))
    return messages


def _told(one: Consulted) -> str:
    text = json.dumps({"outcome": one.outcome, **({"result": one.result} if one.result else {})}, ensure_ascii=False)
    return text if len(text) <= RESULT_CHARS_MAX else f"{text[:RESULT_CHARS_MAX]}…"


def _about(memory: Memory) -> str:
    return "; ".join(f"{name}: {value}" for name, value in memory.record.items())


def _spoken_dates(told: str) -> str:
    """The dates as people say them, since the model may do so, too."""
    return " ".join(spoken_date(found) for found in dict.fromkeys(ISO_DATE.findall(told)))
