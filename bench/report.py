"""What a run measured: distributions and counts, as a table for people and as JSON to compare runs."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 130  # names are read in one line, in a log as well
RESULTS = Path(__file__).resolve().parent / "results"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values in ascending order: always one that was measured.

    With fewer than 100 values p99 is the largest. Raises ValueError where there are none.
    """
    if not ordered:
        raise ValueError("a percentile needs at least one value")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent: {percent}; expected 0 to 100")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of one quantity; the percentiles are None where nothing was measured."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Distribution":
        """From values in any order."""
        ordered = sorted(values)
        if not ordered:
            return cls(0, None, None, None, None)
        p50, p95, p99 = (round(percentile(ordered, percent), 3) for percent in (50, 95, 99))
        return cls(len(ordered), p50, p95, p99, round(ordered[-1], 3))


@dataclass(frozen=True, slots=True)
class Row:
    """One distribution; `group` says under which conditions."""

    group: str
    name: str
    distribution: Distribution
    unit: str = "ms"


@dataclass(frozen=True, slots=True)
class Fact:
    """A single number that is no distribution, such as a count."""

    group: str
    name: str
    value: float | None
    unit: str = ""


@dataclass(slots=True)
class Findings:
    """What one part of the benchmark found."""

    rows: list[Row] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)

    def add(self, other: "Findings") -> None:
        """Takes over what another part found."""
        self.rows += other.rows
        self.facts += other.facts


def show(findings: Findings, machine: str, console: Console | None = None) -> None:
    """Prints the tables."""
    console = console or Console()
    if console.width < _WIDTH:
        console = Console(file=console.file, width=_WIDTH)
    console.print(machine, highlight=False)
    if findings.rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        table.add_column("measured")
        for column in ("n", "p50", "p95", "p99", "max", "unit"):
            table.add_column(column, justify="right")
        before = ""
        for row in findings.rows:
            one = row.distribution
            numbers = (_number(value) for value in (one.p50, one.p95, one.p99, one.max))
            table.add_row("" if row.group == before else row.group, row.name, str(one.count), *numbers, row.unit)
            before = row.group
        console.print(table)
    if findings.facts:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        table.add_column("counted")
        table.add_column("", justify="right")
        before = ""
        for fact in findings.facts:
            label = "" if fact.group == before else fact.group
            table.add_row(label, fact.name, f"{_number(fact.value)} {fact.unit}".strip())
            before = fact.group
        console.print(table)


def write(findings: Findings, machine: dict[str, object], directory: Path = RESULTS) -> Path:
    """Writes the run as JSON, named after the time in UTC, and returns the file."""
    now = datetime.now(UTC)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{now:%Y-%m-%dT%H%M%SZ}.json"
    document = {"measured_at": now.isoformat(timespec="seconds"), "machine": machine, **asdict(findings)}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
