"""What a campaign found, as a table for people and as JSON that names the machine and every run."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.faults.campaign import Outcome
from bench.faults.checks import Kind
from bench.faults.faults import Promise
from bench.report import RESULTS, percentile

_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Row:
    """One fault over all its runs. Silences are milliseconds; `kept` is None where none are promised or measured."""

    fault: str
    runs: int
    silence_p50_ms: float | None
    silence_max_ms: float | None
    kept: bool | None
    lost: int
    doubled: int
    transcripts: int
    effects: int
    others: int
    reconnects: int
    repeats: int


def row(fault: str, promise: Promise | None, outcomes: Sequence[Outcome]) -> Row:
    """Sums the runs up; a run's silence is the longest of its calls'."""
    silences = sorted(max(one.longest_ms for one in outcome.silences) for outcome in outcomes if outcome.silences)
    p50_ms = percentile(silences, 50) if silences else None
    count = _counter(outcomes)
    return Row(
        fault=fault,
        runs=len(outcomes),
        silence_p50_ms=p50_ms,
        silence_max_ms=silences[-1] if silences else None,
        kept=_kept(promise, p50_ms, silences[-1] if silences else None),
        lost=count([Kind.LOST, Kind.CALL]),
        doubled=count([Kind.DOUBLED]),
        transcripts=count([Kind.TRANSCRIPT]),
        effects=count([Kind.EFFECT]),
        others=count([Kind.ROWS, Kind.OFFSETS, Kind.DEAD_LETTERS, Kind.PLATFORM, Kind.OVERLOAD]),
        reconnects=sum(outcome.reconnects for outcome in outcomes),
        repeats=sum(outcome.repeats for outcome in outcomes),
    )


def _kept(promise: Promise | None, p50_ms: float | None, max_ms: float | None) -> bool | None:
    if promise is None or p50_ms is None or max_ms is None:
        return None
    return (promise.p50_ms is None or p50_ms <= promise.p50_ms) and (promise.max_ms is None or max_ms <= promise.max_ms)


def _counter(outcomes: Sequence[Outcome]) -> Callable[[Iterable[Kind]], int]:
    found = [finding.kind for outcome in outcomes for finding in outcome.findings]
    return lambda kinds: sum(kind in set(kinds) for kind in found)


def show(rows: Sequence[Row], outcomes: Sequence[Outcome], head: str, console: Console | None = None) -> None:
    """Prints the table, and below it what was found wrong, run by run."""
    console = console or Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(head, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("fault", no_wrap=True)
    for column in (
        "runs",
        "silence p50",
        "max s",
        "promise",
        "lost",
        "doubled",
        "words",
        "effects",
        "other",
        "resumed",
    ):
        table.add_column(column, justify="right")
    for one in rows:
        counts = (one.lost, one.doubled, one.transcripts, one.effects, one.others, one.reconnects)
        silence = (_seconds(one.silence_p50_ms), _seconds(one.silence_max_ms), _verdict(one.kept))
        table.add_row(one.fault, str(one.runs), *silence, *map(str, counts))
    console.print(table)
    for outcome in outcomes:
        for finding in outcome.findings:
            name = f"{outcome.run.fault} run {outcome.run.number}"
            console.print(f"{name}: {finding.kind}: {finding.detail}", highlight=False, markup=False, soft_wrap=True)


def write(document: Mapping[str, Any], directory: Path = RESULTS) -> Path:
    """Writes the campaign as JSON, named after the time in UTC, and returns the file."""
    now = datetime.now(UTC)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"faults-{now:%Y-%m-%dT%H%M%SZ}.json"
    path.write_text(json.dumps({"measured_at": now.isoformat(timespec="seconds"), **document}, indent=1) + "\n")
    return path


def as_json(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The rows, and every run with its moment and what it showed."""
    return {"rows": [asdict(one) for one in rows], "runs": [asdict(outcome) for outcome in outcomes]}


def _seconds(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds / 1000:.2f}"


def _verdict(kept: bool | None) -> str:
    return {None: "-", True: "kept", False: "broken"}[kept]
