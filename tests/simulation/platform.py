"""The whole pipeline in simulated time: one seed, one history of calls and of what befalls the platform."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import structlog

from processors import recovery
from processors.agents import Agent, load_agents
from processors.engine import EngineClient
from processors.intent.core import create_core as intent_core
from processors.llm.core import Conversation
from processors.llm.knowledge import KnowledgeIndex
from processors.pipeline import PIPELINE, Stage
from processors.stage import Core
from processors.stt.core import SttCore
from processors.stt.endpoint import rules_of
from processors.tts.core import create_core as tts_core
from schemas.events import AudioFrame
from streams.keys import partition_of
from streams.settings import REPOSITORY
from tests.simulation import log as simulated
from tests.simulation.engines import Engines, Erp, Illness, embed
from tests.simulation.gateway import Caller, Gateway, Line, session_ids
from tests.simulation.log import SimulatedLog, Weather
from tests.simulation.speech import detect
from tests.simulation.workers import Group, Worker
from tests.simulation.world import Process, World

PARTITIONS = 3
GOOD_WEATHER, HEALTH = Weather(), Illness()
HISTORY_S_MAX = 900.0
AFTERMATH_S = 70.0  # longer than anything that a stage waits for after a call, and takeovers that come late


@cache
def agents() -> Mapping[str, Agent]:
    """The demo agent, whose language model may open a ticket."""
    (shop,) = load_agents(REPOSITORY / "infra" / "agents").values()
    tools = [tool.model_copy(update={"offered": tool.name == "open_ticket"}) for tool in shop.tools]
    return {shop.id: shop.model_copy(update={"tools": tuple(tools)})}


@cache
def cores() -> Mapping[str, Core[Any]]:
    """The four real cores; they keep nothing, so every worker may use the same."""
    knowledge = {name: KnowledgeIndex.build(agent, embed) for name, agent in agents().items()}
    return {
        "stt": SttCore(detect, rules_of(agents())),
        "intent": intent_core(agents(), embed),
        "llm": Conversation(agents(), knowledge, {"erp_url": "http://erp", "secrets": {}}),
        "tts": tts_core(agents()),
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed brings: who calls and says what, and what goes wrong until `storm_s`, when it clears up."""

    seed: int
    scripts: tuple[tuple[Line, ...], ...]
    mutes: bool = False
    reports: bool = False
    workers: int = 1
    weather: Weather = GOOD_WEATHER
    illness: Illness = HEALTH
    storm_s: float = 0.0
    crashes: float = 0.0
    freezes: float = 0.0
    evictions: float = 0.0
    clock_steps: float = 0.0
    clock_skew_s: float = 0.0
    poison: float = 0.0

    @property
    def stragglers(self) -> bool:
        """Whether workers may write after somebody else took over: a last snapshot of theirs is nobody's to delete."""
        return bool(self.freezes or self.evictions or self.weather.late_share)

    @property
    def engines_fail(self) -> bool:
        """Whether answers may be other ones than on a good day."""
        return self.illness != HEALTH


@dataclass(frozen=True, slots=True)
class Poison:
    """A record that can only be refused: audio of another rate in the midst of a call."""

    where: simulated.Partition
    offset: int
    at_s: float
    caller: Caller


