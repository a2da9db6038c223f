"""One endpoint's messages: order, retries, rests, and when they are given up."""

import random
from collections import defaultdict
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.webhooks.core import (
    DOWN_FAILURES,
    JITTER,
    OPEN_BYTES_MAX,
    REST_FIRST_S,
    REST_S_MAX,
    Answer,
    Condition,
    Item,
    Lanes,
    Rules,
    Verdict,
    retry_after_s,
)
from streams.keys import Position

S = 1_000_000
RULES = Rules(retry_s=(5, 300, 1800), concurrency=4, open_max=100, disable_after_s=3600)
OK, BAD, GONE = Answer(204), Answer(503, "HTTP 503"), Answer(410, "HTTP 410")


def lanes(rules: Rules = RULES, condition: Condition | None = None) -> Lanes:
    return Lanes(rules, random.Random(1), condition)


def item(session: str = "a", offset: int = 0, size_bytes: int = 100) -> Item:
    return Item(session, Position("voice.sessions", 0, offset), size_bytes, None)


def taken(line: Lanes, now_us: int = 0) -> Item:
    found = line.take(now_us)
    assert found is not None
    return found


def test_a_session_waits_for_its_first_message_and_others_do_not() -> None:
    line = lanes()
    for session, offset in (("a", 0), ("a", 1), ("b", 2)):
        line.offer(item(session, offset))
    first, other = taken(line), taken(line)
    assert [first.position.offset, other.position.offset] == [0, 2]
    assert line.take(0) is None
    assert line.settle(first, OK, 1) is Verdict.DELIVERED
    assert taken(line, 1).position.offset == 1


def test_at_most_so_many_are_on_their_way() -> None:
    line = lanes()
    for number in range(6):
        line.offer(item(str(number), number))
    assert [line.take(0) is not None for _ in range(6)] == [True] * 4 + [False] * 2
    assert line.next_us() is None


def test_retries_follow_the_schedule_and_then_the_message_is_dead() -> None:
    line, now_us = lanes(), 0
    line.offer(item())
    line.offer(item("a", 1))
    verdicts, waits_s = [], []
    for _ in range(4):
        verdicts.append(line.settle(taken(line, now_us), Answer(400, "HTTP 400"), now_us))
        next_us = line.next_us()
        assert next_us is not None
        waits_s.append((next_us - now_us) / S)
        now_us = max(now_us, next_us)
    assert verdicts == [Verdict.AGAIN] * 3 + [Verdict.DEAD]
    for wait_s, planned_s in zip(waits_s, (5, 300, 1800), strict=False):
        assert planned_s <= wait_s <= planned_s * (1 + JITTER)
    assert waits_s[3] <= 0  # what follows in the session is free to go
    assert taken(line, now_us).position.offset == 1
    assert line.condition.dead == 1


@pytest.mark.parametrize("status", [0, 301, 302, 307, 400, 404, 429, 500, 503])
def test_nothing_but_2xx_is_a_delivery(status: int) -> None:
    line = lanes()
    line.offer(item())
    assert line.settle(taken(line), Answer(status, "no"), 0) is Verdict.AGAIN


def test_410_disables_and_keeps_the_message() -> None:
    line = lanes()
    line.offer(item())
    line.settle(taken(line), GONE, 7)
    assert "410" in line.condition.disabled
    assert (line.take(10**15), line.next_us()) == (None, None)
    assert [one.position.offset for one in line.open_items()] == [0]


def test_long_failure_disables() -> None:
    line, now_us = lanes(Rules((600,) * 50, 4, 100, 3600)), S
    line.offer(item())
    while not line.condition.disabled:
        line.settle(taken(line, now_us), BAD, now_us)
        now_us = line.next_us() or now_us
    assert 3600 * S <= now_us <= 3600 * S + 2 * 720 * S
    assert "1 hours" in line.condition.disabled


def test_an_endpoint_that_fails_is_left_alone_and_then_tried_by_one() -> None:
    line, now_us = lanes(), 0
    for number in range(10):
        line.offer(item(str(number), number))
    line.settle(taken(line), BAD, 0)
    assert line.take(0) is None
    next_us = line.next_us()
    assert next_us is not None
    assert REST_FIRST_S * S <= next_us <= REST_FIRST_S * (1 + JITTER) * S
    trial = taken(line, next_us)
    assert line.take(next_us) is None
    line.settle(trial, OK, next_us)
    assert [line.take(next_us) is not None for _ in range(5)] == [True] * 4 + [False]
    assert now_us == 0


def test_rests_grow_to_their_limit() -> None:
    line, now_us, rests_s = lanes(Rules((0,) * 100, 4, 100, 10**9)), 0, []
    line.offer(item())
    for _ in range(12):
        line.settle(taken(line, now_us), BAD, now_us)
        next_us = line.next_us()
        assert next_us is not None
        rests_s.append((next_us - now_us) / S)
        now_us = next_us
    assert rests_s[1] > rests_s[0]
    assert REST_S_MAX <= rests_s[-1] <= REST_S_MAX * (1 + JITTER)


