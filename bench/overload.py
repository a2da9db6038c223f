"""More callers than the platform can take: how many are admitted, who is refused, and how admitted calls fare.

Recorded callers in real time, who come back when they were told to. First one call after another, then as many callers
as it takes to find how many are admitted, then one and a half times as many for two minutes.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from api.client import CallError, CallResult, RefusedError, Spoken, load_turns, place_call
from api.demo import SCRIPT, Script
from bench.report import Distribution, Fact, Findings, Row
from streams.yamlfile import load_yaml

FACTOR = 1.5
SLOWER_MAX = 1.5  # admitted calls' 95th percentile, beside one call at a time
PROBING_CALLERS = 14
APART_S = 1.0  # callers do not begin in the same instant
THINK_S = 1.0  # from the end of a caller's call to the next one
TURNS = 4  # of the demo's caller, before the goodbye
RATIO, REFUSALS = "p95 loaded by unloaded", "refusals"
_ENDED_WELL = ("hung_up", "completed")


@dataclass(frozen=True, slots=True)
class Times:
    """How long each part takes, in seconds."""

    quiet_s: float
    probing_s: float
    overload_s: float


FULL = Times(quiet_s=90.0, probing_s=75.0, overload_s=120.0)
QUICK = Times(quiet_s=30.0, probing_s=30.0, overload_s=45.0)


@dataclass(slots=True)
class Offer:
    """What became of all calls of one part."""

    latencies_ms: list[float] = field(default_factory=list)
    told_s: list[float] = field(default_factory=list)
    admitted: int = 0
    dropped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    turns: int = 0
    unanswered: int = 0
    talking: int = 0
    levels: list[tuple[float, int]] = field(default_factory=list)

    def change(self, by: int) -> None:
        """A call was admitted (1) or is over (-1)."""
        self.talking += by
        self.levels.append((time.monotonic(), self.talking))

    def most(self, since_s: float) -> int:
        """The most calls at once since then."""
        before = [count for at_s, count in self.levels if at_s < since_s][-1:]
        return max([*before, *(count for at_s, count in self.levels if at_s >= since_s)], default=0)

    def finished(self, result: CallResult) -> None:
        """A call that was held to its end; one that the platform ended before the caller did was dropped."""
        if result.ended not in _ENDED_WELL:
            self.dropped.append(result.ended)
        for turn in result.turns:
            self.turns += 1
            if turn.voice_to_voice_ms is None:
                self.unanswered += 1
            else:
                self.latencies_ms.append(turn.voice_to_voice_ms)


_TROUBLE: Mapping[str, Callable[[Offer], int]] = {
    "admitted calls dropped": lambda offer: len(offer.dropped),
    "calls failed otherwise": lambda offer: len(offer.failed),
    "turns unanswered": lambda offer: offer.unanswered,
}


async def offer(url: str, agent: str, turns: Sequence[Spoken], callers: int, lasting_s: float) -> Offer:
    """So many callers, each calling again and again until the time is over; calls under way are held to their end."""
    found = Offer()
    until_s = time.monotonic() + lasting_s
    await asyncio.gather(*(_caller(url, agent, turns, number, until_s, found) for number in range(callers)))
    return found


async def _caller(url: str, agent: str, turns: Sequence[Spoken], number: int, until_s: float, found: Offer) -> None:
    await asyncio.sleep(number * APART_S)
    while time.monotonic() < until_s:
        wait_s = await _call(url, agent, turns, f"bench-{number}", found)
        await asyncio.sleep(max(0.0, min(wait_s, until_s - time.monotonic())))


async def _call(url: str, agent: str, turns: Sequence[Spoken], caller: str, found: Offer) -> float:
    """One call, or one refusal; returns how long to stay away."""
    begun = False

    def began(_: object) -> None:
        nonlocal begun
        if not begun:
            begun = True
            found.admitted += 1
            found.change(1)

    try:
        found.finished(await place_call(url, turns, agent=agent, caller=caller, on_event=began))
    except RefusedError as refused:
        found.told_s.append(refused.retry_after_s)
        return refused.retry_after_s
    except CallError as error:
        (found.dropped if begun else found.failed).append(str(error))
    finally:
        if begun:
            found.change(-1)
    return THINK_S


def measure_overload(url: str, quick: bool = False) -> Findings:
    """Calls the API at base `url`, three times over."""
    return asyncio.run(_measure(url, QUICK if quick else FULL))


async def _measure(url: str, times: Times) -> Findings:
    script = load_yaml(SCRIPT, Script)
    turns = load_turns([(SCRIPT.parent / turn.file).resolve() for turn in script.turns[:TURNS]])
    quiet = await offer(url, script.agent, turns, 1, times.quiet_s)
    began_s = time.monotonic()
    probing = await offer(url, script.agent, turns, PROBING_CALLERS, times.probing_s)
    admitted = max(1, probing.most(began_s + times.probing_s / 2))
    callers = max(admitted + 1, math.ceil(FACTOR * admitted))
    loaded = await offer(url, script.agent, turns, callers, times.overload_s)
    return findings_of(quiet, probing, admitted, callers, loaded, times)


def findings_of(quiet: Offer, probing: Offer, admitted: int, callers: int, loaded: Offer, times: Times) -> Findings:
    """What the parts show beside one another; what befell calls is counted over all three."""
    every = (quiet, probing, loaded)
    group = f"{callers} callers for {times.overload_s:.0f} s"
    before, after = Distribution.of(quiet.latencies_ms), Distribution.of(loaded.latencies_ms)
    ratio = None if before.p95 is None or after.p95 is None else round(after.p95 / before.p95, 2)
    return Findings(
        rows=[
            Row("one call at a time", "voice to voice", before),
            Row(group, "voice to voice, admitted", after),
            Row(group, "told to stay away", Distribution.of(loaded.told_s), "s"),
        ],
        facts=[
            Fact("overload", "calls at once that were admitted", admitted),
            Fact("overload", "callers offered", callers),
            Fact("overload", RATIO, ratio),
            Fact("overload", "calls admitted", loaded.admitted),
            Fact("overload", REFUSALS, len(loaded.told_s)),
            *(Fact("overload", name, sum(count(offer) for offer in every)) for name, count in _TROUBLE.items()),
            Fact("overload", "turns", sum(offer.turns for offer in every)),
        ],
    )


def broken_promises(found: Findings) -> list[str]:
    """What `findings_of` shows that is promised otherwise."""
    facts = {fact.name: fact.value for fact in found.facts}
    broken = [f"{name}: {facts[name]:.0f}" for name in _TROUBLE if facts[name]]
    ratio = facts[RATIO]
    if ratio is None:
        broken.append(f"{RATIO}: there is nothing to compare")
    elif ratio > SLOWER_MAX:
        broken.append(f"{RATIO}: {ratio:g}, promised {SLOWER_MAX:g} at most")
    if not facts[REFUSALS]:
        broken.append("nobody was refused: it was no overload, or the door is open")
    return broken
