"""What a running platform's processes take of the machine: processor time and memory, by name."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.running import running_state

_MIB = 2**20
_CALM_CORES = 0.3
_CALM_S = 3.0
_CALM_TIMES = 2  # spares begin one after the other, with pauses between them
_CALM_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of CPU so far and MiB in use, of each process at one moment; replicas and spares count together."""

    at_s: float
    cpu_s: Mapping[str, float]
    memory_mib: Mapping[str, float]

    @property
    def memory_mib_total(self) -> float:
        """Of all together."""
        return sum(self.memory_mib.values())


def sample(directory: Path) -> Sample:
    """The platform on that data directory, now. Memory is what would be free without the process (USS)."""
    state = running_state(directory)
    names = {int(entry["pid"]): str(entry["name"]).partition(".")[0] for entry in state["processes"]}
    supervisor = psutil.Process(int(state["pid"]))
    cpu_s: dict[str, float] = defaultdict(float)
    memory_mib: dict[str, float] = defaultdict(float)
    for process in (supervisor, *supervisor.children(recursive=True)):
        name = "supervisor" if process.pid == supervisor.pid else names.get(process.pid, "other")
        try:
            times = process.cpu_times()
            cpu_s[name] += times.user + times.system
            memory_mib[name] += process.memory_full_info().uss / _MIB
        except psutil.NoSuchProcess:
            continue
    return Sample(time.monotonic(), cpu_s, memory_mib)


def cores_used(before: Sample, after: Sample) -> dict[str, float]:
    """Share of a core that each process took between the samples, the largest first."""
    elapsed_s = after.at_s - before.at_s
    shares = {name: (value - before.cpu_s.get(name, 0.0)) / elapsed_s for name, value in after.cpu_s.items()}
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def wait_for_calm(directory: Path) -> None:
    """Returns when what a start sets going, spares above all, has ended; after two minutes in any case."""
    until_s = time.monotonic() + _CALM_WITHIN_S
    before, calm = sample(directory), 0
    while calm < _CALM_TIMES and time.monotonic() < until_s:
        time.sleep(_CALM_S)
        after = sample(directory)
        calm = calm + 1 if sum(cores_used(before, after).values()) < _CALM_CORES else 0
        before = after


def growth_per_hour(samples: Sequence[Sample]) -> dict[str, float]:
    """MiB an hour by which each process grew, by least squares over the samples' second half: a start is no leak."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return {}
    middle_s = sum(one.at_s for one in half) / len(half)
    spread = sum((one.at_s - middle_s) ** 2 for one in half)
    return {
        name: 3600 * sum((one.at_s - middle_s) * one.memory_mib.get(name, 0.0) for one in half) / spread
        for name in sorted({name for one in half for name in one.memory_mib})
    }
