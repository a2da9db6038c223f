"""Audio and words are forgotten when their tenant's time has come, and a call's file when the log has nothing more."""

from pathlib import Path
from typing import Any

import pytest

from processors.privacy import KeepDays, Policies, TenantPolicy
from processors.retention import DAY_US, REASON, Retention, due
from schemas.event import Event
from schemas.events import Control, ControlKind
from streams.clock import SystemClock
from streams.keyring import KeyFile, Keyring
from streams.kms import LocalKeys

POLICIES = Policies({"acme": TenantPolicy(tenants=("acme",), keep_days=KeepDays(audio=7, words=30))})
NOW_US = 1_000 * DAY_US
KEPT_DAYS = 400.0


class Calendar(SystemClock):
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.day = 0.0

    def now_us(self) -> int:
        return round(self.day * DAY_US)

    def monotonic_s(self) -> float:
        return self.day * 86_400


def file(tenant: str, age_days: float, erased_days: float | None = None, classes: str = "words audio") -> KeyFile:
    made_at = NOW_US - round(age_days * DAY_US)
    erased_at = 0 if erased_days is None else NOW_US - round(erased_days * DAY_US)
    return KeyFile("call", tenant, made_at, {} if erased_at else dict.fromkeys(classes.split(), b"k"), erased_at)


@pytest.mark.parametrize(
    ("kept", "what"),
    [
        (file("acme", 6.9), None),
        (file("acme", 7.1), "audio"),
        (file("acme", 7.1, classes="words"), None),
        (file("acme", 29.9, classes="words"), None),
        (file("acme", 30.1), "words"),
        (file("acme", 30.1, classes="words"), "words"),
        (file("acme", 30.1, erased_days=0.1), None),
        (file("acme", 500, erased_days=399), None),
        (file("acme", 500, erased_days=401), "file"),
        (file("other", 399), None),
        (file("other", 401), "file"),
    ],
)
def test_what_is_due(kept: KeyFile, what: str | None) -> None:
    assert due(kept, POLICIES, round(KEPT_DAYS * DAY_US), NOW_US) == what


async def test_a_call_is_forgotten_piece_by_piece(tmp_path: Path) -> None:
    clock, told = Calendar(), list[Event]()
    keys = Keyring(tmp_path, LocalKeys(tmp_path), clock)

    async def publish(event: Event) -> Any:
        assert keys.file("call") is not None, "the log knows before the key is gone"
        told.append(event)

    retention = Retention(keys, POLICIES, publish, clock, KEPT_DAYS, look_s=1)
    keys.keys("call", "acme")
    keys.keys("another", "other")
    seen = {}
    for day in (0, 8, 8, 31, 31, 450):
        clock.day = day
        await retention.look()
        seen[day] = set(keys.known("call")), set(keys.known("another"))
    both = {"words", "audio"}
    assert seen == {0: (both, both), 8: ({"words"}, both), 31: (set(), both), 450: (set(), set())}
    (erase,) = told
    assert isinstance(erase, Control)
    assert (erase.kind, erase.session_id, erase.tenant_id, erase.reason) == (
        ControlKind.ERASE,
        "call",
        "acme",
        REASON,
    )
    assert not list(keys.every())
