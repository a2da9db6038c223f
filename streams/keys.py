"""Keys, partitions, positions: topics are keyed by session id and partitioned by murmur2, as the JVM's clients do."""

import uuid
from collections.abc import Container
from functools import lru_cache
from typing import NamedTuple

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


class Position(NamedTuple):
    """Where a record lies in the log."""

    topic: str
    partition: int
    offset: int


class Partition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 (org.apache.kafka.common.utils.Utils.murmur2), as an unsigned int."""
    length = len(data)
    value = (_SEED ^ length) & _MASK
    whole = length & ~3
    for start in range(0, whole, 4):
        block = int.from_bytes(data[start : start + 4], "little") * _M & _MASK
        block = (block ^ (block >> 24)) * _M & _MASK
        value = (value * _M & _MASK) ^ block
    tail = data[whole:]
    if tail:
        value = (value ^ int.from_bytes(tail, "little")) * _M & _MASK
    value = (value ^ (value >> 13)) * _M & _MASK
    return value ^ (value >> 15)


@lru_cache(maxsize=4096)
def partition_of(session_id: str, partitions: int) -> int:
    """The partition number of the session in every topic of that many partitions."""
    return (murmur2(session_id.encode()) & 0x7FFFFFFF) % partitions


def mint_session_id(partitions: int, wanted: Container[int]) -> str:
    """A new random session id whose partition is among those wanted; `wanted` must hold at least one of them."""
    while True:
        session_id = str(uuid.uuid4())
        if partition_of(session_id, partitions) in wanted:
            return session_id
