"""`trunkline capacity`: what so many calls need, and what breaks first on the way there."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from api.cli.context import settings_of
from api.cli.output import print_json, print_table
from api.errors import OperatorError
from processors.capacity import profile as profiles
from processors.capacity.plan import Plan, UnitPlan, plan
from processors.capacity.profile import Profile
from streams.settings import REPOSITORY, Settings
from streams.topics import STAGES, TOPICS
from streams.yamlfile import ConfigError

DEFAULT = REPOSITORY / "infra" / "capacity" / "cpu.yaml"


def show(sessions: Sequence[int], file: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """The plan for one number of calls; for several a row each, where each says what breaks beyond the one before."""
    profile = _load(file)
    kept_days = _kept_days(profile, settings_of(data_dir))
    ordered = sorted(set(sessions))
    plans = [plan(profile, count, kept_days, since) for since, count in itertools.pairwise((0, *ordered))]
    if as_json:
        for one in plans:
            print_json(asdict(one))
    elif len(plans) == 1:
        _print(plans[0])
    else:
        _print_walk(plans)


def figures(file: Path | None, as_json: bool) -> None:
    """Every figure of a profile, with its unit, its origin and its source."""
    rows = [(path, *figure.model_dump().values()) for path, figure in profiles.figures(_load(file))]
    columns = ["figure", "value", "unit", "origin", "source"]
    if as_json:
        for row in rows:
            print_json(dict(zip(columns, row, strict=True)))
    else:
        cells = [[path, f"{value:,g}", *rest] for path, value, *rest in rows]
        print_table(columns, cells, right=["value"])


def _load(file: Path | None) -> Profile:
    try:
        return profiles.load_profile(file or DEFAULT)
    except ConfigError as error:
        raise OperatorError(str(error)) from error


def _kept_days(profile: Profile, settings: Settings) -> dict[str, float]:
    """By topic. Raises OperatorError for events that are kept for ever, for which no disk is enough."""
    kept = {name: TOPICS[name].retention_days(settings) for name in profile.records}
    if endless := [name for name, days in kept.items() if math.isinf(days) and TOPICS[name].cleanup == "delete"]:
        raise OperatorError(f"{', '.join(endless)}: kept for ever, no disk is enough; see kafka.retention_days")
    return kept


def _print(made: Plan) -> None:
    print(f"{made.sessions:,} calls at once, {made.profile}: {_totals(made)}\n")
    _print_topics(made)
    needs = ", ".join(f"{name} {count:,}" for name, count in made.log.needs.items())
    print(f"\nKafka: {made.log.partitions:,} partitions a topic, {made.log.brokers:,} brokers ({needs})\n")
    _print_units(["process", "runs on", "calls each", "processes"], made.processes)
    print(f"All of them and a broker on one core: {_amount(made.calls_a_core)} calls, where models cost nothing.\n")
    _print_units(["model", "runs on", "calls each", "devices"], made.engines)
    print()
    rows = [(one.name, f"{one.sessions:,}", one.way_out) for one in made.limits]
    print_table(["carries no more", "calls", "the way out"], rows, right=["calls"])
    first = made.first
    print(f"\nFirst to break: {first.name}, with {first.sessions:,} calls." if first else "\nNothing breaks before.")


def _totals(made: Plan) -> str:
    total = made.totals
    return (
        f"{total.cores:,} cores, {total.gpus:,} GPUs, {_amount(total.disk_tb)} TB of disk, "
        f"{_amount(total.network_mb_s)} MB/s out of the brokers"
    )


def _print_topics(made: Plan) -> None:
    rows = [
        (
            one.topic,
            *map(_amount, (one.records_s, one.in_mb_s, one.between_mb_s, one.out_mb_s)),
            "the latest" if one.kept_days is None else f"{one.kept_days:g} days",
            _amount(one.disk_tb),
        )
        for one in made.topics
    ]
    columns = ["topic", "records/s", "MB/s in", "between brokers", "out", "kept", "TB on disk"]
    print_table(columns, rows, right=[name for name in columns if name not in ("topic", "kept")])


def _print_units(columns: Sequence[str], units: Sequence[UnitPlan]) -> None:
    rows = [(one.name, one.runs_on, _amount(one.sessions_each), f"{one.units:,}") for one in units]
    print_table(columns, rows, right=columns[2:])


def _print_walk(plans: Sequence[Plan]) -> None:
    columns = ["calls", "partitions", "brokers", "gateways", *STAGES]
    columns += ["devices for models", "cores", "GPUs", "TB of disk", "MB/s", "first to break"]
    rows = [_row(made) for made in plans]
    print_table(columns, rows, right=columns[:-1])


def _row(made: Plan) -> list[str]:
    counts = {one.name: one.units for one in made.processes}
    devices = sum(one.units for one in made.engines)
    numbers = [made.sessions, made.log.partitions, made.log.brokers, counts["gateway"]]
    numbers += [*(counts[stage] for stage in STAGES), devices, made.totals.cores, made.totals.gpus]
    first = f"{made.first.name}, with {made.first.sessions:,}" if made.first else ""
    return [*map("{:,}".format, numbers), _amount(made.totals.disk_tb), _amount(made.totals.network_mb_s), first]


def _amount(value: float) -> str:
    """Three digits that count, no more; what is nearly nothing is said to be so."""
    if value < 0.001:
        return "0" if value == 0 else "<0.001"
    digits = 2 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(0, digits)}f}"
