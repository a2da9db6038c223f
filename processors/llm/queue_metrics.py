"""How many asks an OpenAI-compatible server has, by the metrics that it serves for Prometheus."""

import math
from collections import defaultdict
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from processors.lane import Queue

# What servers call asks that wait for room, and asks that they are at work on.
NAMES = (
    ("vllm:num_requests_waiting", "vllm:num_requests_running"),
    ("llamacpp:requests_deferred", "llamacpp:requests_processing"),
)
PREFIXES = tuple(name for pair in NAMES for name in pair)


def queue_of(lines: Iterable[str]) -> Queue | None:
    """From lines in Prometheus's text format, summed over a server's models; None where they do not say both."""
    sums: defaultdict[str, float] = defaultdict(float)
    page = "\n".join(line for line in lines if line.startswith(PREFIXES))
    try:
        for sample in (sample for family in text_string_to_metric_families(page) for sample in family.samples):
            sums[sample.name] += sample.value
    except (ValueError, IndexError):
        return None
    for waiting, working in NAMES:
        if waiting in sums and working in sums and math.isfinite(sums[waiting] + sums[working]):
            return Queue(round(sums[waiting]), round(sums[working]))
    return None
