"""`engines`: which engines each stage asks, whether they are well, and how quickly they answer."""

import asyncio
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from api.cli.context import running_settings, settings_of
from api.cli.output import print_json, print_table, when
from api.engines import EngineRow, Trouble, engine_rows, troubles_of, with_footprint
from api.errors import OperatorError
from api.supervisor import ask, read_state
from processors.choices import SWAPPABLE
from processors.pipeline import STAGES
from schemas.events import Health
from streams import ready
from streams.client import LogError
from streams.clock import SystemClock
from streams.codec import CodecError, RegistryError
from streams.consumer import END, LogReader, read_range
from streams.registry import codec_for
from streams.settings import Settings

TROUBLES_S = 3600
_SWAP_WITHIN_S = 600.0
_POLL_S = 0.05
_PAGE_S = 5.0
_LOG_S = 15.0


def show(data_dir: Path | None, as_json: bool) -> int:
    """Prints a line for each engine of the stages that run here; returns 0, or 3 when none runs."""
    settings = settings_of(data_dir)
    states = _states(settings)
    if not states and not as_json:
        print(f"no platform is running on {settings.data_dir}; start it with `trunkline up`")
    troubles = asyncio.run(_troubles(running_settings(data_dir))) if states else {}
    rows = [row for state in states for row in rows_of(settings, state, troubles)]
    if as_json:
        for row in rows:
            print_json(row.as_json())
    elif rows:
        _print(rows)
    return 0 if states else 3


def swap(role: str, model: str, scope: str, data_dir: Path | None, as_json: bool) -> None:
    """Has the running platform swap a role's engines, and returns once the new ones have taken over.

    Raises OperatorError where that cannot be: then everything is as it was.
    """
    if role not in SWAPPABLE:
        raise OperatorError(f"no engine of the role {role} can be swapped; {', '.join(SWAPPABLE)} can", exit_code=2)
    if scope not in ("new", "all"):
        raise OperatorError(f"--for: expected new or all, found {scope!r}", exit_code=2)
    settings = settings_of(data_dir)
    began_s = time.monotonic()
    outcome = _done(settings, role, {"role": role, "model": model, "scope": scope}, "nothing was changed")
    generation = outcome["generation"]
    seconds = round(time.monotonic() - began_s, 1)
    if as_json:
        print_json({"role": role, "model": model, "for": scope, "generation": generation, "seconds": seconds})
    else:
        whose = "all calls, at their next turn" if scope == "all" else "new calls"
        print(f"{role}: {model} answers {whose} (generation {generation}, after {seconds:.1f} s)")


def follow_agents(role: str, settings: Settings) -> None:
    """Has the running platform warm the models that agents' files name for the role, and returns once these answer.

    Raises OperatorError where that cannot be: then the agents keep the models that they had.
    """
    for change in _done(settings, role, {"follow": role}, "the agents keep the models that they had")["agents"]:
        whose = ", ".join(change["agents"])
        print(
            f"{role}: {change['model']} answers {whose}, at each call's next turn (generation {change['generation']})"
        )


def _done(settings: Settings, role: str, request: Mapping[str, Any], otherwise: str) -> Mapping[str, Any]:
    """Hands the request to the supervisor of the role's engines, and returns the outcome.

    Raises OperatorError where it is a failure, or where the supervisor has not come to an end.
    """
    stage = next(stage.name for stage in STAGES.values() if role in stage.roles)
    name = next((name for name in ("platform", f"worker-{stage}") if read_state(settings, name)), "platform")
    number = uuid.uuid4().hex
    ask(settings, {"id": number, **request}, name)
    pid, deadline_s = (read_state(settings, name) or {}).get("pid"), time.monotonic() + _SWAP_WITHIN_S
    while time.monotonic() < deadline_s:
        state = read_state(settings, name) or {}
        if state.get("pid") != pid:
            raise OperatorError("the platform was stopped before the new engines had taken over; nothing was changed")
        outcome = state.get("swaps", {}).get(number, {})
        if outcome.get("state") == "failed":
            raise OperatorError(f"{otherwise}: {outcome['problem']}", exit_code=outcome["exit_code"])
        if outcome.get("state") == "done":
            return dict(outcome)
        time.sleep(_POLL_S)
    raise OperatorError(f"the new engines were not ready within {_SWAP_WITHIN_S:.0f} s; see `trunkline status`")


