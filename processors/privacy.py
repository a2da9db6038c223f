"""What tenants have done with personal data: a YAML file for each policy, with the tenants that have it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from processors.redaction import COUNTRIES, Policy, redacted
from schemas.event import Event
from streams.yamlfile import ConfigError, load_yaml, problem_at


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _compiled(value: object) -> object:
    """Raises ValueError for what is no regular expression, or finds nothing everywhere."""
    if not isinstance(value, str):
        return value
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    if pattern.match(""):
        raise ValueError("a regular expression that needs at least one character is expected")
    return pattern


def _country(value: object) -> object:
    if isinstance(value, str) and value not in COUNTRIES:
        raise ValueError(f"one of {', '.join(sorted(COUNTRIES))} is expected")
    return value


class NamedPattern(_Section):
    """Something of the tenant's own that is to be masked."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="a name in lower case, such as member_number")
    pattern: Annotated[re.Pattern[str], BeforeValidator(_compiled)] = Field(description="a regular expression")


class KeepDays(_Section):
    """After so many days something of a call cannot be read any more; nothing: as long as its topic is kept."""

    audio: float | None = Field(None, gt=0, description="days after which audio cannot be heard any more, above 0")
    words: float | None = Field(None, gt=0, description="days after which nothing personal can be read, above 0")


class TenantPolicy(_Section):
    """What is done with the personal data of these tenants' calls."""

    tenants: tuple[str, ...] = Field(description="the ids of the tenants that have it, as a list")
    mask: tuple[Literal["card", "email", "phone", "iban"], ...] = Field(
        ("card",), description="what is masked in words that leave the log, as a list of card, email, phone, iban"
    )
    national_ids: tuple[Annotated[str, BeforeValidator(_country)], ...] = Field(
        (), description="countries whose ids are masked, too, as a list"
    )
    patterns: tuple[NamedPattern, ...] = Field((), description="a list of name and pattern")
    keep_days: KeepDays = Field(KeepDays(), description="audio, words")
    clear_topic: bool = Field(False, description="true: masked words go to voice.clear, too, which nobody can erase")

    @property
    def redaction(self) -> Policy:
        """What is masked."""
        patterns = {one.name: one.pattern for one in self.patterns}
        return Policy(frozenset(self.mask), frozenset(self.national_ids), patterns)


class Policies:
    """Each tenant's policy; those without one have cards masked."""

    def __init__(self, policies: Mapping[str, TenantPolicy]) -> None:
        self._policies = policies
        self._redactions = {tenant: policy.redaction for tenant, policy in policies.items()}
        self._else = TenantPolicy(tenants=())

    def of(self, tenant_id: str) -> TenantPolicy:
        """The tenant's."""
        return self._policies.get(tenant_id, self._else)

    def redacted(self, event: Event) -> Event:
        """The event as its tenant lets it leave the log."""
        return redacted(event, self._redactions.get(event.tenant_id, _DEFAULT))


_DEFAULT = Policy()


def load_policies(directory: Path) -> Policies:
    """The policies in the directory. Raises ConfigError, which names file, line, field and what is expected."""
    tenants: dict[str, TenantPolicy] = {}
    files: dict[str, Path] = {}
    for path in sorted(directory.glob("*.yaml")) if directory.is_dir() else ():
        policy = load_yaml(path, TenantPolicy)
        for index, tenant in enumerate(policy.tenants):
            if tenant in tenants:
                expected = f"expected in one policy only, {tenant!r} has that of {files[tenant].name}, too"
                raise ConfigError([problem_at(path, ("tenants", index), expected)])
            tenants[tenant], files[tenant] = policy, path
    return Policies(tenants)
