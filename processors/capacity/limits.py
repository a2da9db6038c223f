"""What breaks, and with how many calls: what docker-compose starts, and what more machines alone do not lift."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from processors.capacity.profile import Profile
from streams.topics import STAGES

_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Limit:
    """Carries `sessions` calls and no more, unless somebody does what `way_out` says.

    `bought`: more units, as the plan counts them, are the way out; the others are of another kind.
    """

    name: str
    sessions: int
    way_out: str
    bought: bool = False


def limits(
    profile: Profile, carried: Mapping[str, float], driven: Mapping[str, float], topics: int
) -> tuple[Limit, ...]:
    """In the order in which they are met; `carried` and `driven` say how many calls a process and a device carry."""
    found = [*_as_shipped(profile, carried, driven), *_of_one(carried), *_of_keys(profile)]
    found += _of_cluster(profile, carried, topics)
    return tuple(sorted(found, key=lambda limit: limit.sessions))


def first_to_break(found: Sequence[Limit], since: int, until: int) -> Limit | None:
    """The lowest above `since`, where it is not above `until`; what is lower counts as mended.

    Whoever has what the plan counts meets the limits that cannot be bought; the others are named where there are none.
    """
    met = [limit for limit in found if since < limit.sessions <= until]
    return next((limit for limit in met if not limit.bought), met[0] if met else None)


def _as_shipped(profile: Profile, carried: Mapping[str, float], driven: Mapping[str, float]) -> Iterator[Limit]:
    shipped, engines = profile.shipped, profile.engines
    for role, each in driven.items():
        device = "cores" if engines[role].device == "core" else "GPUs"
        name = f"the {role} model on {shipped.engines.value:g} of its {device}"
        yield Limit(name, int(shipped.engines.value * each), f"more {device} for it", bought=True)
    stage, each = _busiest(profile, carried)
    workers = f"{shipped.workers.value:g} workers of {stage}"
    yield Limit(workers, int(shipped.workers.value * each), f"more workers of {stage}", bought=True)
    yield Limit(
        f"{shipped.gateways.value:g} gateway",
        int(shipped.gateways.value * carried["gateway"]),
        "more gateways behind a balancer, each with partitions of its own (api.partitions)",
        bought=True,
    )
    yield Limit(
        f"{shipped.partitions.value:g} partitions",
        int(shipped.partitions.value / profile.log.spread.value * each),
        "kafka.partitions as planned, before the first call: it is fixed afterwards",
    )


def _of_one(carried: Mapping[str, float]) -> Iterator[Limit]:
    yield Limit(
        "the one ClickHouse sink",
        int(carried["sink"]),
        "several platforms side by side, each with a sink and a database of its own (ADR 4)",
    )
    yield Limit(
        "the one webhook relay",
        int(carried["relay"]),
        "several platforms side by side, or consumers instead of webhooks",
    )


def _of_keys(profile: Profile) -> Iterator[Limit]:
    keys, traffic = profile.keys, profile.traffic
    files_each = traffic.mean_of_peak.value / traffic.call.value * keys.kept.value * _DAY_S
    yield Limit(
        "looking through the calls' keys within its interval",
        int(keys.look.value * 1e6 / keys.file.value / files_each),
        "a longer privacy.look_s (a day carries 24 times as many), or words kept for fewer days (kafka.retention_days)",
    )
    yield Limit(
        "the calls' keys as files of one file system",
        int(keys.files.value / files_each),
        "words kept for fewer days (kafka.retention_days), another file system, or several platforms side by side",
    )


def _of_cluster(profile: Profile, carried: Mapping[str, float], topics: int) -> Iterator[Limit]:
    log = profile.log
    stage, each = _busiest(profile, carried)
    side_by_side = "several platforms side by side, callers spread over them"
    yield Limit(
        f"{log.partitions_max.value:,g} partitions a topic, for the workers of {stage}",
        int(log.partitions_max.value / log.spread.value * each),
        side_by_side,
    )
    yield Limit(
        f"{log.partitions_max.value:,g} partitions a topic, one for each gateway",
        int(log.partitions_max.value * carried["gateway"]),
        side_by_side,
    )
    partitions = log.replicas_cluster.value / log.replication.value / topics
    yield Limit("partitions that a cluster may hold", int(partitions / log.spread.value * each), side_by_side)


def _busiest(profile: Profile, carried: Mapping[str, float]) -> tuple[str, float]:
    """The stage whose workers carry fewest calls."""
    stage = min(STAGES, key=lambda name: carried[name])
    return stage, carried[stage]
