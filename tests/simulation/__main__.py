"""Plays many seeds: `python -m tests.simulation --seeds 5000`, or one, with its history: `--seed 17`.

Exits 1 when a seed breaks an invariant; each is printed with the command that plays it alone.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator

from tests.simulation.invariants import play_seed

COMMAND = "python -m tests.simulation --seed {}"


def _result(seed: int) -> tuple[int, list[str]]:
    return seed, play_seed(seed).found


def _results(first: int, count: int, jobs: int) -> Iterator[tuple[int, list[str]]]:
    seeds = range(first, first + count)
    if jobs == 1:
        yield from map(_result, seeds)
        return
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap_unordered(_result, seeds, chunksize=5)


def _one(seed: int) -> int:
    played = play_seed(seed, verbose=True)
    print("\n".join(played.history))
    print(played.plan)
    for what in played.found:
        print(f"seed {seed}: {what}")
    print(f"seed {seed}: {'failed' if played.found else 'held'}, trace {played.trace}")
    return 1 if played.found else 0


def _many(first: int, count: int, jobs: int) -> int:
    began_s, failed = time.monotonic(), 0
    for number, (seed, found) in enumerate(_results(first, count, jobs), 1):
        if found:
            failed += 1
            print(f"\rseed {seed} failed: {COMMAND.format(seed)}")
            for what in found[:5]:
                print(f"    {what}")
        if number % 20 == 0 or number == count:
            print(
                f"\r{number} of {count} seeds, {failed} failed, {time.monotonic() - began_s:.0f} s", end="", flush=True
            )
    print()
    return 1 if failed else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--seed", type=int, help="only this one, and print all that happens")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed)
    return _many(options.first, options.seeds, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
