"""The plan: whole units of everything, for so many calls at once. Pure; the same figures give the same plan."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from processors.capacity import traffic
from processors.capacity.limits import Limit, first_to_break, limits
from processors.capacity.profile import Engine, Log, Profile
from processors.capacity.traffic import Flow, Flows, flows, rate
from streams.topics import STAGES, TOPICS

ALONE = ("sink", "relay")
PROCESSES = ("gateway", *STAGES, *ALONE)
_DAY_S = 86_400
_MB, _TB = 1e6, 1e12
_WINDOW_S, _WIRE_S = 0.032, 0.020


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic: what comes in from its writers, goes between brokers, out to its readers, and lies on all disks.

    `kept_days` is None where only the latest record of a call is kept.
    """

    topic: str
    records_s: float
    in_mb_s: float
    between_mb_s: float
    out_mb_s: float
    kept_days: float | None
    disk_tb: float


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """Workers, gateways or devices of one kind: how many calls each carries, and how many of them there are to be."""

    name: str
    runs_on: str
    sessions_each: float
    units: int


@dataclass(frozen=True, slots=True)
class LogPlan:
    """The cluster: brokers by each need, and the largest of them."""

    partitions: int
    brokers: int
    needs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Totals:
    """Of everything; `network_mb_s` is what leaves the brokers. Cores are those of brokers, too."""

    cores: int
    gpus: int
    disk_tb: float
    network_mb_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What so many calls need. `first` is the first of the limits to break on the way there; None: all hold.

    `calls_a_core` is what the platform as a whole is reckoned to carry: `python -m bench --only capacity` measures it.
    """

    profile: str
    sessions: int
    topics: tuple[TopicPlan, ...]
    log: LogPlan
    processes: tuple[UnitPlan, ...]
    engines: tuple[UnitPlan, ...]
    totals: Totals
    calls_a_core: float
    limits: tuple[Limit, ...]
    first: Limit | None


def plan(profile: Profile, sessions: int, kept_days: Mapping[str, float], since: int = 0) -> Plan:
    """For `sessions` calls at the busiest time; `kept_days` says for each topic how long records are kept.

    `since` is how many calls there were before: what broke up to there is mended.
    """
    flowing = flows(profile)
    topics = tuple(_topic(flow, profile, sessions, kept_days[flow.topic]) for flow in flowing.values())
    carried = {name: process_carries(name, profile, flowing) for name in PROCESSES}
    spare = round(profile.processes.spare.value)
    processes = tuple(
        UnitPlan(name, "core", each, 1 if name in ALONE else units(sessions, each) + spare)
        for name, each in carried.items()
    )
    driven = {role: engine_carries(engine, profile.traffic.turn.value) for role, engine in profile.engines.items()}
    engines = tuple(
        UnitPlan(f"{role}: {profile.engines[role].model}", profile.engines[role].device, each, count)
        for role, each in driven.items()
        for count in (units(sessions, each) + spare,)
    )
    log = _log(profile.log, sessions, flowing, topics, processes)
    breaking = limits(profile, carried, driven, len(TOPICS))
    return Plan(
        profile=profile.name,
        sessions=sessions,
        topics=topics,
        log=log,
        processes=processes,
        engines=engines,
        totals=_totals(profile.log, log, topics, (*processes, *engines)),
        calls_a_core=calls_a_core(profile, flowing),
        limits=breaking,
        first=first_to_break(breaking, since, sessions),
    )


def units(sessions: int, each: float) -> int:
    """Whole ones; what rounding adds to a whole number needs no further one."""
    return math.ceil(sessions / each * (1 - 1e-12))


def process_takes(name: str, profile: Profile, flowing: Flows) -> float:
    """The share of a core that a call takes of the process of that name; the sink's batches come on top."""
    costs, call = profile.processes, profile.traffic
    read_s = rate(flowing, traffic.READS[name])
    taken = rate(flowing, traffic.WRITES.get(name, ())) * costs.written.value
    if name == "sink":
        taken += read_s * costs.row.value
    elif name in ("relay", "gateway"):
        taken += read_s * costs.taken.value
    else:
        taken += read_s * (costs.read.value + costs.opened.value)
    if name == "gateway":
        taken += (1 + call.reply.value / call.turn.value) * costs.wire.value / _WIRE_S
    if name == "stt":
        heard = min(1.0, (call.speech.value + costs.listened.value) / call.turn.value)
        taken += heard * costs.window.value / _WINDOW_S
    return taken / 1e6


