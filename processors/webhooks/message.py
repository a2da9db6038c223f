"""A delivery in the form of Standard Webhooks: id, time, signatures as headers; `type`, `timestamp`, `data` as JSON."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from standardwebhooks import Webhook

from processors.webhooks.subscriptions import TEST_TYPE, type_of
from schemas.event import Event
from schemas.json_form import to_json
from streams.keys import Position

USER_AGENT = "Trunkline-Webhooks/1"


def body_of(event: Event, position: Position, payload_bytes_max: int) -> bytes:
    """The event and its place in the log; one too large is left out, and its size said, for it can be fetched there."""
    body = _encoded(event, position, {"event": to_json(event)})
    if len(body) > payload_bytes_max:
        return _encoded(event, position, {"omitted_bytes": len(body), "session_id": event.session_id})
    return body


def trial_body(now_us: int) -> bytes:
    """What a test sends, which is no event."""
    return msgspec.json.encode({"type": TEST_TYPE, "timestamp": _rfc3339(now_us), "data": {}})


def headers_of(message_id: str, body: bytes, secrets: Sequence[str], now_us: int) -> dict[str, str]:
    """The headers of an attempt made now; one signature for each secret, parted by spaces."""
    at = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    signatures = [Webhook(secret).sign(message_id, at, body.decode()) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _encoded(event: Event, position: Position, data: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(
        {"type": type_of(event), "timestamp": _rfc3339(event.occurred_at), "data": {**position._asdict(), **data}}
    )


def _rfc3339(time_us: int) -> str:
    at = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{time_us % 1_000_000:06d}Z"
