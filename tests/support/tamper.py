"""What an attacker does to the copies of a call: `python -m tests.support.tamper DATA_DIR` runs SQL from its input.

The embedded ClickHouse must not be running; Kafka may be.
"""

import json
import sys
from pathlib import Path

from processors.clickhouse.store import connect
from streams.client import Partition
from streams.settings import Settings


def alter_in_segment(kafka_dir: Path, place: Partition, before: bytes, after: bytes) -> None:
    """Writes other bytes of the same length over those that stand once in the partition's files."""
    assert len(before) == len(after)
    folder = kafka_dir / "kafka" / "storage" / f"{place.topic}-{place.partition}"
    for path in folder.glob("*.log"):
        at = path.read_bytes().find(before)
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(after)
            return
    raise AssertionError(f"not in {folder}")


def main() -> None:
    """Each line of the input is a statement, as a JSON string; waits until each has its effect."""
    client = connect(Settings(data_dir=Path(sys.argv[1])))
    for line in sys.stdin:
        client.command(json.loads(line), settings={"mutations_sync": 2})
    client.close()


if __name__ == "__main__":
    main()
