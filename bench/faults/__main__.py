"""`python -m bench.faults`: starts a platform, breaks it in mid-sentence, counts, prints a table, writes JSON."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from api.errors import OperatorError
from bench.environment import forget
from bench.faults import report
from bench.faults.campaign import Campaign, Outcome
from bench.faults.faults import FAULTS, chosen
from bench.faults.plan import Run, plan, plan_run
from bench.faults.platform import running_platform
from bench.faults.proxy import open_wire
from bench.faults.speech import Speech, load_speech
from bench.machine import this_machine
from streams.client import LogError
from tests.support.kafka import TestCluster, running_cluster

QUICK = {"clickhouse_away_s": 15.0, "poison_records": 1000}


def faults(
    seed: Annotated[int, typer.Option(help="Decides faults' moments, speech and contents.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Of each fault.")] = 5,
    only: Annotated[str, typer.Option(help="Faults or families of them: kill.stt,client")] = "",
    run: Annotated[Optional[int], typer.Option(help="Play this run of each fault alone, from 0.")] = None,  # noqa: UP045
    speech: Annotated[Optional[Path], typer.Option(help="A folder of WAV files to speak.")] = None,  # noqa: UP045
    agent: Annotated[str, typer.Option(help="Whom to call; by default the one that the speech is for.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="One run each, and short outages: a look.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when a silence is longer than promised, too.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the platform's data directory.")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="On three brokers: kill those that lead.")] = False,
    names: Annotated[bool, typer.Option("--list", help="List the faults.")] = False,
) -> None:
    """Break a running platform again and again in mid-sentence, and count what its callers lost."""
    if names:
        for fault in FAULTS.values():
            print(f"{fault.name:<24} {fault.about}")
        return
    said = load_speech(speech, agent)
    wanted = chosen(only, cluster)
    planned = (
        plan(seed, [fault.name for fault in wanted], 1 if quick else runs, said.conversations)
        if run is None
        else [plan_run(seed, fault.name, run, said.conversations) for fault in wanted]
    )
    machine = this_machine()
    if unheeded := forget():
        print(f"Not heeded: {', '.join(unheeded)}", file=sys.stderr)
    with _brokers(cluster) as brokers:
        outcomes = asyncio.run(_Campaigns(said, planned, quick, keep, brokers, Console(stderr=True)).play())
    rows = [
        report.row(fault.name, fault.promise, own)
        for fault in wanted
        if (own := [outcome for outcome in outcomes if outcome.run.fault == fault.name])
    ]
    report.show(rows, outcomes, f"{machine}, seed {seed}")
    document = {"machine": machine.as_dict(), "seed": seed, "speech": str(speech or ""), "quick": quick}
    print(f"Written to {report.write({**document, **report.as_json(rows, outcomes)})}")
    broken = any(outcome.findings for outcome in outcomes)
    late = strict and any(row.kept is False for row in rows)
    raise typer.Exit(1 if broken or late or len(outcomes) < len(planned) else 0)


@contextlib.contextmanager
def _brokers(wanted: bool) -> Iterator[TestCluster | None]:
    """Three brokers, or none: then the platform starts its own."""
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="tl-brokers-") as directory, running_cluster(Path(directory)) as cluster:
        yield cluster


@dataclass(frozen=True, slots=True)
class _Campaigns:
    """The runs asked for; those of faults that need other settings have a platform of their own."""

    speech: Speech
    runs: Sequence[Run]
    quick: bool
    keep: bool
    cluster: TestCluster | None
    progress: Console

    async def play(self) -> list[Outcome]:
        """What all runs showed, or those so far when it is interrupted."""
        outcomes: list[Outcome] = []
        environments = [dict(one) for one in {FAULTS[run.fault].environment: None for run in self.runs}]
        try:
            for environment in environments:
                await self._on_platform(environment, outcomes)
        except asyncio.CancelledError:
            self._say("Interrupted: here is what was seen so far.")
        except (OperatorError, LogError) as error:
            if not outcomes:
                raise
            self._say(f"The campaign cannot go on: {error}")
        return outcomes

    async def _on_platform(self, environment: dict[str, str], outcomes: list[Outcome]) -> None:
        self._say("Starting a platform")
        settings = environment | _cluster_environment(self.cluster)
        async with running_platform(settings, self.keep) as platform, open_wire(platform.url) as (wire, wire_url):
            if self.keep:
                self._say(f"Its data stays in {platform.data_dir}")
            scale = QUICK if self.quick else {}
            campaign = Campaign(platform, wire, wire_url, self.speech, self._say, scale, self.cluster)
            runs = [run for run in self.runs if dict(FAULTS[run.fault].environment) == environment]
            await campaign.learn(1 if self.quick else 2, sorted({run.conversation for run in runs}))
            for run in runs:
                outcomes.append(await campaign.run(FAULTS[run.fault], run))
                self._say(_line(len(outcomes), len(self.runs), outcomes[-1]))

    def _say(self, line: str) -> None:
        self.progress.print(line, highlight=False, markup=False, soft_wrap=True)


def _cluster_environment(cluster: TestCluster | None) -> dict[str, str]:
    if cluster is None:
        return {}
    kafka = cluster.settings().kafka
    return {
        "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "TRUNKLINE_KAFKA__REPLICATION_FACTOR": str(kafka.replication_factor),
        "TRUNKLINE_KAFKA__MIN_INSYNC_REPLICAS": str(kafka.min_insync_replicas),
    }


def _line(number: int, count: int, outcome: Outcome) -> str:
    silence = max((one.longest_ms for one in outcome.silences), default=None)
    heard = "no call" if silence is None else f"{silence / 1000:.2f} s silence"
    found = ", ".join(sorted({str(finding.kind) for finding in outcome.findings})) or "whole"
    where = f"{outcome.run.fault} run {outcome.run.number}, {outcome.conversation}, {outcome.run.moment}"
    return f"[{number}/{count}] {where}: {heard}, {found}"


if __name__ == "__main__":
    try:
        typer.run(faults)
    except (OperatorError, LogError) as error:
        sys.exit(f"trunkline: {error}")
