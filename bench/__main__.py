"""`python -m bench`: starts what it measures, measures, prints a table, writes JSON, and stops what it started."""

import sys
from enum import StrEnum
from typing import Annotated, Optional

import typer
from rich.console import Console

from api.errors import OperatorError
from bench import hops, overload, recovery, report, restart, voice
from bench.machine import this_machine
from bench.running import platform_directory, running_broker, running_platform
from streams.broker import BrokerError
from streams.client import LogError
from streams.provision import ensure_topics


class Part(StrEnum):
    """What can be measured by itself."""

    HOPS = "hops"
    VOICE = "voice"
    OVERLOAD = "overload"
    RECOVERY = "recovery"
    RESTART = "restart"


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer records and turns: a look, not a measurement.")] = False,
    only: Annotated[Optional[Part], typer.Option(help="Measure this alone.")] = None,  # noqa: UP045
) -> None:
    """Measure the log's latency and voice-to-voice latency on this machine."""
    machine = this_machine()
    progress = Console(stderr=True)
    found = report.Findings()
    if only in (None, Part.HOPS):
        progress.print("Measuring hops over the log")
        seconds = 6 if quick else 30
        with running_broker() as settings:
            found.add(hops.measure_hops(settings, {rate: rate * seconds for rate in hops.RATES_PER_S}))
    if only in (None, Part.VOICE):
        progress.print("Measuring calls")
        with running_platform() as url:
            found.add(voice.measure_voice(url, quick))
    if only in (None, Part.OVERLOAD):
        progress.print("Offering more calls than can be taken")
        with running_platform() as url:
            found.add(overload.measure_overload(url, quick))
    if only in (None, Part.RECOVERY):
        progress.print("Taking over conversations")
        with running_broker() as settings:
            ensure_topics(settings)
            found.add(recovery.measure_recovery(settings, quick))
    if only in (None, Part.RESTART):
        progress.print("Killing each process in turn")
        with platform_directory() as directory:
            found.add(restart.measure_restarts(directory, 2 if quick else 10))
    report.show(found, str(machine))
    print(f"Written to {report.write(found, machine.as_dict())}")


if __name__ == "__main__":
    try:
        typer.run(bench)
    except (OperatorError, BrokerError, LogError) as error:
        sys.exit(f"trunkline: {error}")
