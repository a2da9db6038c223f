"""When a process of the platform looks for cycles among its objects.

Calls are made of immutable values, which reference counts free; what is left for the collector is what has ended: a
call and its socket, a task and its exception. At Python's thresholds it looked so often that it took an eighth of a
busy worker's time.
"""

import gc

# New objects until the young ones are looked at, and times of that until older ones are. Ended calls are old by then,
# and shall not stay by hundreds.
_THRESHOLDS = (20_000, 5, 5)


def collect_seldom() -> None:
    """From now on, in this process."""
    gc.set_threshold(*_THRESHOLDS)
