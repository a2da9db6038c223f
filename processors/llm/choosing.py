"""How a language model is offered tools, and chooses one, in terms of OpenAI's chat completions.

There are two ways. *By the protocol*: `tools` go with the chat, and the model answers with words or with a call. It has
to know such calls, and its server how to tell them from words. *By schema*, for all others: a first, short answer, held
to a JSON Schema (`response_format`), says which tool, or none; only then come the words.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from processors.engine import Chosen, Generate, Message, Offered
from processors.json_text import json_in, valid

CHOICE_TOKENS_MAX = 200

_ASKED_TO_CHOOSE = (
    "Before you answer, choose whether you need one of the tools below. Write JSON alone: "
    '{"choice": {"tool": "its name", "arguments": {...}}} to use one, or {"choice": {"tool": null}} where what you '
    "know is enough. Arguments are what was said; invent none."
)


def as_message(message: Message) -> dict[str, Any]:
    """The message as the protocol has it."""
    written: dict[str, Any] = {"role": message.role, "content": message.content}
    match message.role, message.choice:
        case "tool", Chosen(_, _, identity):
            written["tool_call_id"] = identity
        case _, Chosen(tool, arguments, identity):
            # Servers read arguments as JSON, whatever the model had written.
            function = {"name": tool, "arguments": arguments if object_in(arguments) is not None else "{}"}
            written["tool_calls"] = [{"id": identity, "type": "function", "function": function}]
    return written


def as_tools(request: Generate) -> dict[str, Any]:
    """The part of a request that offers its tools, each with arguments that a server may hold the model to."""
    if not request.tools:
        return {}
    return {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json.loads(tool.parameters),
                    "strict": True,
                },
            }
            for tool in request.tools
        ],
        "tool_choice": "auto" if request.may_choose else "none",
        "parallel_tool_calls": False,
    }


class Writing:
    """A choice as it is written, piece by piece. Of several at once the first one counts."""

    def __init__(self) -> None:
        self._tool = ""
        self._arguments = ""
        self._over = False

    @property
    def begun(self) -> bool:
        """Whether anything of it has come."""
        return bool(self._tool or self._arguments)

    def add(self, delta: Any) -> None:
        """Takes the `tool_calls` of a piece, whatever they are."""
        for call in delta if isinstance(delta, list) else ():
            function = call.get("function") if isinstance(call, dict) and not call.get("index") else None
            if not isinstance(function, dict) or self._over:
                continue
            name = valid(function.get("name"))
            # Some servers name the tool with each piece, some give all calls the same index.
            self._over = bool(name and self._arguments and name != self._tool)
            if not self._over:
                self._tool = self._tool if name == self._tool else self._tool + name
                self._arguments += valid(function.get("arguments"))

    def finished(self) -> Chosen:
        """The choice; a tool without parameters may have been chosen without a word about them."""
        return Chosen(self._tool, self._arguments or "{}")


def object_in(text: str) -> dict[str, Any] | None:
    """The JSON object that a model wrote; None for anything else, however deep."""
    found = json_in(text)
    return found if isinstance(found, dict) else None


# ---- by schema


def may_choose(request: Generate) -> bool:
    """Whether a choice is to be made before the words."""
    return bool(request.tools) and request.may_choose


def choice_of(request: Generate) -> Generate:
    """The chat in which the model is asked for its choice, to be held to `choice_format`."""
    tools = "\n".join(f"- {tool.name}: {tool.description} Arguments: {tool.parameters}" for tool in request.tools)
    first, *rest = without_tools(request).messages
    asked = f"{_ASKED_TO_CHOOSE}\n{tools}"
    if first.role == "system":
        messages = (msgspec.structs.replace(first, content=f"{first.content}\n{asked}"), *rest)
    else:
        messages = (Message("system", asked), first, *rest)
    return Generate(messages, CHOICE_TOKENS_MAX, 0.0)


def choice_format(tools: tuple[Offered, ...]) -> dict[str, Any]:
    """The `response_format`: one of the tools with its arguments, or none."""
    none = _object({"tool": {"type": "null"}})
    one_of = [
        _object({"tool": {"type": "string", "const": tool.name}, "arguments": json.loads(tool.parameters)})
        for tool in tools
    ]
    # OpenAI wants an object at the root, and a type everywhere.
    schema = _object({"choice": {"anyOf": [*one_of, none]}})
    return {"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": schema}}


def choice_in(text: str) -> Chosen | None:
    """The choice that was written; None where it is none, or no such JSON."""
    found = (object_in(text) or {}).get("choice")
    tool = found.get("tool") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(tool, str) or not tool:
        return None
    return Chosen(tool, json.dumps(found.get("arguments") or {}))


def without_tools(request: Generate) -> Generate:
    """The chat for a model that knows no tools: what they answered stands behind what the caller said."""
    messages: list[Message] = []
    for message in request.messages:
        if message.role == "tool" and message.choice is not None:
            told = Message("user", f"({message.choice.tool} answered: {message.content})")
            asked = next((index for index in reversed(range(len(messages))) if messages[index].role == "user"), None)
            if asked is None:
                messages.append(told)
            else:
                messages[asked] = Message("user", f"{messages[asked].content}\n{told.content}")
        elif message.content or message.choice is None:
            messages.append(Message(message.role, message.content))
    return msgspec.structs.replace(request, messages=tuple(messages), tools=())


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
