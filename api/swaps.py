"""Swaps a role's engines beside running calls: the new ones are warmed, take over between turns, the old ones leave.

It runs in the supervisor. What it decides lies in `processors/choices.py`'s file, which stages follow; whether they
still need an old generation shows in the connections that they keep to it.
"""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from api.errors import OperatorError
from api.platform import generation_parts
from api.supervisor import Process, Supervisor
from processors import choices, models
from processors.agent_models import check_models, laid_beside, wanted
from processors.agents import load_agents
from processors.choices import SWAPPABLE, Choice, Kept, Scope, Watched, content_of, superseded_us, without
from processors.engine_client import replicas
from processors.engine_frames import engine_name
from processors.hosted import hosted_roles
from streams import ready
from streams.clock import Clock
from streams.settings import Settings
from streams.yamlfile import ConfigError

LOOK_S = 0.5
CONNECTED_WITHIN_S = 10.0  # a stage that is away takes the new engines when it is back
OUTCOMES_MAX = 8
UNUSED_S = 5.0  # a stage that was restarted has come back by then


class Swaps:
    """Performs the swaps of one supervisor, one after another.

    `stage` is the component of a worker's container; its swaps are those of that stage's roles alone.
    """

    def __init__(self, settings: Settings, supervisor: Supervisor, clock: Clock, stage: str | None = None) -> None:
        """Raises ConfigError where models.yaml cannot be read."""
        self._settings = settings
        self._supervisor = supervisor
        self._clock = clock
        self._stage = stage
        self._turn = asyncio.Lock()
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._unused_s: dict[tuple[str, int], float] = {}
        self._watched = {role: Watched(settings, role) for role in SWAPPABLE}
        self._content = {
            role: content_of(settings, role, choices.own_choice(settings, role))
            for role in SWAPPABLE
            if role in hosted_roles(settings)
        }

    async def request(self, asked: Mapping[str, Any]) -> None:
        """Does what was asked for: a swap, or to `follow` what agents' files name for a role.

        Its outcome stands in the supervisor's state, under the request's id.
        """
        self._tell(asked["id"], state="warming")
        try:
            await self._supervisor.all_ready()
            async with self._turn:
                if "follow" in asked:
                    done: dict[str, Any] = {"agents": await self._follow(asked["follow"])}
                else:
                    done = {"generation": await self._swap(asked["role"], asked["model"], asked["scope"])}
        except asyncio.CancelledError:
            self._tell(asked["id"], state="failed", problem="the platform is being stopped", exit_code=1)
            raise
        except (OperatorError, ConfigError) as error:
            code = error.exit_code if isinstance(error, OperatorError) else 1
            self._tell(asked["id"], state="failed", problem=str(error), exit_code=code)
        else:
            self._tell(asked["id"], state="done", **done)

    def _tell(self, number: str, **outcome: Any) -> None:
        """The latest outcomes stand in the supervisor's state."""
        self._outcomes[number] = outcome
        for old in list(self._outcomes)[:-OUTCOMES_MAX]:
            del self._outcomes[old]
        self._supervisor.note(swaps=self._outcomes)

    async def tend(self) -> None:
        """Stops generations that nobody needs any more, or that were to be gone by now. Returns never."""
        await self._supervisor.all_ready()
        while True:
            for role in self._content:
                listed = self._watched[role].choices()
                for generation in dict.fromkeys(choice.generation for choice in listed):
                    if self._is_over(role, listed, generation):
                        async with self._turn:
                            await self._retire(role, generation)
            await self._clock.sleep(LOOK_S)

    # ---- taking over

    async def _swap(self, role: str, model: str, scope: Scope) -> int:
        kept, wanted = self._kept(role), self._wanted(role, model)
        before = kept.choices
        there = next((choice for choice in before if choice.same_model(wanted)), None)
        if there is None:
            wanted = replace(wanted, generation=kept.last + 1)
            await self._supervisor.add(self._processes(role, wanted))
            kept = replace(kept, last=wanted.generation)
        elif there.generation == kept.current.generation and (scope == "new" or kept.current.scope == "all"):
            return there.generation
        else:
            wanted = replace(wanted, generation=there.generation)
        standing_by = replace(wanted, scope="standby", since_us=self._clock.now_us())
        choices.write(self._settings, role, replace(kept, choices=(*before, standing_by)))
        await self._connected(role, wanted.generation)
        taking_over = replace(wanted, scope=scope, since_us=self._clock.now_us())
        choices.write(self._settings, role, replace(kept, choices=(*before, taking_over)))
        return wanted.generation

    async def _follow(self, role: str) -> list[dict[str, Any]]:
        """Warms what agents' files name now, and has it take over; returns the generations whose agents are others."""
        if role not in self._content:
            return []
        agents = load_agents(self._settings.agents_dir)
        check_models(self._settings, agents)
        kept = self._kept(role)
        after, fresh = laid_beside(kept, wanted(self._settings, agents, role), self._clock.now_us())
        if after == kept:
            return []
        try:
            for choice in fresh:
                await self._supervisor.add(self._processes(role, choice))
        except BaseException:
            for choice in fresh:
                await self._supervisor.remove(self._names(role, choice.generation))
            raise
        standing_by = [replace(choice, scope="standby", since_us=self._clock.now_us()) for choice in fresh]
        choices.write(self._settings, role, replace(after, choices=(*kept.choices, *standing_by)))
        for choice in fresh:
            await self._connected(role, choice.generation)
        choices.write(self._settings, role, after)
        changed = [choice for choice in after.choices if choice.agents and choice not in kept.choices]
        return [{"model": one.name, "generation": one.generation, "agents": one.agents} for one in changed]

    def _kept(self, role: str) -> Kept:
        if role not in self._content:
            raise OperatorError(f"the {role} engine runs in no process of ours, so it is swapped where it runs")
        return choices.with_content(self._settings, role, choices.read(self._settings, role), self._content[role])

    def _wanted(self, role: str, name: str) -> Choice:
        try:
            return choices.find(self._settings, role, name)
        except models.ModelError as error:
            raise OperatorError(str(error), exit_code=2) from error

    def _processes(self, role: str, choice: Choice) -> list[Process]:
        parts = generation_parts(self._settings, role, choice, self._stage)
        return [dataclasses.replace(process, last=True) for process in parts]

    async def _connected(self, role: str, generation: int) -> None:
        """Returns when a stage has connected to it, so that no turn waits for that."""
        until_s = self._clock.monotonic_s() + CONNECTED_WITHIN_S
        while not self._clients(role, generation) and self._clock.monotonic_s() < until_s:
            await self._clock.sleep(0.05)

    # ---- leaving

    def _is_over(self, role: str, listed: Sequence[Choice], generation: int) -> bool:
        superseded = superseded_us(listed, generation)
        if superseded is None:
            return False
        if self._clock.now_us() >= superseded + 1e6 * self._settings.engines.drain_s:
            return True
        key, now_s = (role, generation), self._clock.monotonic_s()
        if self._clients(role, generation):
            self._unused_s.pop(key, None)
            return False
        return now_s - self._unused_s.setdefault(key, now_s) >= UNUSED_S

    async def _retire(self, role: str, generation: int) -> None:
        """First nobody is sent there any more, then what is at work there ends, then the processes do."""
        kept = choices.read(self._settings, role)
        if superseded_us(kept.choices, generation) is None:
            return  # it was taken back meanwhile
        choices.write(self._settings, role, replace(kept, choices=without(kept.choices, generation)))
        until_s = self._clock.monotonic_s() + CONNECTED_WITHIN_S
        while self._clients(role, generation) and self._clock.monotonic_s() < until_s:
            await self._clock.sleep(0.05)
        await self._supervisor.remove(self._names(role, generation))
        self._unused_s.pop((role, generation), None)

    def _clients(self, role: str, generation: int) -> int:
        """How many connections stages keep to its processes."""
        facts = [ready.read(self._settings, name) for name in self._names(role, generation)]
        return sum(int(one.get("clients", 0)) for one in facts if one is not None)

    def _names(self, role: str, generation: int) -> list[str]:
        return [engine_name(role, number, generation) for number in range(replicas(self._settings, role))]
