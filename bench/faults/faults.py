"""What is done to the platform: each fault by its name, from its first moment until it is over.

Promises are of the longest added silence; a fault without one has other promises (see docs/faults.md).
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from api.errors import OperatorError
from bench.faults.checks import Finding, Kind, Place
from bench.faults.faulty_engine import Order, give_order, take_order_back
from bench.faults.platform import SUPERVISOR, Platform
from bench.faults.poison import garbage
from bench.faults.proxy import Wire
from bench.overload import broken_promises, measure_overload
from processors.hosted import HOSTED_ROLES
from schemas.events import AudioFrame
from streams.client import Position
from streams.keys import partition_of
from streams.producer import LogProducer
from tests.support.kafka import TestCluster

STOPPED_S = 10.0
ILL_S = 10.0
GUARDED_S = 30.0
CUT_S = 5.0
AWAY_S = 60.0
LEADER_AWAY_S = 10.0
POISON_PER_S = 400
RECORDS = 10_000
_POLL_S = 0.1
_POISON_BATCH = 20


@dataclass(frozen=True, slots=True)
class Promise:
    """How long the caller may hear nothing, beyond what is usual, in milliseconds; None where nothing is promised."""

    p50_ms: float | None
    max_ms: float | None


@dataclass(slots=True)
class Scene:
    """What a fault may lay hands on, and what it leaves behind for the checks.

    `poisoned` are the records that must have a dead letter each, `doubtful` those that may have one. `sessions` are
    the calls of the run, as they begin. `broken` are invariants that the fault itself saw broken.
    """

    platform: Platform
    wire: Wire
    random: Random
    cluster: TestCluster | None = None
    away_s: float = AWAY_S
    records: int = RECORDS
    poisoned: set[Place] = field(default_factory=set)
    doubtful: set[Place] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    broken: list[Finding] = field(default_factory=list)
    quick: bool = False


def scene(
    platform: Platform, wire: Wire, seed: str, scale: Mapping[str, float], cluster: TestCluster | None = None
) -> Scene:
    """A run's scene; `scale` makes outages shorter: `clickhouse_away_s`, `poison_records`."""
    return Scene(
        platform,
        wire,
        Random(seed),
        cluster,
        away_s=scale.get("clickhouse_away_s", AWAY_S),
        records=int(scale.get("poison_records", RECORDS)),
        quick=bool(scale),
    )


Strike = Callable[[Scene], Awaitable[None]]


