"""The order in which a call's events are read from several topics, piece by piece."""

import random
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from processors.webhooks.feed import CHUNK_RECORDS, _order, _runs, _whole, by_topic, positions_in
from processors.webhooks.subscriptions import TOPICS
from streams.client import Partition
from streams.consumer import Record


def log_of(chance: random.Random, count: int) -> dict[Partition, list[Record]]:
    """Records of two partition numbers over three topics, stamped as a broker does: never backwards."""
    found: dict[Partition, list[Record]] = defaultdict(list)
    for stamp_ms in sorted(chance.choices(range(count), k=count)):
        partition = Partition(chance.choices(TOPICS[:3], (1, 5, 20))[0], chance.randrange(2))
        offset = len(found[partition])
        found[partition].append(Record(*partition, offset, b"", b"", (), stamp_ms))
    return found


@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 30))
def test_pieces_put_together_are_the_whole_in_order(seed: int, count: int, piece: int) -> None:
    log = log_of(random.Random(seed), count)
    ends = {partition: len(records) for partition, records in log.items()}
    positions = dict.fromkeys(log, 0)
    read: list[Record] = []
    while any(positions[partition] < end for partition, end in ends.items()):
        ranges = {
            partition: (positions[partition], min(positions[partition] + piece, end))
            for partition, end in ends.items()
            if positions[partition] < end
        }
        got = [record for partition, (start, end) in ranges.items() for record in log[partition][start:end]]
        whole, after = _whole(got, ranges, ends)
        assert whole
        read += whole
        positions |= after
    for number in (0, 1):
        own = [record for record in read if record.partition == number]
        assert sorted(own, key=lambda record: (record.topic, record.offset)) == sorted(
            (record for partition, records in log.items() if partition.partition == number for record in records),
            key=lambda record: (record.topic, record.offset),
        )
        assert [record.timestamp_ms for record in own] == sorted(record.timestamp_ms for record in own)


def test_in_a_millisecond_the_order_is_that_of_the_conversation() -> None:
    records = [Record(topic, 0, 0, b"", b"", (), 5) for topic in reversed(TOPICS)]
    assert [record.topic for record in sorted(records, key=_order)] == list(TOPICS)


def test_single_offsets_are_read_in_few_pieces() -> None:
    near, far = [1, 2, CHUNK_RECORDS], [10**6, 10**6 + 1]
    assert _runs([*near, *far]) == [(1, CHUNK_RECORDS + 1), (10**6, 10**6 + 2)]
    assert _runs([]) == []


def test_positions_are_kept_and_read_back() -> None:
    positions = {Partition(topic, number): 100 * number for topic in TOPICS for number in range(12)}
    assert positions_in(by_topic(positions)) == positions
