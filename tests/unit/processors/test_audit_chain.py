"""Digests cover every byte that is stored; Merkle trees are those of RFC 6962; chains do not depend on batches."""

import hashlib
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.audit import checkpoints
from processors.audit.chain import (
    Chain,
    Entry,
    Head,
    digest_of,
    key_text,
    leaf_of,
    pack,
    path_of,
    root_along,
    root_of,
)
from processors.audit.ledger import KEYS_MAX, Ledger
from schemas import json_form
from schemas.events import ChainHead, Checkpoint
from streams import signing
from streams.consumer import Record
from streams.keys import Partition
from streams.settings import Settings

RECORD = Record("voice.control", 1, 5, b"key", b"value", (("ce_id", b"1"), ("none", None)), 1_700_000_000_000)
_BYTES = st.none() | st.binary(max_size=8)


@pytest.mark.parametrize(
    "change",
    [
        {"key": b"kez"},
        {"key": None},
        {"value": b"valuE"},
        {"value": None},
        {"value": b""},
        {"headers": (("ce_id", b"2"), ("none", None))},
        {"headers": (("ce_id", b"1"), ("none", b""))},
        {"headers": (("ce_id", b"1"),)},
        {"headers": (("none", None), ("ce_id", b"1"))},
        {"timestamp_ms": 1_700_000_000_001},
    ],
)
def test_every_byte_that_is_stored_counts(change: dict[str, Any]) -> None:
    assert digest_of(RECORD._replace(**change)) != digest_of(RECORD)


def test_the_place_counts_in_the_link_alone() -> None:
    assert digest_of(RECORD._replace(offset=6, partition=2, topic="voice.health")) == digest_of(RECORD)


@given(st.lists(_BYTES, max_size=4), st.lists(_BYTES, max_size=4))
def test_no_two_lists_of_parts_read_alike(one: list[bytes | None], other: list[bytes | None]) -> None:
    assert (pack(*one) == pack(*other)) == (one == other)


@given(st.binary(), st.binary())
def test_keys_are_named_apart(one: bytes, other: bytes) -> None:
    assert (key_text(one) == key_text(other)) == (one == other)


def test_the_tree_is_that_of_rfc_6962() -> None:
    """The test vectors of Certificate Transparency's reference implementation."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [hashlib.sha256(b"\0" + bytes.fromhex(one)).digest() for one in inputs]
    assert root_of([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert root_of(leaves[:1]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert root_of(leaves[:2]).hex() == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert root_of(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40, unique=True), st.data())
def test_a_path_leads_from_its_leaf_alone_to_the_root(leaves: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(leaves) - 1))
    path = path_of(leaves, at)
    assert root_along(leaves[at], path) == root_of(leaves)
    if len(leaves) > 1:
        other = data.draw(st.integers(0, len(leaves) - 1).filter(lambda one: one != at))
        assert root_along(leaves[other], path) != root_of(leaves)


def record(number: int, key: bytes, topic: str = "voice.control") -> Record:
    return Record(topic, 1, number, key, b"%d" % number, (), 1000 + number)


@given(st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=30), st.data())
def test_chains_come_out_the_same_in_whatever_batches(keys: list[bytes], data: st.DataObject) -> None:
    """Also where the ledger forgets between two batches, and where a batch is entered again after a crash."""
    records = [record(number, key) for number, key in enumerate(keys)]
    at_once = Ledger()
    at_once.learn(at_once.unknown(records), [])
    expected = at_once.enter(records)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(records)))) | {0, len(records)})
    ledger = Ledger()
    written: list[Entry] = []
    for first, end in itertools.pairwise(cuts):
        if data.draw(st.booleans()):
            ledger = Ledger()
        some = records[first:end]
        heads = {entry.chain: Head(entry.position, entry.offset, entry.link) for entry in written}
        unknown = ledger.unknown(some)
        ledger.learn(unknown, [(chain, head) for chain, head in heads.items() if chain.key in unknown])
        written += ledger.enter(some)
    assert written == expected


def test_what_was_signed_before_does_not_grow_again() -> None:
    ledger = Ledger()
    ledger.covered = {Partition("voice.control", 1): 3}
    records = [record(0, b"old"), record(3, b"new"), record(4, b"x", Checkpoint.TOPIC)]
    ledger.learn(ledger.unknown(records), [])
    assert len(ledger.enter(records)) == 2
    assert [chain.key for chain in ledger.grown] == ["new"]


def test_a_ledger_forgets_who_has_been_silent_longest() -> None:
    ledger = Ledger()
    records = [record(number, b"%d" % number) for number in range(KEYS_MAX + 5)]
    ledger.learn(ledger.unknown(records), [])
    ledger.enter(records)
    assert ledger.unknown(records) == ["0", "1", "2", "3", "4"]


# Checkpoints.


def test_the_examples_are_signed_and_in_a_row() -> None:
    first, second = json_form.examples(Checkpoint)
    one, two = checkpoints.statement_of(first), checkpoints.statement_of(second)
    assert (one.number, one.previous) == (1, checkpoints.FIRST)
    assert (two.number, two.previous) == (2, one.digest)


def made(settings: Settings, count: int = 3) -> Checkpoint:
    heads = {Chain(f"key {at}", "voice.control", 0): Head(1, at, bytes([at]) * 32) for at in range(count)}
    place = {Partition("voice.control", 0): count}
    return checkpoints.signed(settings, None, heads, 1, place, place)


def test_a_checkpoint_holds_as_it_was_signed_and_no_other_way(tmp_path: Any) -> None:
    settings = Settings(data_dir=tmp_path)
    key = signing.public_key(settings)
    good = made(settings)
    statement = checkpoints.checked(good, key)
    assert (statement.number, statement.offsets) == (1, {Partition("voice.control", 0): 3})
    assert good.session_id == checkpoints.series_of(key)
    head = good.heads[0]
    spoilt: list[dict[str, Any]] = [
        {"statement": good.statement.replace('"number":1', '"number":2')},
        {"statement": good.statement.replace(":", ": ")},
        {"statement": "nothing"},
        {"signature": good.signature[:-4] + "AAA="},
        {"heads": good.heads[1:]},
        {"heads": ()},
        {"heads": (*good.heads, good.heads[0])},
        {"heads": (ChainHead(head.record_key, head.topic, head.partition, 2, head.offset, head.link), *good.heads[1:])},
        {"heads": (ChainHead(head.record_key, head.topic, head.partition, 1, 0, "no link"), *good.heads[1:])},
        {"heads": good.heads[::-1]},
    ]
    for change in spoilt:
        with pytest.raises(signing.SignatureError):
            checkpoints.checked(replace(good, **change), key)
    with pytest.raises(signing.SignatureError):
        checkpoints.checked(good, signing.public_key(Settings(data_dir=tmp_path / "another")))


def test_a_leaf_stands_for_all_of_its_head() -> None:
    chain, head = Chain("k", "t", 1), Head(1, 2, bytes(32))
    others = [
        (chain._replace(key="l"), head),
        (chain._replace(topic="u"), head),
        (chain._replace(partition=2), head),
        (chain, head._replace(position=2)),
        (chain, head._replace(offset=3)),
        (chain, head._replace(link=bytes([1]) * 32)),
    ]
    assert len({leaf_of(chain, head), *(leaf_of(*other) for other in others)}) == 7
