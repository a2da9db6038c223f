"""Where processors are short, the log and the gateway go first, then the stages and their engines, then all others.

What the broker and a gateway do for a call takes a millisecond, and everybody waits for it: who calls while others are
greeted should not wait for their greetings.
"""

import os

STAGE_NICENESS = 10
READER_NICENESS = 19


def step_back(niceness: int) -> None:
    """From now on this process takes what those of less niceness leave it."""
    os.nice(niceness)
