"""Which permission each route of the gateway asks for. A route that is not in this table cannot be reached.

docs/access.md shows the table; tests hold the two together, and the table to the routes that there are.
"""

from dataclasses import dataclass, field
from re import Pattern

from starlette.routing import compile_path

from processors.access.roles import Permission

WEBSOCKET = "WEBSOCKET"


@dataclass(frozen=True, slots=True)
class Rule:
    """One route; without a permission it is open: it tells nothing of anybody, or has a proof of its own."""

    method: str
    path: str
    permission: Permission | None
    pattern: Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", compile_path(self.path)[0])

    @property
    def action(self) -> str:
        """What is asked for, in words for the record."""
        return f"{self.method} {self.path}"

    def target(self, path: str) -> str:
        """The id in the path; empty where the route has none."""
        found = self.pattern.match(path)
        return next(iter(found.groupdict().values()), "") if found else ""


RULES = (
    Rule("GET", "/healthz", None),
    Rule("GET", "/readyz", None),
    # Twilio proves itself by its signature (twilio.py).
    Rule("POST", "/v1/twilio/voice", None),
    Rule("POST", "/v1/twilio/after", None),
    Rule(WEBSOCKET, "/v1/twilio/media", None),
    Rule(WEBSOCKET, "/v1/calls", Permission.CALL),
    Rule("GET", "/v1/agents", Permission.AGENTS_READ),
    Rule("GET", "/v1/sessions", Permission.SESSIONS_READ),
    Rule("GET", "/v1/sessions/{session_id}", Permission.SESSIONS_READ),
    Rule("GET", "/v1/sessions/{session_id}/events", Permission.WORDS_READ),
    Rule(WEBSOCKET, "/v1/assist/{session_id}", Permission.WORDS_READ),
    Rule("GET", "/v1/sessions/{session_id}/keys", Permission.WORDS_READ),
    Rule("POST", "/v1/sessions/{session_id}/erase", Permission.SESSIONS_ERASE),
    Rule("POST", "/v1/sessions/{session_id}/hang_up", Permission.SESSIONS_END),
    Rule("DELETE", "/v1/sessions/{session_id}", Permission.SESSIONS_END),
    Rule("GET", "/v1/webhooks", Permission.WEBHOOKS_READ),
    Rule("POST", "/v1/webhooks", Permission.WEBHOOKS_WRITE),
    Rule("GET", "/v1/webhooks/{identity}", Permission.WEBHOOKS_READ),
    Rule("PATCH", "/v1/webhooks/{identity}", Permission.WEBHOOKS_WRITE),
    Rule("DELETE", "/v1/webhooks/{identity}", Permission.WEBHOOKS_WRITE),
    Rule("POST", "/v1/webhooks/{identity}/secret", Permission.WEBHOOKS_WRITE),
    Rule("POST", "/v1/webhooks/{identity}/replay", Permission.WEBHOOKS_RUN),
    Rule("POST", "/v1/webhooks/{identity}/test", Permission.WEBHOOKS_RUN),
    Rule("GET", "/v1/keys", Permission.KEYS_READ),
    Rule("POST", "/v1/keys", Permission.KEYS_WRITE),
    Rule("DELETE", "/v1/keys/{identity}", Permission.KEYS_WRITE),
    Rule("GET", "/metrics", Permission.METRICS_READ),
    Rule("GET", "/registry/{path:path}", Permission.SCHEMAS_READ),
    Rule("POST", "/registry/{path:path}", Permission.SCHEMAS_READ),
    Rule("GET", "/openapi.json", Permission.SCHEMAS_READ),
    Rule("GET", "/docs", Permission.SCHEMAS_READ),
    Rule("GET", "/docs/oauth2-redirect", Permission.SCHEMAS_READ),
    Rule("GET", "/redoc", Permission.SCHEMAS_READ),
)


def rule_of(method: str, path: str) -> Rule | None:
    """The rule for a request; None where there is no such route."""
    wanted = "GET" if method == "HEAD" else method
    return next((rule for rule in RULES if rule.method == wanted and rule.pattern.match(path)), None)


def is_known(path: str) -> bool:
    """Whether the path has a route for some method."""
    return any(rule.pattern.match(path) for rule in RULES)


def table() -> list[str]:
    """The table as docs/access.md has it, in Markdown."""
    lines = ["| route | permission |", "|---|---|"]
    return lines + [f"| `{rule.action}` | {f'`{rule.permission}`' if rule.permission else 'open'} |" for rule in RULES]
