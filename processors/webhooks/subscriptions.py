"""Subscriptions, and how far each of them is: what the two compacted topics hold, as JSON.

The API writes subscriptions, the relay writes progress; neither writes the other's. Times are microseconds since the
epoch.
"""

import uuid
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from schemas.event import Event
from schemas.events import EVENTS

# Calls in words: neither audio, nor what the platform says of itself.
TOPICS = ("voice.sessions", "voice.transcripts", "voice.intents", "voice.responses", "voice.control")
PREFIX = "trunkline."
TEST_TYPE = "webhook.test"
SECRETS_MAX = 3

_IDS = uuid.UUID("5d0f3c52-77f5-5b6e-9d5b-776562686f6f")


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """A signing secret, sealed (`vault.py`); one that was replaced signs, too, until its time is over."""

    sealed: bytes
    until_us: int | None = None


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Where to begin: at a time in every partition, or at an offset in one. A later `number` is a replay."""

    number: int
    time_us: int = 0
    topic: str = ""
    partition: int = 0
    offset: int = 0


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told of which events. `enablings` counts how often it was switched on."""

    id: str
    url: str
    tenant: str
    events: tuple[str, ...]
    agents: tuple[str, ...] = ()
    speculative: bool = False
    description: str = ""
    enabled: bool = True
    enablings: int = 0
    secrets: tuple[Secret, ...]
    start: Start
    created_at: int
    changed_at: int


class Open(msgspec.Struct, frozen=True, array_like=True):
    """A message below the positions that is neither delivered nor dead."""

    topic: str
    partition: int
    offset: int
    attempts: int
    due_us: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """All below `positions` (offsets by topic, in the order of partitions) is done, but for what is open.

    `start` is the number of the start that it counts from. `disabled` says why nothing is sent any more, until the
    subscription is switched on again (`enablings` differs from the subscription's).
    """

    start: int
    positions: dict[str, list[int]]
    open: tuple[Open, ...] = ()
    enablings: int = 0
    disabled: str = ""
    failures: int = 0
    failing_since: int = 0
    delivered_at: int = 0
    delivered: int = 0
    dead: int = 0
    status: int = 0
    reason: str = ""


class State(StrEnum):
    """An endpoint's health, as people are told."""

    HEALTHY = "healthy"
    FAILING = "failing"
    DISABLED = "disabled"


def state_of(subscription: Subscription, progress: Progress | None) -> State:
    """How the endpoint fares, the owner's own switch included."""
    if not subscription.enabled or disabled_of(subscription, progress):
        return State.DISABLED
    is_failing = progress is not None and progress.enablings == subscription.enablings and progress.failing_since
    return State.FAILING if is_failing else State.HEALTHY


def disabled_of(subscription: Subscription, progress: Progress | None) -> str:
    """Why the relay has switched it off; empty where it has not, or its owner has switched it on again since."""
    return progress.disabled if progress is not None and progress.enablings == subscription.enablings else ""


def type_of(event: Event) -> str:
    """The event's type as subscribers see it, such as `transcript.final`."""
    return event.ce_type.removeprefix(PREFIX)


def event_types() -> tuple[str, ...]:
    """Every type that can be subscribed to, sorted."""
    found = []
    for event in EVENTS:
        if event.TOPIC in TOPICS:
            name = event.CE_TYPE.removeprefix(PREFIX)
            found += [f"{name}.{kind}" for kind in event.ENUMS["kind"] if kind != "unknown"]
    return tuple(sorted(found))


def unknown_patterns(patterns: Iterable[str]) -> list[str]:
    """Those that are no type, no `name.*` with types below it, and not `*`."""
    types = event_types()
    known = {"*", *types, *(f"{one.partition('.')[0]}.*" for one in types)}
    return [pattern for pattern in patterns if pattern not in known]


def wants(subscription: Subscription, event: Event) -> bool:
    """Whether the subscription is told of the event. What was made ahead of a final counts only where it asks so."""
    if event.tenant_id != subscription.tenant:
        return False
    if subscription.agents and event.agent_id not in subscription.agents:
        return False
    if not subscription.speculative and not getattr(event, "committed", True):
        return False
    kind = type_of(event)
    return any(pattern in ("*", kind, f"{kind.partition('.')[0]}.*") for pattern in subscription.events)


def message_id(subscription_id: str, event_id: str) -> str:
    """The webhook-id: the same on every attempt and replay, so that subscribers know what they have."""
    return f"msg_{uuid.uuid5(_IDS, f'{subscription_id}/{event_id}').hex}"


def outcome_id(message: str, attempt: int, kind: str) -> str:
    """The id of the event that tells of an attempt."""
    return str(uuid.uuid5(_IDS, f"{message}/{attempt}/{kind}"))
