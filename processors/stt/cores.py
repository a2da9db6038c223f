"""Whether a core of this machine has nothing to do: a second thread helps then, and hinders where all have."""

import os
from pathlib import Path

_LOAD = Path("/proc/loadavg")


def one_is_free() -> bool:
    """Whether fewer threads run or want to at this moment, ours among them, than this process may use cores.

    False where the system does not say (proc_loadavg(5), the fourth field).
    """
    try:
        running = int(_LOAD.read_text().split()[3].partition("/")[0])
        return running < len(os.sched_getaffinity(0))
    except (AttributeError, OSError, ValueError, IndexError):
        return False