# A machine that is busy with coming back must not refuse the call that is to be broken next.
CALM = (("TRUNKLINE_LOAD__REFUSE", "false"),)
OBEDIENT = (
    *CALM,
    *((f"TRUNKLINE_ENGINES__{role.upper()}", f"bench.faults.faulty_engine:{role}") for role in HOSTED_ROLES),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break things; `strike` returns when it is over.

    `through_wire`: the caller must be connected by the wire. `keeps_calling`: call after call until it is over.
    `environment` is what the platform must be told beforehand. `tolerated` is what a ladder may give up for the call.
    """

    name: str
    about: str
    strike: Strike
    promise: Promise | None = None
    through_wire: bool = False
    keeps_calling: bool = False
    needs_cluster: bool = False
    environment: tuple[tuple[str, str], ...] = CALM
    tolerated: frozenset[Kind] = frozenset()


SWIFT = Promise(1000, 2500)
LEADER = Promise(None, 4000)

# Where all engines of a role are ill, the caller may be asked to repeat, or be told that it cannot be done now.
DEGRADED = frozenset({Kind.TRANSCRIPT, Kind.EFFECT})

# The supervisor's names of the processes, by the campaign's.
PROCESSES: Mapping[str, str] = {
    "gateway": "api",
    "stt": "stt",
    "intent": "intent",
    "llm": "llm",
    "tts": "tts",
    "engine-stt": "engine-stt",
    "engine-embeddings": "engine-embeddings",
    "engine-llm": "engine-llm",
    "engine-tts": "engine-tts",
    "sink": "clickhouse",
    "kafka": "broker",
    "supervisor": SUPERVISOR,
}
# One process of these is away for as long as it takes to start everything, or the only broker: calls pause and go on.
_SLOW = ("kafka", "supervisor")


def _kill(name: str) -> Strike:
    async def strike(scene: Scene) -> None:
        victim = scene.platform.victim(PROCESSES[name])
        victim.signal(signal.SIGKILL)
        scene.notes.append(f"SIGKILL to {victim.name}")
        if name == "supervisor" and SUPERVISOR in await scene.platform.settled(GUARDED_S):
            scene.notes.append("started again by hand")
            await scene.platform.up()

    return strike


def _stop(name: str) -> Strike:
    async def strike(scene: Scene) -> None:
        victim = scene.platform.victim(PROCESSES[name])
        victim.signal(signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)
        woken = victim.signal(signal.SIGCONT)
        scene.notes.append(
            f"SIGSTOP to {victim.name}, " + ("woken" if woken else "replaced") + f" after {STOPPED_S:g} s"
        )

    return strike


def _order(role: str, order: Order, everywhere: bool) -> Strike:
    """The replica that works, or all of them, obey the order for a while."""

    async def strike(scene: Scene) -> None:
        victim = scene.platform.victim(f"engine-{role}")
        whose = role if everywhere else victim.process.pid
        give_order(scene.platform.data_dir, whose, order)
        await asyncio.sleep(ILL_S)
        take_order_back(scene.platform.data_dir, whose)
        scene.notes.append(f"{'all of ' + role if everywhere else victim.name}: {order} for {ILL_S:g} s")

    return strike


async def _overload(scene: Scene) -> None:
    """One and a half times as many callers as are taken; those that are taken must not suffer."""
    found = await asyncio.to_thread(measure_overload, scene.platform.url, scene.quick)
    scene.broken += [Finding(Kind.OVERLOAD, text) for text in broken_promises(found)]
    scene.notes += [f"{fact.name}: {fact.value or 0:g}" for fact in found.facts]


async def _leader(scene: Scene) -> None:
    """Another broker takes over; the one that was killed comes back later and catches up."""
    if scene.cluster is None or not scene.sessions:
        raise OperatorError("a leader can be killed while a call runs on a cluster: use --cluster")
    partition = partition_of(scene.sessions[-1], scene.platform.settings.kafka.partitions)
    leader = await asyncio.to_thread(scene.cluster.leader, AudioFrame.TOPIC, partition)
    await asyncio.to_thread(scene.cluster.kill_broker, leader)
    scene.notes.append(f"SIGKILL to broker {leader}")
    await asyncio.sleep(LEADER_AWAY_S)
    await asyncio.to_thread(scene.cluster.start_broker, leader)
    await asyncio.to_thread(scene.cluster.wait_whole)


async def _cut(scene: Scene) -> None:
    await scene.wire.cut(CUT_S)


async def _silent(scene: Scene) -> None:
    await scene.wire.fall_silent(CUT_S)


async def _clickhouse_away(scene: Scene) -> None:
    """The embedded ClickHouse lives in the sink's process, which is killed as often as it is started."""
    over_s = asyncio.get_running_loop().time() + scene.away_s
    kills = 0
    while asyncio.get_running_loop().time() < over_s:
        with contextlib.suppress(OperatorError):  # it may be between two lives
            kills += scene.platform.victim(PROCESSES["sink"]).signal(signal.SIGKILL)
        await asyncio.sleep(_POLL_S)
    scene.notes.append(f"the sink was killed {kills} times in {scene.away_s:g} s")


async def _poison(scene: Scene) -> None:
    """Garbage at an even pace over all topics, under the keys of running calls, too."""
    written: list[tuple[asyncio.Future[Position], bool]] = []
    async with LogProducer(scene.platform.settings, "trunkline.faults") as producer:
        for number, (topic, key, value, refused) in enumerate(garbage(scene.random, scene.records, scene.sessions)):
            written.append((producer.publish_raw(topic, key, value), refused))
            if number % _POISON_BATCH == 0:
                await asyncio.sleep(_POISON_BATCH / POISON_PER_S)
        for future, refused in written:
            place = await future
            (scene.poisoned if refused else scene.doubtful).add((place.topic, place.partition, place.offset))
    scene.notes.append(f"{len(scene.poisoned)} records that are no events, {len(scene.doubtful)} absurd ones")


def _faults() -> dict[str, Fault]:
    faults = [
        Fault(f"kill.{name}", f"kill -9 of {name}", _kill(name), None if name in _SLOW else SWIFT) for name in PROCESSES
    ]
    faults += [
        Fault(f"stop.{name}", f"SIGSTOP of {name} for {STOPPED_S:g} s, then SIGCONT", _stop(name)) for name in PROCESSES
    ]
    faults += [
        Fault(
            f"engine.{order}.{role}",
            f"one replica of {role}: {order}, for {ILL_S:g} s",
            _order(role, order, everywhere=False),
            SWIFT,
            environment=OBEDIENT,
        )
        for order in Order
        for role in HOSTED_ROLES
    ]
    faults += [
        Fault(
            f"outage.{order}.{role}",
            f"every replica of {role}: {order}, for {ILL_S:g} s",
            _order(role, order, everywhere=True),
            environment=OBEDIENT,
            tolerated=DEGRADED,
        )
        for order in (Order.HANG, Order.GARBAGE)
        for role in HOSTED_ROLES
    ]
    faults += [
        Fault("kafka.leader", "kill -9 of the broker that leads the call's audio", _leader, LEADER, needs_cluster=True),
        Fault("overload", "one and a half times as many callers as are taken", _overload, environment=()),
        Fault("client.cut", f"the caller's connection is reset, new ones for {CUT_S:g} s", _cut, through_wire=True),
        Fault("client.silent", f"the caller's connection carries nothing for {CUT_S:g} s", _silent, through_wire=True),
        Fault(
            "poison", f"{RECORDS:,} records of garbage over all topics", _poison, Promise(250, 1000), keeps_calling=True
        ),
        Fault(
            "clickhouse.away",
            f"ClickHouse is away for {AWAY_S:g} s",
            _clickhouse_away,
            Promise(250, 1000),
            keeps_calling=True,
        ),
    ]
    return {fault.name: fault for fault in faults}


FAULTS: Mapping[str, Fault] = _faults()


def chosen(names: str, cluster: bool = False) -> list[Fault]:
    """The faults named, or whole families of them: `kill.stt,client`; all that fit where none is named.

    Raises OperatorError, also where one that is named needs a cluster and there is none.
    """
    if not names:
        return [fault for fault in FAULTS.values() if fault.needs_cluster is cluster]
    found: dict[str, Fault] = {}
    for name in (part.strip() for part in names.split(",")):
        own = {key: fault for key, fault in FAULTS.items() if key == name or key.startswith(f"{name}.")}
        if not own:
            raise OperatorError(f"{name}: no such fault; expected some of {', '.join(FAULTS)}", exit_code=2)
        if unfit := [key for key, fault in own.items() if fault.needs_cluster and not cluster]:
            raise OperatorError(f"{', '.join(unfit)}: needs three brokers; add --cluster", exit_code=2)
        found |= own
    return list(found.values())
