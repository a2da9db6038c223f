"""How many asks an OpenAI-compatible server has, by the metrics that it serves for Prometheus."""

import math
from collections.abc import Iterable

from processors.lane import Queue

# What servers call asks that wait for room, and asks that they are at work on.
NAMES = (
    ("vllm:num_requests_waiting", "vllm:num_requests_running"),
    ("llamacpp:requests_deferred", "llamacpp:requests_processing"),
)
PREFIXES = tuple(name for pair in NAMES for name in pair)


def queue_of(lines: Iterable[str]) -> Queue | None:
    """From lines in Prometheus's text format, summed over a server's models; None where they do not say both."""
    sums: dict[str, float] = {}
    for line in lines:
        name = line.partition("{")[0].partition(" ")[0]
        if name in PREFIXES:
            sums[name] = sums.get(name, 0.0) + _value(line.removeprefix(name))
    for waiting, working in NAMES:
        if waiting in sums and working in sums and math.isfinite(sums[waiting] + sums[working]):
            return Queue(round(sums[waiting]), round(sums[working]))
    return None


def _value(rest: str) -> float:
    """The number after the labels; NaN where there is none."""
    try:
        return float(rest.rpartition("}")[2].split()[0])
    except (ValueError, IndexError):
        return math.nan
