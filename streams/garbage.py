"""When a process of the platform looks for cycles among its objects.

Calls are made of immutable values, which reference counts free; what is left for the collector are the few cycles of
tasks and exceptions. At Python's thresholds it looked so often that it took an eighth of a busy worker's time.
"""

import gc

# New objects until the young ones are looked at, and times of that until older ones are: 10 to 20 MB at most.
_THRESHOLDS = (20_000, 20, 20)


def collect_seldom() -> None:
    """From now on, in this process."""
    gc.set_threshold(*_THRESHOLDS)
