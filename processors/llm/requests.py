"""From an agent's tool to a request, and from its answer to an outcome."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from processors.agents import TOOL_VARIABLES, CallerRecord, Tool
from processors.engine import CallOperation, CallTool, ToolReturned
from processors.llm.caller import Caller
from processors.outcomes import outcome_of

IDEMPOTENCY_HEADER = "Idempotency-Key"


def render_call(
    tool: Tool, call_id: str, values: Mapping[str, Any], variables: Mapping[str, Any]
) -> CallTool | CallOperation:
    """The request. What callers said is percent-encoded in the URL, so that no words change the path.

    Raises RenderError.
    """
    known = {name: variables[name] for name in TOOL_VARIABLES if name in variables}
    if tool.operation is not None:
        arguments = {name: text.render({**values, **known}) for name, text in tool.arguments.items()}
        return CallOperation(tool.operation, arguments, call_id)
    assert tool.url is not None, "a tool has a URL or an operation"
    quoted = {name: _quoted(value) for name, value in values.items()}
    headers = {name: text.render({**values, **known}) for name, text in tool.headers.items()}
    headers[IDEMPOTENCY_HEADER] = call_id
    body = b""
    if tool.body:
        fields = {name: text.render({**values, **known}) for name, text in tool.body.items()}
        body = json.dumps(fields).encode()
        headers["Content-Type"] = "application/json"
    return CallTool(tool.method, tool.url.render({**quoted, **known}), headers, body, call_id)


def render_lookup(record: CallerRecord, call_id: str, values: Mapping[str, Any]) -> CallOperation:
    """The request for the caller's record; raises RenderError."""
    arguments = {name: text.render(values) for name, text in record.arguments.items()}
    return CallOperation(record.operation, arguments, call_id)


def tool_outcome(tool: Tool, reply: ToolReturned, result: Any, values: Mapping[str, str]) -> str:
    """The outcome by the tool's own rules, else the operation's, else by the HTTP status."""
    facts = {**values, "result": result if result is not None else {}, "status": reply.status}
    return outcome_of(tool.outcomes, reply.status, facts, otherwise=reply.outcome)


def tool_call_id(session_id: str, turn: int, tool: str, values: Mapping[str, str]) -> str:
    """The idempotency key of a call: the same whenever the same turn leads to the same call."""
    what = json.dumps([session_id, turn, tool, values], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def choice_id(call_id: str) -> str:
    """A call's id within a chat: some models' templates know no longer ones."""
    return call_id[:9]


def _quoted(value: Any) -> Any:
    match value:
        case Caller():
            return value.quoted()
        case str():
            return quote(value, safe="")
        case Mapping():
            return {name: _quoted(item) for name, item in value.items()}
        case list() | tuple():
            return [_quoted(item) for item in value]
        case _:
            return value
