"""Memory over a long run, with call after call and engines that cost nothing; processor time while nobody calls."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.processes import Sample, cores_used, growth_per_hour, sample
from bench.report import Distribution, Fact, Findings, Row
from bench.running import running_state
from bench.voice import AUDIBLE_ANSWER
from streams.settings import REPOSITORY

SESSIONS = 10
_CALL_S = 60.0  # a call lasts so long, then others take its place: what a call leaves behind adds up
_SAMPLE_EVERY_S = 10.0
_SETTLE_S = 2.0
_START_S = 20.0  # what a start sets going, spares above all, has ended by then


def measure_idle(directory: Path, seconds: float) -> Findings:
    """What the platform takes while nobody calls."""
    time.sleep(_START_S)
    before = sample(directory)
    time.sleep(seconds)
    after = sample(directory)
    shares = cores_used(before, after)
    found = Findings(facts=[Fact("idle", "all processes", round(100 * sum(shares.values()), 2), "% of a core")])
    found.facts += [Fact("idle", name, round(100 * share, 2), "% of a core") for name, share in shares.items()]
    found.facts.append(Fact("idle", "memory of all processes", round(after.memory_mib_total), "MiB"))
    return found


def measure_soak(directory: Path, minutes: float) -> Findings:
    """Calls for so long; memory of each process over that time, growth by its second half alone.

    Growth is not added up: ClickHouse between two merges and a heap that fills up would be most of the sum.
    """
    samples, seen_ms, counts = asyncio.run(_soak(directory, minutes * 60))
    group = f"soak, {SESSIONS} sessions at once, {minutes:g} minutes"
    found = Findings([Row(group, AUDIBLE_ANSWER, Distribution.of(seen_ms))])
    growth = growth_per_hour(samples)
    for name, memory in samples[-1].memory_mib.items():
        values = [one.memory_mib.get(name, 0.0) for one in samples]
        found.rows.append(Row(group, f"memory, {name}", Distribution.of(values), "MiB"))
        if name in growth:
            grows = f"{name} grows in the second half ({memory:.0f} MiB at the end)"
            found.facts.append(Fact(group, grows, round(growth[name], 1), "MiB/h"))
    found.facts += [Fact(group, name, count) for name, count in counts.items()]
    return found


async def _soak(directory: Path, seconds: float) -> tuple[list[Sample], list[float], dict[str, int]]:
    samples: list[Sample] = []
    seen_ms: list[float] = []
    counts = {"turns": 0, "unanswered": 0, "early": 0, "failed": 0}

    async def call_again_and_again() -> None:
        url = str(running_state(directory)["url"]).replace("http", "ws", 1)
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > _SETTLE_S + 1:
            seen = await _crowd(url, min(_CALL_S, left_s - _SETTLE_S))
            seen_ms.extend(seen["answer_ms"])
            for name in counts:
                counts[name] += int(seen[name])

    calling = asyncio.create_task(call_again_and_again())
    while not calling.done():
        samples.append(await asyncio.to_thread(sample, directory))
        await asyncio.wait({calling}, timeout=_SAMPLE_EVERY_S)
    await calling
    return samples, seen_ms, counts


async def _crowd(url: str, seconds: float) -> dict[str, Any]:
    arguments = {"url": url, "sessions": SESSIONS, "settle": _SETTLE_S, "seconds": seconds}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.crowd"),
        *(text for name, value in arguments.items() for text in (f"--{name}", str(value))),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    found: dict[str, Any] = json.loads(output)
    return found
