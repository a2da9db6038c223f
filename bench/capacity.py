"""How many calls one core carries when models cost nothing: the whole platform on one core, its callers on others.

Sessions are added until the platform's own time is too long: what passes from the end of speech to the audible answer,
less the pause that it has to wait for in any case.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import instant_engines
from bench.processes import Sample, cores_used, sample, wait_for_calm
from bench.report import Distribution, Fact, Findings, Row
from bench.running import running_state
from processors.agents import Pauses
from streams.settings import REPOSITORY

SESSIONS = (10, 20, 30, 35, 40, 45, 50, 60, 75, 100, 150, 200)
QUICK_SESSIONS = (10, 40)
OWN_MS_MAX = 100.0
EARLY_MAX = 0.05  # of the turns
ENVIRONMENT = {
    **instant_engines.ENVIRONMENT,
    "TRUNKLINE_LOAD__REFUSE": "false",
    "TRUNKLINE_API__SESSIONS_MAX": "1000",
    "TRUNKLINE_ENGINES__REPLICAS": "1",
}
_SETTLE_S = 20.0  # callers arrive in the first half of it


@dataclass(frozen=True, slots=True)
class Step:
    """So many sessions, what their callers saw, and what the processes took."""

    sessions: int
    seen: dict[str, Any]
    before: Sample
    after: Sample

    @property
    def own_ms(self) -> list[float]:
        """The platform's own time for each turn."""
        return [answer_ms - Pauses().turn_ms for answer_ms in self.seen["answer_ms"]]

    @property
    def held(self) -> bool:
        """Whether every turn was answered, nearly all in time, and nearly none too early: that gives no time at all."""
        p95 = Distribution.of(self.own_ms).p95
        in_time = p95 is not None and p95 <= OWN_MS_MAX and self.seen["early"] <= EARLY_MAX * self.seen["turns"]
        return in_time and not self.seen["unanswered"] and not self.seen["failed"]


def platform_cores() -> tuple[list[int], list[int]]:
    """One core for the platform, the others for callers; the same one for both where there is no other."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[:1], cores[1:] or cores[:1]


def measure_capacity(directory: Path, quick: bool, given: Sequence[int] = ()) -> Findings:
    """Adds sessions to the platform on that directory until it falls behind; with `given` as many, each of them."""
    found = Findings()
    most = 0
    wait_for_calm(directory)
    idle = sample(directory)
    for sessions in given or (QUICK_SESSIONS if quick else SESSIONS):
        step = run_step(directory, sessions, 15.0 if quick else 40.0)
        found.add(_findings(step, idle))
        if step.held:
            most = max(most, sessions)
        elif not given:
            break
    found.facts.append(Fact("capacity, one core", "most sessions that were carried", most))
    return found


def run_step(directory: Path, sessions: int, seconds: float) -> Step:
    """So many sessions for so long."""
    return asyncio.run(_run_step(directory, sessions, seconds))


async def _run_step(directory: Path, sessions: int, seconds: float) -> Step:
    url = str(running_state(directory)["url"]).replace("http", "ws", 1)
    options = {"url": url, "sessions": sessions, "settle": _SETTLE_S, "seconds": seconds}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    callers = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.crowd", *arguments),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    os.sched_setaffinity(callers.pid, platform_cores()[1])
    await asyncio.sleep(_SETTLE_S + 2.0)
    before = sample(directory)
    await asyncio.sleep(seconds - 4.0)
    after = sample(directory)
    output, _ = await callers.communicate()
    return Step(sessions, json.loads(output), before, after)


def _findings(step: Step, idle: Sample) -> Findings:
    group = f"capacity, one core, {step.sessions} sessions"
    seen = step.seen
    found = Findings([Row(group, "the platform's own time", Distribution.of(step.own_ms))])
    found.rows.append(Row(group, "callers' own lateness", Distribution.of(seen["late_ms"])))
    found.facts += [Fact(group, name, seen[name]) for name in ("turns", "unanswered", "early", "failed")]
    shares = cores_used(step.before, step.after)
    found.facts.append(Fact(group, "all processes", round(100 * sum(shares.values()), 1), "% of a core"))
    found.facts += [Fact(group, name, round(100 * share, 1), "% of a core") for name, share in largest(shares)]
    grown = (step.after.memory_mib_total - idle.memory_mib_total) / step.sessions
    found.facts.append(Fact(group, "memory for each session", round(grown, 2), "MiB"))
    return found


def largest(shares: dict[str, float], least: float = 0.005) -> Sequence[tuple[str, float]]:
    """Processes that take a share worth a line."""
    return [(name, share) for name, share in shares.items() if share >= least]
