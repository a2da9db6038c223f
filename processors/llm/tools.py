"""Tools: calls into other systems, as the engine client for the role `tools`: of URLs, and of adapters' operations.

Each host has a breaker: one that does not answer is not waited for by every caller in turn.
"""

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import httpx
import structlog
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from processors.adapters.client import Adapters
from processors.breaker import Breaker, OnChange
from processors.engine import CallOperation, CallTool, EngineError, Reply, Request, ToolReturned
from streams.clock import Clock, SystemClock

log = structlog.get_logger(__name__)

ATTEMPTS_MAX = 4
RESULT_BYTES_MAX = 65_536
HOSTS_MAX = 100
CONNECTIONS_MAX = 50

# Answers of something between us and the system, or of a system that asks for a moment: worth another try.
_PASSING = frozenset({425, 429, 502, 503, 504})
_AWAY = frozenset({502, 503, 504})
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


class _PassingError(Exception):
    def __init__(self, reply: ToolReturned) -> None:
        super().__init__(f"status {reply.status}")
        self.reply = reply


async def warm() -> None:
    """Loads what else the first call would, while its caller waits: most of an HTTP client, as it connects."""
    async with httpx.AsyncClient(trust_env=False, timeout=1.0) as client:
        with contextlib.suppress(httpx.TransportError):
            await client.get("http://127.0.0.1:0/")  # where nobody listens


class HttpTools:
    """Calls tools over HTTP. A call is repeated only where a repeat has no second effect.

    That is: methods that HTTP calls idempotent, and calls that carry an idempotency key.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        on_change: OnChange = lambda breaker, reason: None,
        client: httpx.AsyncClient | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._on_change = on_change
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()
        limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
        # The deadline of each call is kept here, whatever a server does, so httpx needs none of its own.
        self._adapters = adapters or Adapters({}, {})
        self._client = client or httpx.AsyncClient(limits=limits, timeout=None, follow_redirects=False)

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """Yields one ToolReturned, whatever its status; raises EngineError: timeout, crashed, invalid, refused.

        `refused` means that the host has not been answering and was not called this time.
        """
        if isinstance(request, CallOperation):
            yield await self._performed(request, deadline_s)
            return
        if not isinstance(request, CallTool):
            raise EngineError("refused", f"expected CallTool, got {type(request).__name__}")
        try:
            breaker = self._breaker(request.url)
        except ValueError as error:
            raise EngineError("invalid", "the call cannot be made: its URL is none") from error
        if not breaker.closed and not breaker.trial():
            raise EngineError("refused", f"{breaker.name} has not been answering")
        try:
            async with asyncio.timeout(deadline_s):
                reply = await self._call(request)
            if reply.status in _AWAY:
                breaker.failed(f"status {reply.status}")
            else:
                breaker.succeeded()
        except TimeoutError as error:
            breaker.failed("timeout")
            raise EngineError("timeout", f"no answer in {deadline_s:g} s") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, ValueError) as error:
            raise EngineError("invalid", f"the call cannot be made: {type(error).__name__}") from error
        except httpx.HTTPError as error:
            breaker.failed(type(error).__name__)
            raise EngineError("crashed", type(error).__name__) from error
        finally:
            breaker.released()  # a trial that told nothing may be repeated
        yield reply

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()
        await self._adapters.close()

    async def _performed(self, request: CallOperation, deadline_s: float) -> ToolReturned:
        done = await self._adapters.perform(request.operation, request.arguments, request.idempotency_key, deadline_s)
        return ToolReturned(done.status, json.dumps(done.result).encode(), done.duration_ms, done.outcome)

    def _breaker(self, url: str) -> Breaker:
        """The host's; the one used longest ago is forgotten where there are too many. Raises ValueError."""
        host = urlsplit(url).netloc.rpartition("@")[2]
        breaker = self._breakers.pop(host, None) or Breaker(f"tools.{host}", self._clock, self._on_change)
        self._breakers[host] = breaker
        if len(self._breakers) > HOSTS_MAX:
            self._breakers.popitem(last=False)[1].forget()
        return breaker

    async def _call(self, request: CallTool) -> ToolReturned:
        repeatable = request.method in _REPEATABLE or bool(request.idempotency_key)
        attempts = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS_MAX if repeatable else 1),
            wait=wait_exponential(multiplier=0.1, max=1.0) + wait_random(0, 0.1),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    return await self._once(request)
        except _PassingError as last:
            return last.reply
        raise AssertionError("tenacity ends with a result or an exception")

    async def _once(self, request: CallTool) -> ToolReturned:
        started = time.perf_counter()
        body = bytearray()
        async with self._client.stream(
            request.method, request.url, headers=request.headers, content=request.body or None
        ) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > RESULT_BYTES_MAX:
                    raise EngineError("invalid", f"the answer is longer than {RESULT_BYTES_MAX} bytes")
        reply = ToolReturned(response.status_code, bytes(body), (time.perf_counter() - started) * 1000)
        if reply.status in _PASSING:
            raise _PassingError(reply)
        return reply


def _may_pass(error: BaseException) -> bool:
    never = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    return isinstance(error, _PassingError) or (
        isinstance(error, httpx.TransportError) and not isinstance(error, never)
    )
