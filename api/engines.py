"""Which engines a stage asks and how they fare, from the metrics that the stage serves and from voice.health. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import Metric

from processors.breaker import State
from schemas.events import Health, HealthKind

_BREAKERS = {float(state): state.name.lower().replace("_", " ") for state in State}


@dataclass(frozen=True, slots=True)
class Trouble:
    """The newest time that a breaker opened, and why."""

    at_us: int
    reason: str


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine as one stage sees it, since the stage's process started; `failed` is by reason.

    The latency is the time to the first reply that a caller waited for; None where there was none. What stands from
    `memory_mb` on a process of ours says of itself; None for others. `device_memory_mb` is its own, `warm_s` how long
    loading and warming took.
    """

    stage: str
    role: str
    engine: str
    model: str = ""
    device: str = ""
    address: str = ""
    health: str = ""
    breaker: str = ""
    answered: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    p50_ms: float | None = None
    p95_ms: float | None = None
    memory_mb: int | None = None
    device_memory_mb: int | None = None
    warm_s: float | None = None
    trouble: Trouble | None = None

    def as_json(self) -> dict[str, Any]:
        """Its fields under their names."""
        names = [name for name in self.__slots__ if name != "trouble"]
        trouble = self.trouble and {"at_us": self.trouble.at_us, "reason": self.trouble.reason}
        return {name: getattr(self, name) for name in names} | {"trouble": trouble}


@dataclass(slots=True)
class _Seen:
    """What the metrics say of one engine."""

    what: Mapping[str, str] = field(default_factory=dict)
    up: bool | None = None
    breaker: str = ""
    answered: float = 0.0
    failed: dict[str, float] = field(default_factory=dict)
    buckets: dict[float, float] = field(default_factory=dict)


def engine_rows(
    stage: str, families: Iterable[Metric], processes: Mapping[str, str], troubles: Mapping[tuple[str, str], Trouble]
) -> list[EngineRow]:
    """A row for each engine of the stage, replicas in order.

    `processes` are the states of the platform's own processes by name, as `status` shows them; `troubles` are by stage
    and engine.
    """
    rows = []
    for name, seen in sorted(_seen(families).items()):
        if seen.up is None and not seen.breaker:
            continue  # it was asked once, and is gone
        address = seen.what.get("address", "")
        rows.append(
            EngineRow(
                stage,
                seen.what.get("role", name.partition(".")[0]),
                name,
                model=seen.what.get("model", ""),
                device=seen.what.get("device", ""),
                address=address,
                health=_health(seen.up, processes.get(address, "")),
                breaker=seen.breaker,
                answered=round(seen.answered),
                failed={reason: round(count) for reason, count in sorted(seen.failed.items())},
                p50_ms=_ms(quantile(seen.buckets, 0.50)),
                p95_ms=_ms(quantile(seen.buckets, 0.95)),
                trouble=troubles.get((stage, name)),
            )
        )
    return rows


def with_footprint(row: EngineRow, families: Iterable[Metric]) -> EngineRow:
    """The row with what the engine's own process serves of its memory and of its start."""
    found = {
        (sample.name, sample.labels.get("what", "")): sample.value
        for family in families
        for sample in family.samples
        if not math.isnan(sample.value)
    }
    warm_s = found.get(("trunkline_engine_load_seconds", ""))
    return replace(
        row,
        memory_mb=_mb(found.get(("trunkline_engine_memory_bytes", ""))),
        device_memory_mb=_mb(found.get(("trunkline_engine_device_memory_bytes", "own"))),
        warm_s=None if warm_s is None else round(warm_s, 1),
    )


def _mb(count: float | None) -> int | None:
    return None if count is None else round(count / 1e6)


def _seen(families: Iterable[Metric]) -> Mapping[str, _Seen]:
    found: defaultdict[str, _Seen] = defaultdict(_Seen)
    for sample in (sample for family in families for sample in family.samples):
        labels, value = sample.labels, sample.value
        match sample.name:
            case "trunkline_engine_up":
                found[labels["engine"]].what, found[labels["engine"]].up = labels, value > 0
            case "trunkline_engine_breaker_state":
                found[labels["engine"]].breaker = _BREAKERS.get(value, "")
            case "trunkline_engine_answers_total":
                # A rung's name is its engine's, and what is different about it: `stt.0 quick`.
                found[labels["rung"].partition(" ")[0]].answered += value
            case "trunkline_engine_failures_total":
                found[labels["engine"]].failed[labels["reason"]] = value
            case "trunkline_engine_first_reply_seconds_bucket":
                found[labels["engine"]].buckets[float(labels["le"])] = value
    return found


def _health(up: bool | None, state: str) -> str:
    """A process's state tells more than that it cannot be reached; of a tool's host nothing is known beforehand."""
    if up is None:
        return ""
    if up:
        return state or "reachable"
    return state if state not in ("", "ready") else "away"


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value that so large a share lies below, interpolated in its bucket; None without any.

    `buckets` are cumulative counts by upper bound, the last one infinite; past the last finite bound that bound is all
    that is known.
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    rank = share * buckets[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return lower


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)


def troubles_of(events: Iterable[Health]) -> dict[tuple[str, str], Trouble]:
    """The newest opening of each breaker, by component and engine."""
    found: dict[tuple[str, str], Trouble] = {}
    for event in events:
        if event.kind is not HealthKind.BREAKER_OPENED:
            continue
        key = event.component, event.engine
        if key not in found or found[key].at_us < event.occurred_at:
            found[key] = Trouble(event.occurred_at, event.reason)
    return found
