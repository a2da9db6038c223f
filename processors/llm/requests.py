"""From an agent's tool to an HTTP request, and from its answer to an outcome."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from processors.agents import TOOL_VARIABLES, Tool
from processors.engine import CallTool

IDEMPOTENCY_HEADER = "Idempotency-Key"

_OUTCOMES = {404: "not_found", 410: "not_found", 408: "timeout", 504: "timeout", 429: "failed"}


def render_call(tool: Tool, call_id: str, values: Mapping[str, Any], variables: Mapping[str, Any]) -> CallTool:
    """The request. What callers said is percent-encoded in the URL, so that no words change the path.

    Raises RenderError.
    """
    quoted = {name: quote(value, safe="") if isinstance(value, str) else value for name, value in values.items()}
    known = {name: variables[name] for name in TOOL_VARIABLES if name in variables}
    headers = {name: text.render({**values, **known}) for name, text in tool.headers.items()}
    headers[IDEMPOTENCY_HEADER] = call_id
    body = b""
    if tool.body:
        fields = {name: text.render({**values, **known}) for name, text in tool.body.items()}
        body = json.dumps(fields).encode()
        headers["Content-Type"] = "application/json"
    return CallTool(tool.method, tool.url.render({**quoted, **known}), headers, body, call_id)


def tool_outcome(tool: Tool, status: int, result: Any, values: Mapping[str, str]) -> str:
    """The outcome by the tool's own rules, else by the HTTP status: ok, not_found, rejected, timeout, failed."""
    facts = {**values, "result": result if result is not None else {}, "status": status}
    for rule in tool.outcomes:
        if (rule.status is None or rule.status == status) and (rule.when is None or rule.when.holds(facts)):
            return rule.outcome
    if 200 <= status < 300:
        return "ok"
    return _OUTCOMES.get(status, "rejected" if 400 <= status < 500 else "failed")
