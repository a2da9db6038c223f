"""Roles, and the one table of what each may do. docs/access.md shows it; a test holds the two together."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

ALL_TENANTS = "*"


class Role(StrEnum):
    """What somebody is to the platform, or to a tenant."""

    ADMIN = "admin"
    OPERATOR = "operator"
    ANALYST = "analyst"
    AUDITOR = "auditor"
    SERVICE = "service"


class Permission(StrEnum):
    """One thing that can be allowed; every route of the gateway asks for one of them."""

    CALL = "call"
    AGENTS_READ = "agents:read"
    SESSIONS_READ = "sessions:read"
    SESSIONS_END = "sessions:end"
    SESSIONS_ERASE = "sessions:erase"
    WORDS_READ = "words:read"
    SQL_READ = "sql:read"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_RUN = "webhooks:run"
    WEBHOOKS_WRITE = "webhooks:write"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    METRICS_READ = "metrics:read"
    SCHEMAS_READ = "schemas:read"


@dataclass(frozen=True, slots=True)
class Grant:
    """Which roles have a permission; `platform`: only those who are of all tenants, for it shows them together."""

    meaning: str
    roles: frozenset[Role]
    platform: bool = False


_ADMIN, _OPERATOR, _ANALYST, _AUDITOR, _SERVICE = Role
_EVERYBODY = frozenset(Role)

# Whoever may make a webhook can have all words sent to an address of theirs: hence it is not the operator's.
GRANTS: Mapping[Permission, Grant] = MappingProxyType(
    {
        Permission.CALL: Grant("hold calls, and come back to them", frozenset({_ADMIN, _SERVICE})),
        Permission.AGENTS_READ: Grant("see which agents there are", _EVERYBODY),
        Permission.SESSIONS_READ: Grant(
            "see which calls there were, when, and how they ended; no words",
            frozenset({_ADMIN, _OPERATOR, _ANALYST, _AUDITOR}),
        ),
        Permission.SESSIONS_END: Grant("end calls", frozenset({_ADMIN, _OPERATOR})),
        Permission.SESSIONS_ERASE: Grant("forget calls for good", frozenset({_ADMIN})),
        Permission.WORDS_READ: Grant("read what was said, and who called", frozenset({_ADMIN, _ANALYST, _AUDITOR})),
        Permission.SQL_READ: Grant(
            "ask the embedded ClickHouse about all of it", frozenset({_ADMIN, _ANALYST, _AUDITOR})
        ),
        Permission.WEBHOOKS_READ: Grant(
            "see webhooks and how they fare, without secrets", frozenset({_ADMIN, _OPERATOR, _AUDITOR})
        ),
        Permission.WEBHOOKS_RUN: Grant("test webhooks, deliver once more", frozenset({_ADMIN, _OPERATOR})),
        Permission.WEBHOOKS_WRITE: Grant("make, change and remove webhooks", frozenset({_ADMIN})),
        Permission.KEYS_READ: Grant("see keys, without what they open with", frozenset({_ADMIN, _AUDITOR})),
        Permission.KEYS_WRITE: Grant("make and revoke keys", frozenset({_ADMIN})),
        Permission.METRICS_READ: Grant("read the platform's metrics", frozenset({_ADMIN, _OPERATOR}), platform=True),
        Permission.SCHEMAS_READ: Grant("read the schemas, and the description of the API", _EVERYBODY),
    }
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: `id` is a key's id, or tells where else they are from. Without a tenant, of all of them."""

    id: str
    roles: frozenset[Role]
    tenant: str | None = None
    requests_per_s: float | None = None

    def may(self, permission: Permission) -> bool:
        """Whether one of the roles has it."""
        grant = GRANTS[permission]
        return bool(grant.roles & self.roles) and not (grant.platform and self.tenant is not None)

    def sees(self, tenant: str) -> bool:
        """Whether what belongs to that tenant may be known to them."""
        return self.tenant is None or self.tenant == tenant


def table() -> list[str]:
    """The table as docs/access.md has it, in Markdown."""
    lines = [f"| permission | {' | '.join(Role)} | lets |", f"|---|{':-:|' * len(Role)}---|"]
    for permission, grant in GRANTS.items():
        marks = ["x" if role in grant.roles else "" for role in Role]
        meaning = grant.meaning + (" (keys of all tenants only)" if grant.platform else "")
        lines.append(f"| `{permission}` | {' | '.join(marks)} | {meaning} |")
    return lines
