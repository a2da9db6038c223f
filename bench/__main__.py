"""`python -m bench`: starts what it measures, measures, prints a table, writes JSON, and stops what it started."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Optional

import typer
from rich.console import Console

from api.errors import OperatorError
from bench import arrivals, capacity, hops, overload, recovery, report, restart, soak, voice
from bench.machine import this_machine
from bench.peers import pipecat_peer
from bench.report import Fact, Findings
from bench.running import Trunkline, platform_directory, running_broker, running_platform
from streams.broker import BrokerError
from streams.client import LogError
from streams.provision import ensure_topics


class Part(StrEnum):
    """What can be measured by itself."""

    VOICE = "voice"
    PEERS = "peers"
    CAPACITY = "capacity"
    ARRIVALS = "arrivals"
    IDLE = "idle"
    SOAK = "soak"
    HOPS = "hops"
    OVERLOAD = "overload"
    RECOVERY = "recovery"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Options:
    """How long each part may take."""

    quick: bool
    soak_minutes: float


def _voice(options: Options) -> Findings:
    with platform_directory(voice.ENVIRONMENT) as directory:
        return voice.measure_voice(Trunkline(directory), voice.scenes(options.quick), options.quick)


def _peers(options: Options) -> Findings:
    found = Findings()
    if not pipecat_peer.installed():
        found.facts.append(Fact("Pipecat", "not installed: make bench-peers", None))
        return found
    for profile in pipecat_peer.PROFILES:
        with pipecat_peer.running_pipecat(profile) as peer:
            wanted = [scene for scene in voice.scenes(options.quick) if scene.wire == "twilio"]
            found.add(voice.measure_voice(peer, wanted, options.quick))
    return found


def _capacity(options: Options) -> Findings:
    own, _ = capacity.platform_cores()
    with platform_directory(capacity.ENVIRONMENT, own) as directory:
        return capacity.measure_capacity(directory, options.quick)


def _arrivals(options: Options) -> Findings:
    with platform_directory(voice.ENVIRONMENT) as directory:
        return arrivals.measure_arrivals(Trunkline(directory), 10 if options.quick else 50)


def _idle(options: Options) -> Findings:
    with platform_directory() as directory:
        return soak.measure_idle(directory, 10.0 if options.quick else 30.0)


def _soak(options: Options) -> Findings:
    with platform_directory(capacity.ENVIRONMENT) as directory:
        return soak.measure_soak(directory, options.soak_minutes)


def _hops(options: Options) -> Findings:
    seconds = 6 if options.quick else 30
    with running_broker() as settings:
        return hops.measure_hops(settings, {rate: rate * seconds for rate in hops.RATES_PER_S})


def _overload(options: Options) -> Findings:
    with running_platform() as url:
        return overload.measure_overload(url, options.quick)


def _recovery(options: Options) -> Findings:
    with running_broker() as settings:
        ensure_topics(settings)
        return recovery.measure_recovery(settings, options.quick)


def _restart(options: Options) -> Findings:
    with platform_directory() as directory:
        return restart.measure_restarts(directory, 2 if options.quick else 10)


PARTS: Mapping[Part, tuple[str, Callable[[Options], Findings]]] = {
    Part.VOICE: ("Measuring calls", _voice),
    Part.PEERS: ("Measuring calls to other frameworks", _peers),
    Part.CAPACITY: ("Filling one core with calls", _capacity),
    Part.ARRIVALS: ("Starting sessions", _arrivals),
    Part.IDLE: ("Doing nothing", _idle),
    Part.SOAK: ("Calling again and again", _soak),
    Part.HOPS: ("Measuring hops over the log", _hops),
    Part.OVERLOAD: ("Offering more calls than can be taken", _overload),
    Part.RECOVERY: ("Taking over conversations", _recovery),
    Part.RESTART: ("Killing each process in turn", _restart),
}


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer records and turns: a look, not a measurement.")] = False,
    only: Annotated[Optional[list[Part]], typer.Option(help="Measure this alone; may be repeated.")] = None,  # noqa: UP045
    soak_minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--soak", help="How long calls go on for memory to be watched; 30, with --quick 2."),
    ] = None,
) -> None:
    """Measure the platform on this machine, from its callers' side and from its log."""
    machine = this_machine()
    progress = Console(stderr=True)
    found = report.Findings()
    options = Options(quick, soak_minutes if soak_minutes is not None else 2.0 if quick else 30.0)
    for part, (doing, measure) in PARTS.items():
        if not only or part in only:
            progress.print(doing)
            found.add(measure(options))
    report.show(found, str(machine))
    print(f"Written to {report.write(found, machine.as_dict())}")


if __name__ == "__main__":
    try:
        typer.run(bench)
    except (OperatorError, BrokerError, LogError) as error:
        sys.exit(f"trunkline: {error}")
