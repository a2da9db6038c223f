"""Hash chains over records as they are stored, and Merkle trees over the chains' heads: pure.

A chain holds the records of one key (a call) in one partition, in offset order: what Kafka itself orders, so that it
comes out the same whoever reads the log again. The digest of a record covers its timestamp, key, value and headers as
bytes, never what they mean. docs/audit.md describes both, and infra/audit/verify.py does the same in few lines.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from streams.consumer import Record

START = bytes(32)
_NONE = b"\xff\xff\xff\xff"
_length = struct.Struct(">I").pack
_HEX = "hex:"


class Chain(NamedTuple):
    """Which records: those of a key in a partition."""

    key: str
    topic: str
    partition: int


class Head(NamedTuple):
    """How far a chain is: so many records, the last of which is at `offset`."""

    position: int
    offset: int
    link: bytes


class Entry(NamedTuple):
    """A record in its chain, as the audit record keeps it; `position` counts from 1."""

    chain: Chain
    position: int
    offset: int
    digest: bytes
    link: bytes
    recorded_ms: int


def pack(*parts: bytes | None) -> bytes:
    """The parts one after another, each behind its length, so that no two lists of parts read alike."""
    return b"".join([_NONE if part is None else _length(len(part)) + part for part in parts])


def number(value: int) -> bytes:
    """A number in decimal digits."""
    return b"%d" % value


def content_of(record: Record) -> bytes:
    """All of the record but its place, as it is stored."""
    headers = [part for name, value in record.headers for part in (name.encode(), value)]
    return pack(number(record.timestamp_ms), record.key, record.value, *headers)


def digest_of(record: Record) -> bytes:
    """SHA-256 over the record's content."""
    return hashlib.sha256(content_of(record)).digest()


def link_of(previous: bytes, chain: Chain, position: int, offset: int, digest: bytes) -> bytes:
    """The chain's next link: it binds the record to its place and to all records before."""
    place = (number(position), chain.topic.encode(), number(chain.partition), number(offset))
    return hashlib.sha256(pack(previous, *place, digest)).digest()


def key_text(key: bytes | None) -> str:
    """The record's key as the audit record names it: as text where it is some, else in hexadecimal digits."""
    if key is None:
        return ""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return _HEX + key.hex()
    return _HEX + key.hex() if text.startswith(_HEX) or "\0" in text else text


def leaf_of(chain: Chain, head: Head) -> bytes:
    """The leaf of the Merkle tree that stands for a chain's head."""
    place = (chain.key.encode(), chain.topic.encode(), number(chain.partition))
    packed = pack(*place, number(head.position), number(head.offset), head.link)
    return hashlib.sha256(b"\0" + hashlib.sha256(packed).digest()).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root of the Merkle tree over hashed leaves (RFC 6962, 2.1)."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = _split(len(leaves))
    return _node(root_of(leaves[:split]), root_of(leaves[split:]))


def path_of(leaves: Sequence[bytes], index: int) -> list[tuple[bytes | None, bytes | None]]:
    """What leads from a leaf to the root, from below: pairs of which one is None, the node that is known."""
    if len(leaves) <= 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*path_of(leaves[:split], index), (None, root_of(leaves[split:]))]
    return [*path_of(leaves[split:], index - split), (root_of(leaves[:split]), None)]


def root_along(leaf: bytes, path: Sequence[tuple[bytes | None, bytes | None]]) -> bytes:
    """The root to which the path leads from the leaf."""
    for left, right in path:
        leaf = _node(left or leaf, right or leaf)
    return leaf


def _split(count: int) -> int:
    """The largest power of two below the count."""
    return 1 << (count - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
