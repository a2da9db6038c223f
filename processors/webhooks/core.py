"""What is sent to one endpoint, when: order within a session, retries, rests, and when to give up. Pure.

Sessions are lanes: the head of a lane is sent until it is delivered or dead, and holds up what follows in its session,
nothing else. An endpoint that fails is asked by one lane at a time, with growing rests, until it answers.
"""

import heapq
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from streams.keys import Position

OPEN_BYTES_MAX = 8 * 1024 * 1024
REST_FIRST_S = 1.0
REST_S_MAX = 60.0
RETRY_AFTER_S_MAX = 24 * 3600.0
JITTER = 0.2  # of a wait, on top of it
# After so many failures in a row an answer means that the endpoint is back: what waits need not wait on.
DOWN_FAILURES = 5
_BACK_WITHIN_S = 1.0
_SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Rules:
    """`retry_s`: the waits before the second attempt, the third, ...; without one more the message is dead."""

    retry_s: tuple[float, ...]
    concurrency: int
    open_max: int
    disable_after_s: float


@dataclass(slots=True, eq=False)
class Item:
    """A message on its way: `payload` is the sender's business, `attempts` were made, the next is due at `due_us`."""

    session_id: str
    position: Position
    size_bytes: int
    payload: Any
    attempts: int = 0
    due_us: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an attempt; `status` is 0 without an HTTP answer, and `reason` says why.

    One that is `final` would be the same another time: the message is dead.
    """

    status: int
    reason: str = ""
    retry_after_s: float | None = None
    duration_ms: float = 0.0
    final: bool = False

    @property
    def delivered(self) -> bool:
        """Only a 2xx is; redirects are not followed."""
        return 200 <= self.status < 300

    @property
    def is_endpoints(self) -> bool:
        """Whether the endpoint as a whole does not take messages, rather than this one."""
        return self.status in (0, 408, 425, 429) or self.status >= 500


class Verdict(StrEnum):
    """What becomes of a message after an attempt."""

    DELIVERED = "delivered"
    AGAIN = "again"
    DEAD = "dead"


@dataclass(slots=True)
class Condition:
    """How the endpoint fares: failures since it last answered with 2xx, since when, what it said last."""

    failures: int = 0
    failing_since_us: int = 0
    delivered_at_us: int = 0
    delivered: int = 0
    dead: int = 0
    status: int = 0
    reason: str = ""
    disabled: str = ""


@dataclass(slots=True)
class _Lane:
    items: deque[Item] = field(default_factory=deque)
    ticket: int = 0
    in_flight: bool = False


class Lanes:
    """The messages of one endpoint that are neither delivered nor dead."""

    def __init__(self, rules: Rules, chance: random.Random, condition: Condition | None = None) -> None:
        self._rules = rules
        self._chance = chance
        self.condition = condition or Condition()
        self._lanes: dict[str, _Lane] = {}
        self._due: list[tuple[int, int, str]] = []
        self._tickets = 0
        self._in_flight = 0
        self._resting_until_us = 0
        self.open_count = 0
        self._open_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether another message may be offered."""
        return self.open_count < self._rules.open_max and self._open_bytes < OPEN_BYTES_MAX

    @property
    def is_half_empty(self) -> bool:
        """Whether it is worth reading the log for more."""
        return self.open_count <= self._rules.open_max // 2 and self._open_bytes <= OPEN_BYTES_MAX // 2

    def offer(self, item: Item) -> None:
        """Takes a message, behind those of its session that were offered before."""
        lane = self._lanes.setdefault(item.session_id, _Lane())
        lane.items.append(item)
        self.open_count += 1
        self._open_bytes += item.size_bytes
        if len(lane.items) == 1:
            self._line_up(lane)

    def take(self, now_us: int) -> Item | None:
        """What to send now, to be told to `settle`; None when nothing is due or the endpoint is to be left alone."""
        if self.condition.disabled or self._in_flight >= self._concurrency or now_us < self._resting_until_us:
            return None
        lane = self._first()
        if lane is None or lane.items[0].due_us > now_us:
            return None
        heapq.heappop(self._due)
        lane.in_flight = True
        self._in_flight += 1
        return lane.items[0]

    def next_us(self) -> int | None:
        """When to `take` again, unless something is settled or offered before; None when only that helps."""
        if self.condition.disabled or self._in_flight >= self._concurrency:
            return None
        lane = self._first()
        return None if lane is None else max(lane.items[0].due_us, self._resting_until_us)

    def settle(self, item: Item, answer: Answer, now_us: int) -> Verdict:
        """What becomes of the message, which was taken; may disable the endpoint (`condition.disabled`)."""
        lane = self._lanes[item.session_id]
        lane.in_flight = False
        self._in_flight -= 1
        item.attempts += 1
        self.condition.status, self.condition.reason = answer.status, answer.reason
        if answer.delivered:
            self._answered(now_us)
            self._finish(item, lane)
            return Verdict.DELIVERED
        self._failed(answer, now_us)
        if self.condition.disabled:
            item.due_us = now_us
        elif answer.final or item.attempts > len(self._rules.retry_s):
            self.condition.dead += 1
            self._finish(item, lane)
            return Verdict.DEAD
        else:
            item.due_us = now_us + int(self._wait_s(item.attempts, answer) * _SECOND_US)
        self._line_up(lane)
        return Verdict.AGAIN

    def open_items(self) -> Iterator[Item]:
        """All of them; those of a session in their order. Offered again so, they are where they were."""
        for lane in self._lanes.values():
            yield from lane.items

    @property
    def _concurrency(self) -> int:
        return 1 if self.condition.failures else self._rules.concurrency

    def _first(self) -> _Lane | None:
        """The lane whose head is due first; what was lined up anew since is passed over."""
        while self._due:
            _, ticket, session_id = self._due[0]
            lane = self._lanes.get(session_id)
            if lane is not None and lane.ticket == ticket and not lane.in_flight:
                return lane
            heapq.heappop(self._due)
        return None

    def _line_up(self, lane: _Lane) -> None:
        self._tickets += 1
        lane.ticket = self._tickets
        head = lane.items[0]
        heapq.heappush(self._due, (head.due_us, lane.ticket, head.session_id))

    def _finish(self, item: Item, lane: _Lane) -> None:
        lane.items.popleft()
        self.open_count -= 1
        self._open_bytes -= item.size_bytes
        if lane.items:
            self._line_up(lane)
        else:
            del self._lanes[item.session_id]

    def _answered(self, now_us: int) -> None:
        condition = self.condition
        was_down = condition.failures >= DOWN_FAILURES
        condition.failures, condition.failing_since_us = 0, 0
        condition.delivered += 1
        condition.delivered_at_us = now_us
        self._resting_until_us = 0
        if was_down:
            self._bring_forward(now_us)

    def _bring_forward(self, now_us: int) -> None:
        for lane in self._lanes.values():
            if lane.in_flight:
                continue
            head = lane.items[0]
            soon_us = now_us + int(self._chance.uniform(0, _BACK_WITHIN_S) * _SECOND_US)
            if head.due_us > soon_us:
                head.due_us = soon_us
                self._line_up(lane)

    def _failed(self, answer: Answer, now_us: int) -> None:
        condition = self.condition
        condition.failing_since_us = condition.failing_since_us or now_us
        if answer.status == 410:
            condition.disabled = "it answered 410 (gone)"
        elif now_us - condition.failing_since_us >= self._rules.disable_after_s * _SECOND_US:
            condition.disabled = f"no delivery succeeded for {self._rules.disable_after_s / 3600:g} hours"
        if answer.is_endpoints:
            condition.failures += 1
            rest_s = min(REST_FIRST_S * 2 ** min(condition.failures - 1, 16), REST_S_MAX)
            self._rest(now_us, max(rest_s * self._jitter(), answer.retry_after_s or 0.0))

    def _rest(self, now_us: int, rest_s: float) -> None:
        until_us = now_us + int(rest_s * _SECOND_US)
        self._resting_until_us = max(self._resting_until_us, until_us)

    def _wait_s(self, attempts: int, answer: Answer) -> float:
        wait_s = self._rules.retry_s[attempts - 1] * self._jitter()
        return max(wait_s, answer.retry_after_s or 0.0)

    def _jitter(self) -> float:
        return self._chance.uniform(1.0, 1.0 + JITTER)


def retry_after_s(value: str | None, now_us: int) -> float | None:
    """What a Retry-After header asks for, in seconds or as a date; a day at most, None where it is neither."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), RETRY_AFTER_S_MAX)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    wait_s = (at - datetime.fromtimestamp(now_us / _SECOND_US, UTC)).total_seconds()
    return min(max(wait_s, 0.0), RETRY_AFTER_S_MAX)
