"""One endpoint over HTTP: a POST for each attempt, to checked addresses alone, redirects never followed."""

import asyncio
import contextlib
import ssl
from functools import cache

import httpcore

from processors.webhooks.core import Answer, retry_after_s
from processors.webhooks.guard import Guard, GuardedBackend, RefusedAddressError, split_url
from streams.clock import Clock

# Of an answer the status and a header count; its connection is kept where the rest is short.
ANSWER_BYTES_MAX = 65_536
_BODY_S = 1.0
_KEPT_S = 15.0
_ERRORS: dict[type[Exception], str] = {
    httpcore.ConnectError: "no connection",
    httpcore.ReadError: "the connection broke",
    httpcore.WriteError: "the connection broke",
}


class Sender:
    """Sends to the URL, at most `concurrency` requests at once; `close` it."""

    def __init__(self, url: str, guard: Guard, clock: Clock, timeout_s: float, concurrency: int) -> None:
        self._url = url
        self._clock = clock
        self._timeout_s = timeout_s
        scheme = split_url(url).scheme
        self._backend = GuardedBackend(guard, scheme)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_authorities() if scheme == "https" else None,
            max_connections=concurrency,
            keepalive_expiry=_KEPT_S,
            network_backend=self._backend,
        )

    async def post(self, body: bytes, headers: dict[str, str]) -> Answer:
        """What came of it; never raises for what the other side does."""
        began_s = self._clock.monotonic_s()
        status, reason, header = 0, "", None
        try:
            async with asyncio.timeout(self._timeout_s):
                status, header = await self._posted(body, headers)
            reason = _reason(status)
        except TimeoutError:
            reason = f"no answer within {self._timeout_s:g} s"
        except RefusedAddressError as error:
            reason = str(error)
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
            reason = _told(error)
        duration_ms = (self._clock.monotonic_s() - began_s) * 1000
        return Answer(status, reason, retry_after_s(header, self._clock.now_us()), duration_ms)

    async def close(self) -> None:
        """Closes its connections."""
        await self._pool.aclose()
        self._backend.close()

    async def _posted(self, body: bytes, headers: dict[str, str]) -> tuple[int, str | None]:
        async with self._pool.stream("POST", self._url, headers=list(headers.items()), content=body) as response:
            after = next((value for name, value in response.headers if name.lower() == b"retry-after"), None)
            with contextlib.suppress(TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
                async with asyncio.timeout(_BODY_S):
                    await _skip(response)
            return response.status, None if after is None else after.decode("latin-1")


async def _skip(response: httpcore.Response) -> None:
    """Reads the body, so that the connection serves again; one that does not end soon is not worth it."""
    left = ANSWER_BYTES_MAX
    async for part in response.aiter_stream():
        left -= len(part)
        if left < 0:
            return


def _reason(status: int) -> str:
    if 200 <= status < 300:
        return ""
    return f"HTTP {status}, and redirects are not followed" if 300 <= status < 400 else f"HTTP {status}"


def _told(error: Exception) -> str:
    """The kind of error in words; what the other side sent is not quoted."""
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.__context__.verify_message}"
    return _ERRORS.get(type(error), f"no HTTP answer ({type(error).__name__})")


@cache
def _authorities() -> ssl.SSLContext:
    return httpcore.default_ssl_context()