@dataclass(slots=True)
class Platform:
    """The running platform of one seed."""

    plan: Plan
    world: World
    log: SimulatedLog
    erp: Erp
    engines: Engines
    gateway: Gateway
    callers: list[Caller] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    workers: dict[tuple[str, int], Worker] = field(default_factory=dict)
    lives: int = 0
    poisoned: list[Poison] = field(default_factory=list)

    @property
    def behind(self) -> dict[str, int]:
        """Records that are not yet committed, by stage, where there are any."""
        behind = {}
        for stage in PIPELINE:
            for kind in stage.consumes:
                for number in range(self.log.partitions):
                    where = simulated.Partition(kind.TOPIC, number)
                    missing = len(self.log.records[where]) - self.log.committed.get((stage.group, where), 0)
                    if missing:
                        behind[f"{stage.name} {kind.TOPIC}/{number}"] = missing
        return behind

    def start_worker(self, stage: Stage, index: int, after_s: float) -> None:
        """Starts a life of a stage's process."""
        self.lives += 1
        skew_s = self.world.random.uniform(-1, 1) * self.plan.clock_skew_s
        process = Process(self.world, f"{stage.name}.{index}#{self.lives}", skew_s)
        clients: dict[str, EngineClient] = {role: self.engines.client(role) for role in stage.roles}
        worker = Worker(self.log, self.groups[stage.name], process, cores()[stage.name], clients)
        self.groups[stage.name].register(worker, index)
        self.workers[stage.name, index] = worker
        worker.start(after_s)

    # What befalls it.

    def brew(self) -> None:
        """Schedules the storm: each kind of trouble comes at its own rate, as a Poisson process."""
        plan = self.plan
        for rate, strike in (
            (plan.crashes, self._crash),
            (plan.freezes, self._freeze),
            (plan.evictions, self._evict),
            (plan.clock_steps, self._step_clock),
            (plan.poison, self._poison),
        ):
            at_s = 0.0
            while rate and (at_s := at_s + self.world.random.expovariate(rate)) < plan.storm_s:
                self.world.after(at_s, strike)
        if plan.storm_s:
            self.log.stormy = True
            self.world.after(plan.storm_s, self._clear_up)

    def _clear_up(self) -> None:
        self.log.stormy = False
        self.world.note("clears up")

    def _any(self) -> tuple[tuple[str, int], Worker]:
        key = self.world.random.choice(sorted(self.workers))
        return key, self.workers[key]

    def _crash(self) -> None:
        (name, index), worker = self._any()
        if not worker.process.alive:
            return
        self.world.note("crash", worker.process.name)
        worker.process.kill()
        self.groups[name].died(worker)
        stage = self.groups[name].stage
        back_s = self.world.random.choice((0.05, 0.3, self.world.random.uniform(0, 4)))
        self.world.after(back_s, self.start_worker, stage, index, self.world.random.uniform(0.05, 0.4))

    def _freeze(self) -> None:
        (name, _), worker = self._any()
        if worker.process.alive and not worker.process.frozen:
            seconds = self.world.random.choice((0.2, 1.0, self.world.random.uniform(0, 10)))
            self.world.note("freeze", worker.process.name, seconds)
            worker.process.freeze(seconds)
            self.groups[name].died(worker)

    def _evict(self) -> None:
        (name, _), worker = self._any()
        if worker.process.alive:
            self.groups[name].evict(worker, self.world.random.uniform(0.0, 3.0))

    def _poison(self) -> None:
        calling = [caller for caller in self.callers if caller.call is not None and not caller.call.over]
        if not calling:
            return
        caller = self.world.random.choice(calling)
        where = simulated.Partition(AudioFrame.TOPIC, partition_of(caller.session_id, PARTITIONS))
        poison = Poison(where, len(self.log.records[where]), self.world.now_s, caller)
        self.poisoned.append(poison)
        frame = AudioFrame(
            event_id=f"poison-{len(self.poisoned)}",
            session_id=caller.session_id,
            tenant_id="demo",
            agent_id="shop",
            turn=0,
            seq=0,
            occurred_at=0,
            pcm=b"\1\0",
            sample_index=0,
            sample_rate_hz=8000,
            captured_at=0,
        )
        self.log.append(where, caller.session_id.encode(), simulated.stored(frame), 0)

    def _step_clock(self) -> None:
        process = self.world.random.choice([worker.process for _, worker in sorted(self.workers.items())])
        step_s = self.world.random.choice((-1, 1)) * self.world.random.choice((0.01, 0.5, 2.0, 4.0))
        self.world.note("clock", process.name, step_s)
        process.offset_us += round(step_s * 1e6)


@contextlib.contextmanager
def simulated_log() -> Iterator[None]:
    """Recovery reads the simulated log, and logging is silent."""
    real: Any = recovery
    before = real.LogReader
    real.LogReader = simulated.Reader
    configured = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    try:
        yield
    finally:
        real.LogReader = before
        structlog.configure(**configured)


def play(plan: Plan, *, verbose: bool = False) -> Platform:
    """Runs the plan until all calls are over and all is quiet."""
    world = World(plan.seed, verbose=verbose)
    log = SimulatedLog(world, PARTITIONS, plan.weather)
    erp = Erp(world)
    engines = Engines(world, plan.illness, lambda: log.stormy, erp)
    gateway = Gateway(Process(world, "gateway"), log)
    platform = Platform(plan, world, log, erp, engines, gateway)
    for stage in PIPELINE:
        platform.groups[stage.name] = Group(log, stage)
        for index in range(plan.workers):
            platform.start_worker(stage, index, 0.01)
    for session_id, script in zip(session_ids(world.random, len(plan.scripts)), plan.scripts, strict=True):
        caller = Caller(
            Process(world, f"caller {session_id[:8]}"), gateway, session_id, script, plan.mutes, plan.reports
        )
        platform.callers.append(caller)
        caller.start(world.random.uniform(0.5, 2.0))
    platform.brew()
    with simulated_log():
        try:
            world.run(HISTORY_S_MAX, lambda: all(caller.done for caller in platform.callers))
            quiet_s = max(world.now_s, plan.storm_s)
            world.run(
                quiet_s + AFTERMATH_S, lambda: world.now_s > quiet_s and not platform.behind and not leftovers(platform)
            )
        finally:
            world.close()
    return platform


def leftovers(platform: Platform) -> list[str]:
    """Snapshots of sessions that are over."""
    return [f"{stage.name} {key}" for stage in PIPELINE for key in platform.log.snapshots(stage.name)]
