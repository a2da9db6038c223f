"""One page of metrics for all processes below a supervisor, which serve theirs on loopback and on any free port."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import psutil
import structlog
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from streams.settings import Settings

log = structlog.get_logger(__name__)

PAGE_S = 2.0
PROCESS = "process"  # the label that tells the same metric of two processes apart


def serve(settings: Settings) -> None:
    """Serves the page from now on where `metrics_port` says so, from a thread; a port in use is said and not served."""
    if not settings.metrics_port:
        return
    registry = CollectorRegistry()
    registry.register(Pages(settings))
    try:
        start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        log.error("metrics not served", host=settings.metrics_host, port=settings.metrics_port, why=str(error))


class Pages(Collector):
    """The metrics of every process that has announced a page below the data directory, as they are when asked for."""

    def __init__(self, settings: Settings) -> None:
        self._run_dir = settings.run_dir

    def collect(self) -> Iterable[Metric]:
        """Each sample with its process; one that does not answer is left out."""
        found: dict[str, Metric] = {}
        with httpx.Client(timeout=PAGE_S, trust_env=False) as client:
            for name, port in sorted(_announced(self._run_dir)):
                for family in _families(client, port):
                    known = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                    for sample in family.samples:
                        known.samples.append(sample._replace(labels={**sample.labels, PROCESS: name}))
        return found.values()


def _announced(run_dir: Path) -> Iterator[tuple[str, int]]:
    """Name and port of each process that lives; a file may be left over from one that does not."""
    for path in run_dir.glob("[!.]*.json"):
        try:
            facts = json.loads(path.read_bytes())
            name, pid, port = str(facts["name"]), int(facts["pid"]), int(facts["metrics_port"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if psutil.pid_exists(pid):
            yield name, port


def _families(client: httpx.Client, port: int) -> list[Metric]:
    try:
        text = client.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
        return list(text_string_to_metric_families(text))
    except (httpx.HTTPError, ValueError):
        return []
