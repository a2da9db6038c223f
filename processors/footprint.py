"""How much memory this process has, and how its device fares: what libraries that are there anyway tell of it."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Device:
    """A device's memory in bytes: what all processes use, what there is, and what this process uses.

    `own` is None where that is not told, as in a container that does not see its host's process numbers. `busy` is the
    share of the last moments in which anything ran on it, and None where that is not told.
    """

    used: int
    total: int
    own: int | None = None
    busy: float | None = None


def resident_bytes() -> int:
    """This process's memory beside any device, with the pages that it shares with others."""
    return int(psutil.Process().memory_info().rss)


def device_of(name: str) -> Device | None:
    """`cuda` or `cuda:N` as it is now; None for `cpu`, and where neither nvidia-ml-py nor PyTorch can tell."""
    kind, _, number = name.partition(":")
    if kind != "cuda":
        return None
    ordinal = int(number) if number.isdecimal() else 0
    return _of_nvml(visible(ordinal, os.environ)) or _of_torch(ordinal)


def visible(ordinal: int, environment: Mapping[str, str]) -> int | str:
    """The device that CUDA counts as that one: its index on the machine, or its UUID."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return ordinal
    names = [name.strip() for name in listed.split(",")]
    if ordinal >= len(names):
        return ordinal
    return int(names[ordinal]) if names[ordinal].isdecimal() else names[ordinal]


@cache
def _nvml() -> Any:
    """The library, ready for use; None where it or the driver is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _of_nvml(which: int | str) -> Device | None:
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        by_index, by_uuid = nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID
        handle = by_index(which) if isinstance(which, int) else by_uuid(which)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        own = next((one.usedGpuMemory for one in running if one.pid == os.getpid()), None)
        return Device(int(memory.used), int(memory.total), own, _busy(nvml, handle))
    except nvml.NVMLError:
        return None


def _busy(nvml: Any, handle: Any) -> float | None:
    """A part of a divided device does not tell it."""
    try:
        return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except nvml.NVMLError:
        return None


def _of_torch(ordinal: int) -> Device | None:
    """Where an engine has loaded it; what it has reserved is what this process keeps from others."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return None
        free, total = torch.cuda.mem_get_info(ordinal)
        return Device(total - free, total, torch.cuda.memory_reserved(ordinal))
    except (AttributeError, RuntimeError):
        return None
