"""Whether a core of this machine has nothing to do: a second thread helps then, and hinders where all have."""

import os
import time
from collections.abc import Callable
from pathlib import Path

# A frame wakes all that hear of it for a moment, and readings begin in that moment; what computes stays longer.
LOOKS_MAX = 5
APART_S = 0.0005
_LOAD = Path("/proc/loadavg")


def one_is_free(load: Path = _LOAD, sleep: Callable[[float], object] = time.sleep) -> bool:
    """Whether fewer threads run or want to, ours among them, than this process may use cores.

    It looks several times within 2 ms, and once will do. False where the system does not say (proc_loadavg(5), the
    fourth field).
    """
    for look in range(LOOKS_MAX):
        if look:
            sleep(APART_S)
        try:
            running = int(load.read_text().split()[3].partition("/")[0])
            if running < len(os.sched_getaffinity(0)):
                return True
        except (AttributeError, OSError, ValueError, IndexError):
            return False
    return False
