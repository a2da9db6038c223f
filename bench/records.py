"""What a call writes: how many records a turn, and how many bytes each, for every topic. `python -m bench.records`.

A call of the simulation, with the real cores and runner, on a day without faults; each of its events is encoded and
sealed as the producers do it, with its headers. Sound is left out of sizes: 32 bytes a millisecond come on top. The
simulated voice and ears are not those of people, so frames and chunks of sound are counted elsewhere.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from bench import report
from bench.machine import this_machine
from bench.report import Distribution, Fact, Findings, Row
from schemas.event import Event
from schemas.events import EVENTS, AudioFrame, SpeechChunk
from streams.codec import BuiltInIds, Codec, headers
from streams.keyring import Keyring
from streams.kms import LocalKeys
from streams.topics import STAGES, state_topic
from tests.simulation import plans
from tests.simulation.platform import Plan, Platform, play

SCRIPT = (
    plans.ORDER,
    plans.RETURNS,
    plans.STOCK,
    plans.RETURN,
    plans.COMPLAINT,
    plans.PROBLEM,
    plans.THANKS,
    plans.GOODBYE,
)
# Kafka's record format 2: a batch of one, its header and the record's lengths, deltas and attributes.
FORMAT_BYTES = 61 + 25
_KEY_FILES = 1000


@dataclass(frozen=True, slots=True)
class Size:
    """Of one topic, in a call of `len(SCRIPT)` turns; `sizes_bytes` has one for each record, without sound."""

    topic: str
    sizes_bytes: tuple[int, ...]

    @property
    def a_turn(self) -> float:
        """Records for each turn."""
        return len(self.sizes_bytes) / len(SCRIPT)

    @property
    def mean_bytes(self) -> float:
        """Of a record."""
        return sum(self.sizes_bytes) / len(self.sizes_bytes)


def sizes(directory: Path, seed: int = 1) -> list[Size]:
    """What the call of that seed wrote; `directory` is where its keys may lie."""
    platform = play(Plan(seed, (SCRIPT,), reports=True))
    codec = Codec(BuiltInIds(), Keyring(directory, LocalKeys(directory)))
    found: dict[str, list[int]] = defaultdict(list)
    for kind in EVENTS:
        for event in platform.log.events(kind):
            found[kind.TOPIC].append(record_bytes(codec, event))
    for topic, size in _snapshots(codec, platform):
        found[topic].append(size)
    return [Size(topic, tuple(values)) for topic, values in sorted(found.items())]


def record_bytes(codec: Codec, event: Event) -> int:
    """A record's size in the log: key, sealed value, headers and format; without sound."""
    silent = replace(event, pcm=b"") if isinstance(event, AudioFrame | SpeechChunk) else event
    head = sum(len(name) + len(value) for name, value in headers(event))
    return FORMAT_BYTES + len(event.session_id) + head + len(codec.encode(silent))


def _snapshots(codec: Codec, platform: Platform) -> Iterator[tuple[str, int]]:
    for stage in STAGES:
        for where, records in platform.log.records.items():
            if where.topic == state_topic(stage):
                for record in records:
                    key, value = record.key or b"", record.value or b""
                    sealed = codec.seal_state(key.decode().split("/")[0], stage, value) if value else b""
                    yield where.topic, FORMAT_BYTES + len(key) + len(sealed)


def measure_keys(directory: Path) -> Findings:
    """The file that holds a call's keys: its size, and what reading one of many takes."""
    keyring = Keyring(directory, LocalKeys(directory))
    for number in range(_KEY_FILES):
        keyring.keys(f"call-{number}", "demo")
    began_s = time.perf_counter()
    count = sum(1 for _ in keyring.every())
    took_us = 1e6 * (time.perf_counter() - began_s) / count
    size = Distribution.of(path.stat().st_size for path in directory.glob("calls/*/*.key"))
    group = "keys of a call"
    return Findings([Row(group, "size", size, "bytes")], [Fact(group, "reading one of many", round(took_us, 1), "us")])


def measure_records(directory: Path) -> Findings:
    """Records a turn and bytes a record, by topic."""
    found = Findings()
    for one in sizes(directory):
        found.rows.append(Row(one.topic, "size, without sound", Distribution.of(one.sizes_bytes), "bytes"))
        found.facts.append(Fact(one.topic, "records a turn", round(one.a_turn, 2)))
        found.facts.append(Fact(one.topic, "mean size, without sound", round(one.mean_bytes), "bytes"))
    return found


def main() -> None:
    """Prints the table and writes the JSON."""
    argparse.ArgumentParser(prog="python -m bench.records", description="Measures what a call writes.").parse_args()
    machine = this_machine()
    with tempfile.TemporaryDirectory() as name:
        found = measure_records(Path(name) / "records")
        found.add(measure_keys(Path(name) / "keys"))
    report.show(found, str(machine))
    Console(stderr=True).print(f"Written to {report.write(found, machine.as_dict())}")


if __name__ == "__main__":
    main()