def rows_of(
    settings: Settings, state: Mapping[str, Any], troubles: Mapping[tuple[str, str], Trouble]
) -> list[EngineRow]:
    """The engines of all stages below one supervisor, from what they serve now."""
    entries = [entry for row in state["components"] for entry in (row, *row.get("engines", ()))]
    processes = {str(entry["name"]): str(entry.get("state", "")) for entry in entries}
    rows = []
    for stage in (name for name in STAGES if name in processes):
        page = _page(settings, stage)
        found = engine_rows(stage, text_string_to_metric_families(page), processes, troubles)
        found = [_with_footprint(settings, row) if row.address in processes else row for row in found]
        rows += found or [EngineRow(stage, "", "", health=_silence(processes[stage]))]
    return rows


def _with_footprint(settings: Settings, row: EngineRow) -> EngineRow:
    """An engine in a process of ours has that one's name as its address."""
    return with_footprint(row, text_string_to_metric_families(_page(settings, row.address)))


def _silence(state: str) -> str:
    """Why a stage's engines are not known."""
    return "the stage serves no metrics" if state == "ready" else f"the stage is {state or 'away'}"


def _states(settings: Settings) -> list[Mapping[str, Any]]:
    """Of the platform on this data directory, or of the stages' workers, as in a container."""
    states = [read_state(settings, name) for name in ("platform", *(f"worker-{stage}" for stage in STAGES))]
    return [state for state in states if state is not None]


def _page(settings: Settings, name: str) -> str:
    """The metrics of a stage or of an engine's process; empty where they cannot be had."""
    facts = ready.read(settings, name)
    if facts is None:
        return ""
    try:
        answer = httpx.get(f"http://127.0.0.1:{facts['metrics_port']}/metrics", timeout=_PAGE_S)
        return answer.raise_for_status().text
    except httpx.HTTPError:
        return ""


async def _troubles(settings: Settings) -> dict[tuple[str, str], Trouble]:
    """Of the last hour. A log that cannot be read is said, and what else is known shown all the same."""
    try:
        async with asyncio.timeout(_LOG_S):
            return troubles_of(await _health_events(settings))
    except (LogError, RegistryError, TimeoutError) as error:
        why = str(error) or f"no answer within {_LOG_S:.0f} s"
        print(f"trunkline: what was wrong lately is not known, as the log cannot be read: {why}", file=sys.stderr)
        return {}


async def _health_events(settings: Settings) -> list[Health]:
    codec = codec_for(settings)
    since_ms = SystemClock().now_us() // 1000 - 1000 * TROUBLES_S
    async with LogReader(settings, "trunkline.cli") as reader:
        starts = await reader.offsets_at(await reader.partitions(Health.TOPIC), since_ms)
    found = []
    async for record in read_range(settings, {partition: (start, END) for partition, start in starts.items()}):
        try:
            event = codec.decode_keyed(record.topic, record.key, record.value)
        except CodecError:
            continue
        if isinstance(event, Health):
            found.append(event)
    return found


def _print(rows: list[EngineRow]) -> None:
    columns = ("stage", "role", "engine", "model", "device", "address", "health", "breaker")
    numbers = ("answered", "failed", "p50 ms", "p95 ms", "memory MB", "device MB", "warm s")
    lines = [
        (
            *(getattr(row, column) for column in columns),
            *(_numbers(row) if row.engine else ("",) * len(numbers)),
        )
        for row in rows
    ]
    print_table((*columns, *numbers), lines, right=numbers)
    for row in rows:
        if row.trouble is not None:
            print(f"{row.stage}: {row.engine} was left out at {when(row.trouble.at_us)} UTC: {row.trouble.reason}")


def _numbers(row: EngineRow) -> tuple[float | None, ...]:
    counts = (row.answered, sum(row.failed.values()))
    return (*counts, row.p50_ms, row.p95_ms, row.memory_mb, row.device_memory_mb, row.warm_s)
