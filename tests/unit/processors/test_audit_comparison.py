"""Whatever is done to a copy of a chain, the first record that it was done to is named, and the store."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from processors.audit.chain import START, Chain, Entry, Head, link_of
from processors.audit.comparison import (
    BOTH,
    CLICKHOUSE,
    KAFKA,
    RECORDS,
    Bounds,
    Expected,
    Finding,
    Kept,
    Walk,
    altered_rows,
)

CHAIN = Chain("0b5e7c1a-3d51-4b7e-9d1c-5f0a4a8c2e11", "voice.transcripts", 3)


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def chained(records: list[Kept]) -> list[Entry]:
    """Their audit record, as the sink writes it."""
    entries, link = [], START
    for position, record in enumerate(records, 1):
        link = link_of(link, CHAIN, position, record.offset, record.digest)
        entries.append(Entry(CHAIN, position, record.offset, record.digest, link, 1000 * position))
    return entries


def head_of(entry: Entry) -> Head:
    return Head(entry.position, entry.offset, entry.link)


def walked(
    kafka: list[Kept], entries: list[Entry], heads: list[Head], window: int = 1000, **bounds: int
) -> Finding | None:
    walk = Walk(CHAIN, Bounds(**bounds), sorted(heads))
    end = max([record.offset for record in kafka] + [entry.offset for entry in entries], default=0) + 1
    for first in range(0, end, window):
        of_window = range(first, first + window)
        walk.feed(
            [record for record in kafka if record.offset in of_window],
            [entry for entry in entries if entry.offset in of_window],
        )
    return walk.finish()


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Kept], list[Head]]:
    """A chain with gaps between its offsets, as other calls' records make them, and heads signed now and then."""
    gaps = draw(st.lists(st.integers(1, 5), min_size=1, max_size=12))
    records = [Kept(sum(gaps[: at + 1]), digest(f"record {at}")) for at in range(len(gaps))]
    signed = draw(st.sets(st.sampled_from(range(len(records)))))
    return records, [head_of(chained(records)[at]) for at in signed]


def tampered(draw: Any, records: list[Kept]) -> tuple[list[Kept], str, int]:
    """Another version of the records; what was done, and the first offset that it was done to."""
    done = draw(st.sampled_from(["altered", "removed", "added", "reordered"]))
    at = draw(st.integers(0, len(records) - 1))
    moved = draw(st.booleans())
    here = records[at]
    if done == "altered":
        return [*records[:at], Kept(here.offset, digest("another")), *records[at + 1 :]], done, here.offset
    if done == "removed":
        rest = records[at + 1 :]
        if moved:  # what comes behind takes its place
            rest = [Kept(before.offset, one.digest) for before, one in zip(records[at:], rest, strict=False)]
        return [*records[:at], *rest], done, here.offset
    if done == "added":
        rest = [Kept(one.offset + 1, one.digest) for one in records[at:]]
        return [*records[:at], Kept(here.offset, digest("another")), *rest], done, here.offset
    assume(len(records) > 1)
    other = draw(st.integers(0, len(records) - 1).filter(lambda one: one != at))
    swapped = list(records)
    swapped[at], swapped[other] = Kept(here.offset, records[other].digest), Kept(records[other].offset, here.digest)
    return swapped, done, min(here.offset, records[other].offset)


@given(chains(), st.integers(1, 30))
def test_what_nobody_touched_is_right(chain: tuple[list[Kept], list[Head]], window: int) -> None:
    records, heads = chain
    assert walked(records, chained(records), heads, window) is None


@given(chains(), st.data(), st.integers(1, 30))
def test_what_is_done_to_kafka_is_named(chain: tuple[list[Kept], list[Head]], data: st.DataObject, window: int) -> None:
    records, heads = chain
    other, done, offset = tampered(data.draw, records)
    found = walked(other, chained(records), heads, window)
    assert found is not None
    assert (found.store, found.kind, found.offset) == (KAFKA, done, offset)
    assert found.signed == any(head.offset >= offset for head in heads)


@given(chains(), st.data(), st.integers(1, 30))
def test_what_is_done_to_the_audit_record_is_named_once_it_was_signed(
    chain: tuple[list[Kept], list[Head]], data: st.DataObject, window: int
) -> None:
    """Even where all links were computed anew."""
    records, heads = chain
    heads = [*heads, head_of(chained(records)[-1])]
    other, done, offset = tampered(data.draw, records)
    found = walked(records, chained(other), heads, window)
    assert found is not None
    assert (found.store, found.kind, found.offset, found.table) == (CLICKHOUSE, done, offset, RECORDS)
    assert found.signed


@given(chains(), st.data())
def test_what_is_done_to_both_is_named_where_it_was_signed(
    chain: tuple[list[Kept], list[Head]], data: st.DataObject
) -> None:
    """The first record is somewhere between two signatures: the first of them is named."""
    records, heads = chain
    heads = sorted({*heads, head_of(chained(records)[-1])})
    other, _, offset = tampered(data.draw, records)
    found = walked(other, chained(other), heads)
    assert found is not None
    assert found.store == BOTH
    before = max((head.offset for head in heads if head.offset < offset), default=-1)
    after = min(head.offset for head in heads if head.offset >= offset)
    assert before < found.offset <= max(after, offset)


