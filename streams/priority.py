"""Where processors are short, calls go first."""

import os

READER_NICENESS = 5


def step_back() -> None:
    """From now on this process takes what the processes of calls leave it: no caller waits for what it does."""
    os.nice(READER_NICENESS)
