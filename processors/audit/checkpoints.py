"""Checkpoints: signed statements of how far all chains are, each naming the one before. Pure but for the key.

A statement is canonical JSON. Its Merkle root stands for the heads of the chains that grew since the statement before;
`offsets` says up to which offset of each partition all records are in chains that have been signed, `since` from which
on records are chained at all.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from processors.audit.chain import Chain, Head, leaf_of, root_of
from processors.stage import event_id
from schemas.events import ChainHead, Checkpoint
from streams import signing
from streams.keys import Partition
from streams.settings import Settings

KIND = "trunkline.audit.checkpoint"
# A record has at most 1 MiB, and a head about 130 bytes.
HEADS_MAX = 4000
FIRST = "0" * 64

Offsets = Mapping[Partition, int]


@dataclass(frozen=True, slots=True)
class Statement:
    """What a checkpoint says; `digest` is what the next one names as `previous`."""

    number: int
    previous: str
    root: str
    at_us: int
    since: Offsets
    offsets: Offsets
    digest: str


def series_of(key: Ed25519PublicKey) -> str:
    """The series of checkpoints that this key signs: their session id."""
    return event_id("audit", key_text(key))


def key_text(key: Ed25519PublicKey) -> str:
    """The raw key in base64, as signatures name it."""
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def signed(
    settings: Settings,
    after: Statement | None,
    heads: Mapping[Chain, Head],
    at_us: int,
    since: Offsets,
    offsets: Offsets,
) -> Checkpoint:
    """The next checkpoint of the series, about at most `HEADS_MAX` heads. Raises signing.SignatureError."""
    series = series_of(signing.public_key(settings))
    number = 1 if after is None else after.number + 1
    ordered = sorted(heads.items())
    document = {
        "kind": KIND,
        "series": series,
        "number": number,
        "previous": FIRST if after is None else after.digest,
        "root": root_of([leaf_of(chain, head) for chain, head in ordered]).hex(),
        "heads": len(ordered),
        "at_us": at_us,
        "since": _nested(since),
        "offsets": _nested(offsets),
    }
    signature = signing.sign(settings, document)
    return Checkpoint(
        event_id=event_id(series, f"checkpoint-{number}"),
        session_id=series,
        tenant_id="",
        agent_id="",
        turn=0,
        seq=number,
        occurred_at=at_us,
        statement=signing.canonical(document).decode(),
        signature=signature["value"],
        public_key=signature["public_key"],
        heads=tuple(ChainHead(*chain, head.position, head.offset, head.link.hex()) for chain, head in ordered),
    )


def checked(checkpoint: Checkpoint, key: Ed25519PublicKey) -> Statement:
    """The statement, once its signature and its heads hold; raises signing.SignatureError saying what does not."""
    try:
        document = json.loads(checkpoint.statement)
    except ValueError:
        raise signing.SignatureError("its statement is no JSON") from None
    signature = {"algorithm": signing.ALGORITHM, "public_key": checkpoint.public_key, "value": checkpoint.signature}
    signing.verify(document, signature, key)
    if signing.canonical(document) != checkpoint.statement.encode() or document.get("kind") != KIND:
        raise signing.SignatureError("its statement is not written as statements are")
    leaves = [leaf_of(chain, head) for chain, head in heads_of(checkpoint)]
    if document["root"] != root_of(leaves).hex():
        raise signing.SignatureError("its heads are not those that were signed")
    return read_statement(document)


def statement_of(checkpoint: Checkpoint) -> Statement:
    """What it says, unverified."""
    return read_statement(json.loads(checkpoint.statement))


def heads_of(checkpoint: Checkpoint) -> Sequence[tuple[Chain, Head]]:
    """The heads in the order of the Merkle tree's leaves; raises signing.SignatureError where one is none."""
    try:
        return [
            (Chain(one.record_key, one.topic, one.partition), Head(one.position, one.offset, bytes.fromhex(one.link)))
            for one in checkpoint.heads
        ]
    except ValueError:
        raise signing.SignatureError("its heads are not those that were signed") from None


def read_statement(document: Mapping[str, Any]) -> Statement:
    """What the document says, unverified; raises KeyError, TypeError or ValueError where it is no statement."""
    return Statement(
        document["number"],
        document["previous"],
        document["root"],
        document["at_us"],
        _flat(document["since"]),
        _flat(document["offsets"]),
        hashlib.sha256(signing.canonical(document)).hexdigest(),
    )


def _nested(offsets: Offsets) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for partition, offset in offsets.items():
        nested.setdefault(partition.topic, {})[str(partition.partition)] = offset
    return nested


def _flat(nested: Mapping[str, Mapping[str, int]]) -> dict[Partition, int]:
    return {
        Partition(topic, int(number)): offset for topic, numbers in nested.items() for number, offset in numbers.items()
    }