def process_carries(name: str, profile: Profile, flowing: Flows) -> float:
    """How many calls one process of that name carries."""
    costs = profile.processes
    used = costs.alone_used.value if name in ALONE else costs.used.value
    if name == "sink":
        used -= costs.batch.value / 1000
    carried = used / process_takes(name, profile, flowing)
    return min(costs.calls.value, carried) if name == "gateway" else carried


def calls_a_core(profile: Profile, flowing: Flows) -> float:
    """How many one core carries, all of it in use, with a broker and all processes on it, where models cost nothing."""
    broker = rate(flowing, flowing) * profile.log.record.value / 1e6
    own = sum(process_takes(name, profile, flowing) for name in PROCESSES)
    return (1 - profile.processes.batch.value / 1000) / (broker + own)


def engine_carries(engine: Engine, turn_s: float) -> float:
    """How many calls one device of a model carries."""
    busy_s = sum(ask.each.value * ask.busy.value / 1000 for ask in engine.asks.values())
    return engine.used.value * engine.at_once.value * turn_s / busy_s


def _topic(flow: Flow, profile: Profile, sessions: int, kept_days: float) -> TopicPlan:
    copies, latest_only = profile.log.replication.value, TOPICS[flow.topic].cleanup == "compact"
    stored = (
        flow.record_bytes if latest_only else flow.bytes_s * profile.traffic.mean_of_peak.value * kept_days * _DAY_S
    )
    in_mb_s = sessions * flow.bytes_s / _MB
    return TopicPlan(
        topic=flow.topic,
        records_s=sessions * flow.records_s,
        in_mb_s=in_mb_s,
        between_mb_s=(copies - 1) * in_mb_s,
        out_mb_s=flow.readers * in_mb_s,
        kept_days=None if latest_only else kept_days,
        disk_tb=sessions * copies * stored / _TB,
    )


def partitions(log: Log, processes: tuple[UnitPlan, ...]) -> int:
    """A power of two, so that workers get nearly as many each, and a gateway one at least."""
    workers = max(one.units for one in processes if one.name in STAGES)
    gateways = max(one.units for one in processes if one.name == "gateway")
    needed = max(log.partitions_min.value, log.spread.value * workers, gateways)
    return 1 << math.ceil(math.log2(needed))


def _log(
    log: Log, sessions: int, flowing: Flows, topics: tuple[TopicPlan, ...], processes: tuple[UnitPlan, ...]
) -> LogPlan:
    number = partitions(log, processes)
    copies = log.replication.value
    busy_cores = sessions * rate(flowing, flowing) * copies * log.record.value / 1e6
    received = sum(topic.in_mb_s + topic.between_mb_s for topic in topics)
    sent = sum(topic.between_mb_s + topic.out_mb_s for topic in topics)
    needs = {
        "processors": math.ceil(busy_cores / (log.cores.value * log.cores_used.value)),
        "network": math.ceil(max(received, sent) / (log.network.value * log.network_used.value * 1000 / 8)),
        "disk": math.ceil(sum(topic.disk_tb for topic in topics) / (log.disk.value * log.disk_used.value)),
        "partitions": math.ceil(number * len(TOPICS) * copies / log.replicas_broker.value),
        "the smallest cluster": round(log.brokers_min.value),
    }
    return LogPlan(number, max(needs.values()), needs)


def _totals(log: Log, cluster: LogPlan, topics: tuple[TopicPlan, ...], every: tuple[UnitPlan, ...]) -> Totals:
    on = {device: sum(one.units for one in every if one.runs_on == device) for device in ("core", "GPU")}
    return Totals(
        cores=on["core"] + round(cluster.brokers * log.cores.value),
        gpus=on["GPU"],
        disk_tb=sum(topic.disk_tb for topic in topics),
        network_mb_s=sum(topic.between_mb_s + topic.out_mb_s for topic in topics),
    )
