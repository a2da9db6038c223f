"""The whole pipeline under faults of every kind, in simulated time: hundreds of seeds, one history each.

`SIMULATION_SEEDS` sets how many, `SIMULATION_FIRST` the first. `python -m tests.simulation` plays thousands.
"""

import os
import subprocess
import sys

import pytest

from processors.backchannel import is_backchannel
from streams.settings import REPOSITORY
from tests.simulation.__main__ import COMMAND
from tests.simulation.invariants import play_seed, undisturbed
from tests.simulation.plans import SCRIPTS

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "200"))
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))
BUNCH = 20


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, BUNCH))
def test_calls_survive_whatever_a_seed_brings(first: int) -> None:
    for seed in range(first, min(first + BUNCH, FIRST + SEEDS)):
        found = play_seed(seed).found
        assert not found, "\n".join([f"to play it alone: {COMMAND.format(seed)}", *found])


def test_on_a_good_day_every_script_is_answered_to_its_end() -> None:
    for script in SCRIPTS:
        spoken = [line.text for line in script if line.text]
        wanted = [turn for turn, text in enumerate(spoken, 1) if not is_backchannel(text)]
        assert sorted(undisturbed(script)) == [0, *wanted]


@pytest.mark.parametrize("seed", [3, 17])
def test_a_seed_is_one_history(seed: int) -> None:
    """Also in another process, where sets have another order."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1] == play_seed(seed).trace