@given(chains(), st.data())
def test_a_link_that_was_altered_alone_is_named(chain: tuple[list[Kept], list[Head]], data: st.DataObject) -> None:
    records, heads = chain
    entries = chained(records)
    at = data.draw(st.integers(0, len(entries) - 1))
    change = data.draw(st.sampled_from([{"link": digest("another")}, {"position": 99}]))
    entries[at] = entries[at]._replace(**change)  # type: ignore[arg-type]
    found = walked(records, entries, heads)
    assert found is not None
    assert (found.store, found.kind, found.offset, found.table) == (CLICKHOUSE, "altered", records[at].offset, RECORDS)


@given(chains(), st.data())
def test_what_retention_has_taken_is_no_removal(chain: tuple[list[Kept], list[Head]], data: st.DataObject) -> None:
    records, heads = chain
    cut = data.draw(st.integers(0, len(records)))
    begin = records[cut].offset if cut < len(records) else records[-1].offset + 1
    entries = chained(records)
    assert walked(records[cut:], entries, heads, begin=begin, kept_since_ms=1_000_000) is None
    if cut:
        # Records that are younger than retention takes were removed by somebody.
        found = walked(records[cut:], entries, heads, begin=begin, kept_since_ms=0)
        assert found is not None
        assert (found.store, found.kind, found.offset) == (KAFKA, "removed", records[0].offset)


@given(chains(), st.data())
def test_an_expired_record_cannot_be_taken_from_the_audit_record_unseen(
    chain: tuple[list[Kept], list[Head]], data: st.DataObject
) -> None:
    records, heads = chain
    heads = [*heads, head_of(chained(records)[-1])]
    begin = records[-1].offset + 1
    other, _, _ = tampered(data.draw, records)
    assert walked([], chained(other), heads, begin=begin, kept_since_ms=1_000_000) is not None


def test_all_of_a_chain_that_was_signed_is_missed() -> None:
    records = [Kept(offset, digest(str(offset))) for offset in range(5)]
    heads = [head_of(chained(records)[-1])]
    found = walked(records, [], heads)
    assert found == Finding(CLICKHOUSE, "removed", *CHAIN, 0, "it is not there any more", RECORDS)
    found = walked([], chained(records), heads)
    assert found is not None
    assert (found.store, found.kind, found.offset) == (KAFKA, "removed", 0)
    found = walked([], [], heads)
    assert found is not None
    assert (found.store, found.kind, found.offset) == (BOTH, "removed", 4)


def test_what_was_there_before_records_were_chained_is_let_be() -> None:
    records = [Kept(offset, digest(str(offset))) for offset in range(6)]
    entries = chained(records[3:])
    assert walked(records, entries, [head_of(entries[-1])], chained_since=3) is None
    assert walked(records, entries, [], chained_since=2) is not None


def test_a_chain_whose_beginning_the_audit_record_has_let_go_is_taken_up_and_confirmed() -> None:
    records = [Kept(offset, digest(str(offset))) for offset in range(8)]
    entries = chained(records)
    walk = Walk(CHAIN, Bounds(), [head_of(entries[-1])], resumes=True)
    walk.feed(records[4:], entries[4:])
    assert walk.finish() is None
    walk = Walk(CHAIN, Bounds(), [head_of(entries[-1])], resumes=True)
    walk.feed(records[4:], [entries[4]._replace(link=digest("another")), *entries[5:]])
    assert walk.finish() is not None
    walk = Walk(CHAIN, Bounds(), [head_of(entries[-1])])
    walk.feed(records[4:], entries[4:])
    assert walk.finish() is not None


ROW = Expected("e", 0, {"text": "hello", "turn": 1})


def test_rows_are_those_that_the_records_give() -> None:
    expected = {5: ROW, 7: replace(ROW, columns={"text": "bye", "turn": 2})}
    right = [(5, {"text": "hello", "turn": 1}), (7, {"text": "bye", "turn": 2})]
    assert altered_rows(expected, right, 0) == ([], set())
    assert altered_rows(expected, [(5, {"text": "hallo", "turn": 3}), right[1]], 0) == (
        [("altered", 5, "the columns text, turn")],
        set(),
    )
    assert altered_rows(expected, right[:1], 0) == ([], {7})
    assert altered_rows(expected, [*right, right[1]], 0) == ([], set())
    assert altered_rows(expected, [*right, (6, {"text": "x", "turn": 1})], 0) == (
        [("added", 6, "no record gives this row")],
        set(),
    )


def test_rows_of_records_that_kafka_has_no_more_are_let_be() -> None:
    assert altered_rows({}, [(5, {"text": "x"})], 6) == ([], set())


@pytest.mark.parametrize("window", [1, 3, 100])
def test_counts_are_of_records(window: int) -> None:
    records = [Kept(offset, digest(str(offset))) for offset in range(10)]
    entries = chained(records)
    walk = Walk(CHAIN, Bounds(begin=4, kept_since_ms=1_000_000), [head_of(entries[6])])
    for first in range(0, 10, window):
        walk.feed(records[max(4, first) : first + window], entries[first : first + window])
    assert walk.finish() is None
    assert (walk.checked, walk.expired, walk.unsigned) == (10, 4, 3)
