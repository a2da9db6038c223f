"""A month's report for one tenant, from the events in ClickHouse's tables alone. Numbers are rounded to 4 decimals."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from processors.sla import queries
from processors.sla.budget import Counts, attainment, burn_rate, is_met
from processors.sla.objectives import PERCENTILES, Objective, Tier

KIND = "trunkline.sla.report"
VERSION = 1
RECENT = ("1h", "6h", "3d")

Ask = Callable[[str, Mapping[str, str]], Sequence[Sequence[Any]]]


class MonthError(ValueError):
    """No month, or one that has not begun."""


def period(month: str, now_us: int) -> tuple[int, int, bool]:
    """From the month's first moment to its end, or to now: microseconds, UTC; and whether it is over."""
    found = re.fullmatch(r"(\d{4})-(0[1-9]|1[0-2])", month)
    if found is None or int(found[1]) < 1970:
        raise MonthError(f"{month!r} is no month; expected a form such as 2026-11")
    year, number = int(found[1]), int(found[2])
    since_us = _us(datetime(year, number, 1, tzinfo=UTC))
    end_us = _us(datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC))
    if since_us > now_us:
        raise MonthError(f"{month} has not begun")
    return since_us, min(end_us, now_us), end_us <= now_us


def compile_report(tenant: str, month: str, tier: Tier, now_us: int, ask: Ask) -> dict[str, Any]:
    """The report, ready to be signed. Raises MonthError, and what `ask` does."""
    since_us, until_us, complete = period(month, now_us)
    given = queries.parameters(tenant, tier, since_us, until_us)
    totals = {str(name): [int(number) for number in numbers] for name, *numbers in ask(queries.TOTALS, given)}
    (measured,) = ask(queries.PERCENTILES_MS, given)
    return {
        "kind": KIND,
        "version": VERSION,
        "tenant": tenant,
        "tier": tier.name,
        "month": month,
        "since": _iso(since_us),
        "until": _iso(until_us),
        "complete": complete,
        "computed_at": _iso(now_us),
        "objectives": [_objective(one, totals.get(one.name, [0] * 8)) | _limit(one, tier) for one in tier.objectives],
        "voice_to_voice_ms": {f"p{n}": number(value) for n, value in zip(PERCENTILES, measured, strict=True)}
        if totals.get("voice_to_voice_p50")
        else None,
        "failures": dict(sorted((str(failure), int(calls)) for failure, calls in ask(queries.FAILURES, given))),
    }


def _objective(objective: Objective, totals: Sequence[int]) -> dict[str, Any]:
    whole, *recent = [Counts(*totals[at : at + 2]) for at in range(0, len(totals), 2)]
    attained = attainment(whole)
    allowed = objective.allowed
    return {
        "name": objective.name,
        "target_percent": number(100 * (1 - allowed)),
        "events": whole.events,
        "bad": whole.bad,
        "attained_percent": None if attained is None else number(100 * attained),
        "met": is_met(whole, allowed),
        "budget_events": number(allowed * whole.events),
        "budget_left_events": number(allowed * whole.events - whole.bad),
        "burn_rate": {
            "month": number(burn_rate(whole, allowed)),
            **{name: number(burn_rate(one, allowed)) for name, one in zip(RECENT, recent, strict=True)},
        },
    }


def _limit(objective: Objective, tier: Tier) -> dict[str, Any]:
    """What makes an event of this objective a bad one."""
    if objective.name == "session_success":
        return {"limit": {"answer_within_ms": tier.session_success.answer_within_ms}}
    if objective.name == "stt_confidence":
        return {"limit": {"confidence_at_least": number(tier.stt_confidence.at_least)}}
    return {"limit": {"ms_at_most": number(getattr(tier.voice_to_voice_ms, objective.name.rpartition("_")[2]))}}


def number(value: float | None) -> float | int | None:
    """Rounded, and an integer where it is one: the same text in every language's JSON."""
    if value is None:
        return None
    rounded = round(float(value), 4)
    return int(rounded) if rounded == int(rounded) else rounded


def _us(moment: datetime) -> int:
    return round(moment.timestamp()) * 1_000_000


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
