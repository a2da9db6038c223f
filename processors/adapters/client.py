"""Performs the operations of adapters, for tools and for the CRM's workflows.

A repeat has no second effect, by the operation's own idempotency, so what may pass is tried again within the deadline.
Each adapter has a rate, a bound on requests under way, and a breaker.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from prometheus_client import Counter, Histogram
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from processors.adapters.adapter import Adapter, ByHeader, ByLookup, Operation, operation_of
from processors.adapters.answer import Answer
from processors.adapters.authority import Authority
from processors.adapters.pace import Bucket
from processors.breaker import Breaker, OnChange
from processors.engine import EngineError
from processors.json_text import json_in
from processors.outcomes import outcome_of
from processors.templates import RenderError
from processors.webhooks.core import retry_after_s
from streams.clock import Clock, SystemClock

ATTEMPTS_MAX = 4
RESULT_BYTES_MAX = 65_536
CACHED_MAX = 1000

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_AWAY = frozenset({502, 503, 504})

requests = Counter("trunkline_adapter_requests", "Requests to other systems, by status.", ["adapter", "status"])
seconds = Histogram(
    "trunkline_adapter_seconds",
    "How long an operation took, waiting for its turn included.",
    ["adapter"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)


@dataclass(frozen=True, slots=True)
class Performed:
    """What came of an operation. `result` is its mapped record, {} where there is none; `status` is HTTP's."""

    outcome: str
    status: int
    result: Any
    duration_ms: float

    @property
    def may_pass(self) -> bool:
        """Whether another attempt may fare better: the system was away, busy, or did not let us in."""
        return self.outcome != "ok" and (self.status in _PASSING or self.status in (401, 403))


