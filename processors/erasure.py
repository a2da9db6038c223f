"""Erasing a call: the events that ask for it and confirm it, and the certificate. Pure.

Whoever asks destroys the call's key first; then `erase` in the log tells every process to forget what it has in memory,
and every store that holds words in the clear to erase them and say so (`erased`, with the store's name as target).
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from processors.stage import event_id
from schemas.event import Event
from schemas.events import Control, ControlKind

KIND = "trunkline.erasure"
VERSION = 1
CERTIFICATE = "certificate"
# The stores that hold words in the clear, and erase them.
STORES = ("clickhouse",)


def erase_event(session_id: str, tenant_id: str, agent_id: str, reason: str, now_us: int) -> Control:
    """Asks to forget the call; repeated requests have the same id."""
    return Control(
        event_id=event_id(session_id, "erase"),
        session_id=session_id,
        tenant_id=tenant_id,
        agent_id=agent_id,
        turn=0,
        seq=0,
        occurred_at=now_us,
        kind=ControlKind.ERASE,
        reason=reason,
    )


def erased_event(erase: Control, target: str, document: Mapping[str, Any], now_us: int) -> Control:
    """A store has erased the call, or, as the certificate, all have."""
    return Control(
        event_id=event_id(erase.event_id, target),
        session_id=erase.session_id,
        tenant_id=erase.tenant_id,
        agent_id=erase.agent_id,
        turn=0,
        seq=0,
        occurred_at=now_us,
        causation_id=erase.event_id,
        kind=ControlKind.ERASED,
        target=target,
        document=json.dumps(document, sort_keys=True, separators=(",", ":")),
    )


def survey(events: Iterable[tuple[str, Event]]) -> dict[str, dict[str, int]]:
    """By topic, the call's records, and how many of them can still be read though the key is gone."""
    found: dict[str, dict[str, int]] = {}
    for topic, event in events:
        counts = found.setdefault(topic, {"records": 0, "readable": 0})
        counts["records"] += 1
        counts["readable"] += any(getattr(event, name) for name in event.PII)
    return dict(sorted(found.items()))


def certificate(
    erase: Control, destroyed_at_us: int, stores: Mapping[str, Any], elsewhere: Mapping[str, Any], now_us: int
) -> dict[str, Any]:
    """What was erased when and from where, and what lies beyond the platform's reach; ready to be signed."""
    return {
        "kind": KIND,
        "version": VERSION,
        "session_id": erase.session_id,
        "tenant": erase.tenant_id,
        "reason": erase.reason,
        "requested_at": iso(erase.occurred_at),
        "key_destroyed_at": iso(destroyed_at_us),
        "completed_at": iso(now_us),
        "stores": dict(stores),
        "elsewhere": dict(elsewhere),
    }


def iso(time_us: int) -> str:
    """RFC 3339, UTC, to the millisecond."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
