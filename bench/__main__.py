"""`python -m bench`: starts what it measures, measures, prints a table, writes JSON, and stops what it started."""

import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Optional

import typer
from rich.console import Console

from api.errors import OperatorError
from bench import arrivals, capacity, hops, overload, readers, recovery, report, restart, soak, voice
from bench.environment import forget
from bench.machine import this_machine
from bench.peers import pipecat_peer
from bench.processes import wait_for_calm
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
    READERS = "readers"
    RECOVERY = "recovery"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Options:
    """How long each part may take, and of how many sessions `capacity` is."""

    quick: bool
    soak_minutes: float
    sessions: tuple[int, ...] = ()


def _voice(options: Options, found: Findings) -> None:
    with platform_directory(voice.ENVIRONMENT) as directory:
        wait_for_calm(directory)
        voice.measure_voice(Trunkline(directory), voice.scenes(options.quick), options.quick, found)


def _peers(options: Options, found: Findings) -> None:
    if not pipecat_peer.installed():
        found.facts.append(Fact("Pipecat", "not installed: make bench-peers", None))
        return
    wanted = [scene for scene in voice.scenes(options.quick) if scene.wire == "twilio"]
    for profile in pipecat_peer.PROFILES[: 1 if options.quick else None]:
        with pipecat_peer.running_pipecat(profile) as peer:
            voice.measure_voice(peer, wanted, options.quick, found)


def _capacity(options: Options, found: Findings) -> None:
    own, _ = capacity.platform_cores()
    with platform_directory(capacity.ENVIRONMENT, own) as directory:
        found.add(capacity.measure_capacity(directory, options.quick, options.sessions))


def _arrivals(options: Options, found: Findings) -> None:
    with platform_directory(voice.ENVIRONMENT) as directory:
        wait_for_calm(directory)
        found.add(arrivals.measure_arrivals(Trunkline(directory), 10 if options.quick else 50))


def _idle(options: Options, found: Findings) -> None:
    with platform_directory() as directory:
        wait_for_calm(directory)
        found.add(soak.measure_idle(directory, 10.0 if options.quick else 30.0))


def _soak(options: Options, found: Findings) -> None:
    with platform_directory(capacity.ENVIRONMENT) as directory:
        found.add(soak.measure_soak(directory, options.soak_minutes))


def _hops(options: Options, found: Findings) -> None:
    seconds = 6 if options.quick else 30
    with running_broker() as settings:
        found.add(hops.measure_hops(settings, {rate: rate * seconds for rate in hops.RATES_PER_S}))


def _overload(options: Options, found: Findings) -> None:
    with running_platform() as url:
        measured = overload.measure_overload(url, options.quick)
    found.add(measured)
    found.facts += [Fact("overload", f"broken: {text}", None) for text in overload.broken_promises(measured)]


def _readers(options: Options, found: Findings) -> None:
    found.add(readers.measure_readers(options.quick))


def _recovery(options: Options, found: Findings) -> None:
    with running_broker() as settings:
        ensure_topics(settings)
        found.add(recovery.measure_recovery(settings, options.quick))


def _restart(options: Options, found: Findings) -> None:
    with platform_directory() as directory:
        found.add(restart.measure_restarts(directory, 2 if options.quick else 10))


PARTS: Mapping[Part, tuple[str, Callable[[Options, Findings], None]]] = {
    Part.VOICE: ("Measuring calls", _voice),
    Part.PEERS: ("Measuring calls to other frameworks", _peers),
    Part.CAPACITY: ("Filling one core with calls", _capacity),
    Part.ARRIVALS: ("Starting sessions", _arrivals),
    Part.IDLE: ("Doing nothing", _idle),
    Part.SOAK: ("Calling again and again", _soak),
    Part.HOPS: ("Measuring hops over the log", _hops),
    Part.OVERLOAD: ("Offering more calls than can be taken", _overload),
    Part.READERS: ("Calling with and without readers", _readers),
    Part.RECOVERY: ("Taking over conversations", _recovery),
    Part.RESTART: ("Killing each process in turn", _restart),
}


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer records and turns: a look, not a measurement.")] = False,
    only: Annotated[Optional[list[Part]], typer.Option(help="Measure this alone; may be repeated.")] = None,  # noqa: UP045
    soak_minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--soak", help="How long calls go on for memory to be watched; 30, with --quick 1."),
    ] = None,
    sessions: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=1, help="Measure so many sessions on one core, whether fewer hold or not; may be repeated."),
    ] = None,
) -> None:
    """Measure the platform on this machine, from its callers' side and from its log."""
    if sessions and only and Part.CAPACITY not in only:
        raise typer.BadParameter("it is for the part capacity, which is not among those of --only")
    machine = this_machine()
    progress = Console(stderr=True)
    if unheeded := forget():
        progress.print(f"Not heeded: {', '.join(unheeded)}")
    found = report.Findings()
    options = Options(
        quick, soak_minutes if soak_minutes is not None else 1.0 if quick else 30.0, tuple(sessions or ())
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        for part, (doing, measure) in PARTS.items():
            if not only or part in only:
                progress.print(doing)
                measure(options, found)
    finally:
        # Whatever ends the run, what was measured by then is worth its time.
        report.show(found, str(machine))
        print(f"Written to {report.write(found, machine.as_dict())}")


if __name__ == "__main__":
    try:
        typer.run(bench)
    except (OperatorError, BrokerError, LogError) as error:
        sys.exit(f"trunkline: {error}")