@pytest.mark.parametrize(("asked_s", "at_least_s"), [(None, 5), (2, 5), (900, 900)])
def test_retry_after_is_obeyed(asked_s: float | None, at_least_s: float) -> None:
    line = lanes()
    line.offer(item())
    line.offer(item("b", 1))
    line.settle(taken(line), Answer(429, "HTTP 429", asked_s), 0)
    if asked_s == 900:
        assert (line.next_us() or 0) >= 900 * S  # the whole endpoint is left alone
    line.settle(taken(line, 10**12), OK, 10**12)
    (left,) = line.open_items()
    assert left.due_us >= at_least_s * S


def test_who_is_back_gets_what_waits_at_once() -> None:
    line, now_us = lanes(Rules((5, 7200, 7200), 4, 100, 10**6)), 0
    for number in range(DOWN_FAILURES + 1):
        line.offer(item(str(number), number))
    for _ in range(DOWN_FAILURES):
        now_us = max(now_us, line.next_us() or 0)
        line.settle(taken(line, now_us), BAD, now_us)
    now_us = line.next_us() or 0
    line.settle(taken(line, now_us), OK, now_us)
    assert all(one.due_us <= now_us + S for one in line.open_items())


def test_one_message_that_is_refused_stops_no_other_session() -> None:
    line, now_us, delivered = lanes(), 0, 0
    for number in range(20):
        line.offer(item(str(number), number))
    while delivered < 19:
        now_us = max(now_us, line.next_us() or 0)
        one = taken(line, now_us)
        delivered += line.settle(one, Answer(422) if one.session_id == "3" else OK, now_us) is Verdict.DELIVERED
    assert now_us == 0
    assert [one.session_id for one in line.open_items()] == ["3"]


def test_room_is_bounded_in_messages_and_bytes() -> None:
    line = lanes()
    for number in range(100):
        assert line.has_room
        line.offer(item(str(number), number))
    assert (line.has_room, line.is_half_empty) == (False, False)
    heavy = lanes()
    heavy.offer(item(size_bytes=OPEN_BYTES_MAX))
    assert (heavy.has_room, heavy.is_half_empty) == (False, False)
    heavy.settle(taken(heavy), OK, 0)
    assert (heavy.has_room, heavy.is_half_empty) == (True, True)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("120", 120),
        (" 0 ", 0),
        ("999999999999", 86400),
        ("soon", None),
        ("-5", None),
        ("٣", None),
        (format_datetime(datetime.fromtimestamp(1030, UTC), usegmt=True), 30),
        (format_datetime(datetime.fromtimestamp(10, UTC), usegmt=True), 0),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(header: str | None, expected: float | None) -> None:
    assert retry_after_s(header, 1000 * S) == expected


SESSIONS = st.sampled_from("abcde")
ANSWERS = (OK, OK, OK, BAD, Answer(0, "no connection"), Answer(404), Answer(429, "", 30.0))


@given(st.lists(SESSIONS, max_size=60), st.integers(0, 2**32).map(random.Random))
def test_order_and_schedule_hold_whatever_is_answered(sessions: list[str], chance: random.Random) -> None:
    """Every message is settled once; within a session in its order; never more at once than allowed, never early."""
    line, now_us = lanes(Rules((1, 2), 3, 1000, 10**9)), 0
    pending = [item(session, offset) for offset, session in enumerate(sessions)]
    ended: dict[str, list[int]] = defaultdict(list)
    on_their_way: list[Item] = []
    while pending or line.open_count:
        if pending and chance.random() < 0.5:
            line.offer(pending.pop(0))
        one = line.take(now_us)
        if one is not None:
            assert one.due_us <= now_us
            assert one.session_id not in [other.session_id for other in on_their_way]
            on_their_way.append(one)
            assert len(on_their_way) <= 3
        elif on_their_way:
            done = on_their_way.pop(chance.randrange(len(on_their_way)))
            answer = chance.choice(ANSWERS)
            if line.settle(done, answer, now_us) is not Verdict.AGAIN:
                ended[done.session_id].append(done.position.offset)
                assert done.attempts <= 3
            elif answer.retry_after_s:
                assert done.due_us >= now_us + 30 * S
        else:
            now_us = max(now_us, line.next_us() or now_us)
    assert sum(map(len, ended.values())) == len(sessions)
    for session, offsets in ended.items():
        assert offsets == [offset for offset, one in enumerate(sessions) if one == session]


@given(st.lists(SESSIONS, max_size=40), st.lists(st.sampled_from(ANSWERS), max_size=40))
def test_what_is_open_can_be_taken_up_again(sessions: list[str], answers: list[Answer]) -> None:
    """A successor that is offered the open messages as they were goes on in the same order."""
    line, now_us = lanes(Rules((1, 2), 3, 1000, 10**9)), 0
    for offset, session in enumerate(sessions):
        line.offer(item(session, offset))
    for answer in answers:
        if line.open_count:
            now_us = max(now_us, line.next_us() or 0)
            line.settle(taken(line, now_us), answer, now_us)
    heir = lanes(Rules((1, 2), 3, 1000, 10**9))
    for one in line.open_items():
        heir.offer(Item(one.session_id, one.position, one.size_bytes, None, one.attempts, one.due_us))
    order = defaultdict(list)
    while heir.open_count:
        now_us = max(now_us, heir.next_us() or 0)
        one = taken(heir, now_us)
        heir.settle(one, OK, now_us)
        order[one.session_id].append(one.position.offset)
    assert all(offsets == sorted(offsets) for offsets in order.values())
    assert heir.condition.delivered == line.open_count