class _PassingError(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(f"status {answer.status}")
        self.answer = answer


class AdapterClient:
    """Asks one system."""

    def __init__(self, adapter: Adapter, secrets: Mapping[str, str], clock: Clock, on_change: OnChange) -> None:
        self._adapter = adapter
        self._secrets = secrets
        self._clock = clock
        pace, rules = adapter.limits, adapter.breaker
        self._bucket = Bucket(clock, pace.requests_per_s, pace.burst)
        self._slots = asyncio.Semaphore(pace.concurrency)
        self.breaker = Breaker(
            f"adapter.{adapter.id}", clock, on_change, rules.failures_max, rules.rest_first_s, rules.rest_s_max
        )
        limits = httpx.Limits(max_connections=pace.concurrency, max_keepalive_connections=pace.concurrency)
        # The deadline of each operation is kept here, whatever a server does.
        self._http = httpx.AsyncClient(limits=limits, timeout=None, follow_redirects=False)
        self._authority = Authority(adapter, secrets, clock, self._exchange)
        self._cache: OrderedDict[str, tuple[float, Performed]] = OrderedDict()

    async def perform(
        self, name: str, arguments: Mapping[str, Any], key: str, deadline_s: float | None = None
    ) -> Performed:
        """Raises EngineError: timeout, crashed, invalid, refused (its breaker is open, or it does not let us in)."""
        operation = self._adapter.operations[name]
        deadline_s = deadline_s or operation.timeout_s
        began_s = self._clock.monotonic_s()
        place = json.dumps([name, dict(arguments)], sort_keys=True, default=str) if operation.cache_s else ""
        remembered = self._remembered(place, began_s)
        if remembered is not None:
            return remembered
        if not self.breaker.closed and not self.breaker.trial():
            raise EngineError("refused", f"{self.breaker.name} has not been answering")
        values = {**dict.fromkeys(operation.arguments, ""), **arguments, "key": key, "secrets": self._secrets}
        try:
            async with asyncio.timeout(deadline_s):
                answer, asked = await self._once_made(operation, values)
            if answer.status in _AWAY:
                self.breaker.failed(f"status {answer.status}")
            else:
                self.breaker.succeeded()
        except TimeoutError as error:
            # Where requests wait for their turn here, that one was late tells nothing about the system.
            if not self._bucket.is_behind and not self._slots.locked():
                self.breaker.failed("timeout")
            raise EngineError("timeout", f"no answer in {deadline_s:g} s") from error
        except (RenderError, httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            raise EngineError("invalid", f"the call cannot be made: {error}") from error
        except httpx.HTTPError as error:
            self.breaker.failed(type(error).__name__)
            raise EngineError("crashed", type(error).__name__) from error
        finally:
            self.breaker.released()  # a trial that told nothing may be repeated
            seconds.labels(self._adapter.id).observe(self._clock.monotonic_s() - began_s)
        duration_ms = (self._clock.monotonic_s() - began_s) * 1000
        performed = _performed(asked, answer, duration_ms)
        self._remember(place, operation.cache_s, performed)
        return performed

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    # ---- once

    async def _once_made(self, operation: Operation, values: Mapping[str, Any]) -> tuple[Answer, Operation]:
        """The answer, and the operation that gave it: a record that is there already is not made again."""
        if isinstance(operation.idempotency, ByLookup):
            return await self._sought(operation, self._adapter.operations[operation.idempotency.operation], values)
        return await self._patiently(operation, values), operation

    async def _sought(
        self, operation: Operation, seen: Operation, values: Mapping[str, Any]
    ) -> tuple[Answer, Operation]:
        """Looks before each attempt to make it, and after the system refused: it may have been made meanwhile."""
        made: Answer | None = None
        for attempt in range(ATTEMPTS_MAX):
            there = await self._patiently(seen, values)
            outcome = _outcome(seen, there)
            if outcome != "not_found":
                return there, seen
            if made is not None and made.status not in _PASSING:
                break
            try:
                made = await self._let_in(operation, values)
            except _PassingError as error:
                made = error.answer
            except httpx.TransportError:
                if attempt == ATTEMPTS_MAX - 1:
                    raise
            else:
                if _outcome(operation, made) == "ok":
                    break
            await self._clock.sleep(0.1 * 2**attempt)
        assert made is not None, "the last attempt raises or answers"
        return made, operation

    async def _patiently(self, operation: Operation, values: Mapping[str, Any]) -> Answer:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS_MAX),
            wait=wait_exponential(multiplier=0.1, max=1.0) + wait_random(0, 0.1),
            retry=retry_if_exception(_may_pass),
            sleep=self._clock.sleep,
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    return await self._let_in(operation, values)
        except _PassingError as last:
            return last.answer
        raise AssertionError("tenacity ends with a result or an exception")

    async def _let_in(self, operation: Operation, values: Mapping[str, Any]) -> Answer:
        """One attempt; where our credentials are not taken any more, another with new ones."""
        writes = operation.effect == "write"
        credentials = await self._authority.headers(writes)
        answer = await self._exchange(self._request(operation, values, credentials))
        if answer.status in (401, 403) and self._authority.refused(credentials):
            credentials = await self._authority.headers(writes)
            answer = await self._exchange(self._request(operation, values, credentials))
        if answer.status in _PASSING:
            if wait_s := retry_after_s(answer.headers.get("retry-after"), self._clock.now_us()):
                self._bucket.rest(wait_s)
            raise _PassingError(answer)
        return answer

    # ---- requests

    def _request(
        self, operation: Operation, values: Mapping[str, Any], credentials: Mapping[str, str]
    ) -> httpx.Request:
        given = {"secrets": self._secrets}
        headers = {"Accept": "application/json"}
        headers |= {name: str(text.render(given)) for name, text in self._adapter.headers.items()}
        headers |= {name: str(text.render(values)) for name, text in operation.headers.items()}
        if isinstance(operation.idempotency, ByHeader):
            headers[operation.idempotency.header] = str(values["key"])
        url = f"{self._adapter.base_url}/{operation.path.render(values).lstrip('/')}"
        if operation.query:
            query = {name: str(text.render(values)) for name, text in operation.query.items()}
            url += f"?{urlencode(query, quote_via=quote, safe='$,')}"
        content = None
        if operation.body is not None:
            content = _json_of(operation.body.render(values))
            headers["Content-Type"] = "application/json"
        # With the cookies that came with earlier answers.
        return self._http.build_request(operation.method, url, headers={**headers, **credentials}, content=content)

    async def _exchange(self, request: httpx.Request) -> Answer:
        body = bytearray()
        async with self._slots:
            await self._bucket.take()
            response = await self._http.send(request, stream=True)
            try:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > RESULT_BYTES_MAX:
                        raise EngineError("invalid", f"the answer is longer than {RESULT_BYTES_MAX} bytes")
            finally:
                await response.aclose()
        requests.labels(self._adapter.id, str(response.status_code)).inc()
        return Answer(response.status_code, json_in(bytes(body)), response.headers)

    # ---- records that were found lately

    def _remembered(self, place: str, now_s: float) -> Performed | None:
        kept = self._cache.get(place)
        return kept[1] if kept is not None and now_s < kept[0] else None

    def _remember(self, place: str, for_s: float, performed: Performed) -> None:
        if not place or performed.outcome != "ok":
            return
        self._cache[place] = (self._clock.monotonic_s() + for_s, performed)
        self._cache.move_to_end(place)
        if len(self._cache) > CACHED_MAX:
            self._cache.popitem(last=False)


class Adapters:
    """All adapters that have an address, by their operations' full names."""

    def __init__(
        self,
        adapters: Mapping[str, Adapter],
        secrets: Mapping[str, str],
        clock: Clock | None = None,
        on_change: OnChange = lambda breaker, reason: None,
    ) -> None:
        clock = clock or SystemClock()
        self.known = adapters
        self._clients = {
            identity: AdapterClient(adapter, secrets, clock, on_change) for identity, adapter in adapters.items()
        }

    async def perform(
        self, name: str, arguments: Mapping[str, Any], key: str, deadline_s: float | None = None
    ) -> Performed:
        """Performs `adapter.operation`, within its own deadline where none is given; raises EngineError."""
        adapter, _, operation = name.partition(".")
        if operation_of(self.known, name) is None:
            raise EngineError("refused", f"there is no operation {name}")
        return await self._clients[adapter].perform(operation, arguments, key, deadline_s)

    async def close(self) -> None:
        """Closes the connections."""
        for client in self._clients.values():
            await client.close()


def _performed(operation: Operation, answer: Answer, duration_ms: float) -> Performed:
    record = _record(operation, answer)
    if operation.result:
        mapped = {name: search.find(record) for name, search in operation.result.items()}
        record = mapped if any(value is not None for value in mapped.values()) else {}
    return Performed(_outcome(operation, answer), answer.status, {} if record is None else record, duration_ms)


def _record(operation: Operation, answer: Answer) -> Any:
    return operation.found.find(answer.body) if operation.found is not None else answer.body


def _outcome(operation: Operation, answer: Answer) -> str:
    facts = {"body": {} if answer.body is None else answer.body, "status": answer.status}
    outcome = outcome_of(operation.outcomes, answer.status, facts)
    if outcome == "ok" and operation.found is not None and _record(operation, answer) is None:
        return "not_found"
    return outcome


def _json_of(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RenderError(f"its body is no JSON ({type(error).__name__})") from error


def _may_pass(error: BaseException) -> bool:
    never = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    return isinstance(error, _PassingError) or (
        isinstance(error, httpx.TransportError) and not isinstance(error, never)
    )
