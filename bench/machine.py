"""Names the machine that was measured: a latency means nothing without it."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Machine:
    """What a reader needs to judge the numbers; `load_before` is the one-minute load average when the run began."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    load_before: float

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gib:.1f} GiB, {self.kernel}, Python {self.python}, "
            f"load before {self.load_before:.1f}"
        )

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def this_machine() -> Machine:
    """The machine this process runs on; `cores` are those that it may use."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_before=round(psutil.getloadavg()[0], 2),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
