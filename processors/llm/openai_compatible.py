"""A language model behind an OpenAI-compatible endpoint (vLLM, llama.cpp's server, services), streamed over HTTP."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import structlog

from processors.engine import EngineError, Generate, Generated, Offered, Reply, Request
from processors.json_text import json_in, valid
from processors.lane import Description, Queue
from processors.llm import choosing
from processors.llm.queue_metrics import PREFIXES, queue_of
from streams.settings import Settings

log = structlog.get_logger(__name__)

_Way = Literal["protocol", "schema", "words"]
_WAYS: tuple[_Way, ...] = ("protocol", "schema", "words")
# The server may have been started anew, and know tools by then; and a chat may only have been too long with its tools.
_KEPT_S: dict[_Way, float] = {"protocol": math.inf, "schema": 300.0, "words": 30.0}
_OF_TOOLS = (400, 415, 422, 500, 501)  # what servers answer to tools, and to schemas, that they do not know
_REFUSALS = (408, 409, 425, 429, 503)
_REACH_S = 5.0
_WARM_S = 30.0
_REACH_AGAIN_S = 0.1
_REACH_AGAIN_S_MAX = 1.0
_QUEUE_S = 2.0
_TOKENS_MAX = 100_000_000  # of one answer: a larger number is no count
_TRIES = 2  # a kept connection may turn out to have been closed by the other side
# vLLM begins anew after an answer that broke off, unless told to go on; llama.cpp's server does unasked, others refuse.
_GO_ON = {"continue_final_message": True, "add_generation_prompt": False}


@dataclass(frozen=True, slots=True)
class _Kept:
    """The way in which an endpoint takes tools, as it was found out."""

    way: _Way
    since_s: float


@dataclass(slots=True)
class _Counts:
    """Tokens of all that an ask took."""

    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, usage: Any) -> None:
        """Takes the `usage` of an answer, whatever it is: an endpoint that counts badly may answer well."""
        self.tokens_in += _count(usage, "prompt_tokens")
        self.tokens_out += _count(usage, "completion_tokens")


class OpenAICompatible:
    """An `EngineClient` for the role llm, shared with others; `Reachable` while it takes connections.

    Without a model's name it takes the endpoint's first model, and asks again for that when the endpoint was away.
    """

    def __init__(self, settings: Settings, fallback: bool = False, number: int = 0) -> None:
        """An endpoint of the settings by its number, or the fallback; raises ValueError for what is no address."""
        engines = settings.engines
        several = "LLM_BASE_URLS" if engines.llm_base_urls else "LLM_BASE_URL"
        name = "LLM_FALLBACK_BASE_URL" if fallback else several
        address = engines.llm_fallback_base_url if fallback else engines.llm_endpoints[number]
        if not address.startswith(("http://", "https://")):
            expected = "expected the address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1"
            raise ValueError(f"TRUNKLINE_ENGINES__{name}: {expected}; found {address!r}")
        key = (engines.llm_fallback_key if fallback else engines.llm_key).get_secret_value()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=address.rstrip("/") + "/", headers=headers, timeout=None)
        self._chosen = self._model = engines.llm_fallback_model if fallback else engines.llm_model
        self._address = address.rstrip("/")
        self._there = False
        self._is_vllm = False
        self._preferred: _Way = engines.llm_tools
        self._kept: dict[tuple[Offered, ...], _Kept] = {}

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`. The last reply has no text but the counts, where the endpoint gives them."""
        if not isinstance(request, Generate):
            raise EngineError("invalid", f"expected Generate, found {type(request).__name__}")
        started_s = time.monotonic()
        deadline = asyncio.get_running_loop().time() + deadline_s
        counts = _Counts()
        try:
            async with aclosing(self._pieces(request, deadline, counts)) as pieces:
                async for piece in pieces:
                    yield piece
        except TimeoutError:
            raise EngineError("timeout", f"not finished within {deadline_s:g} s") from None
        except httpx.HTTPError as error:
            if isinstance(error, httpx.ConnectError):
                self._there = False
            raise EngineError("crashed", f"the language model's endpoint: {type(error).__name__}") from None
        yield Generated(
            "",
            model=self._model,
            tokens_in=counts.tokens_in,
            tokens_out=counts.tokens_out,
            compute_ms=1000 * (time.monotonic() - started_s),
        )

    @property
    def reachable(self) -> bool:
        """Whether it took the last connection."""
        return self._there

    async def reach(self) -> None:
        """Returns when it answers, whatever it says short of a failure of its own, and has made a first token."""
        pause_s = _REACH_AGAIN_S
        while not self._there:
            with contextlib.suppress(httpx.HTTPError, TimeoutError):
                async with asyncio.timeout(_REACH_S):
                    response = await self._http.get("models")
                if response.status_code < 500:
                    listed = self._first_listed(response)
                    self._model = self._chosen or listed
                    self._kept.clear()
                    await self._warm()
                    self._there = True
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _REACH_AGAIN_S_MAX)

    async def _warm(self) -> None:
        """Asks for one token, so that no caller waits for what a server does only with its first chat."""
        if self._model:
            hello = [{"role": "user", "content": "Hello"}]
            async with asyncio.timeout(_WARM_S):
                await self._http.post(
                    "chat/completions", json={"model": self._model, "messages": hello, "max_tokens": 1}
                )

    async def queue(self) -> Queue | None:
        """See `Shared`: from the metrics that vLLM and llama.cpp serve beside /v1."""
        address = self._address.removesuffix("/v1") + "/metrics"
        try:
            async with (
                asyncio.timeout(_QUEUE_S),
                self._http.stream("GET", address, follow_redirects=True) as response,
            ):
                if response.status_code != 200:
                    return None
                return queue_of([line async for line in response.aiter_lines() if line.startswith(PREFIXES)])
        except (httpx.HTTPError, TimeoutError):
            return None

    @property
    def description(self) -> Description:
        """See `Described`."""
        parts = urlsplit(self._address)
        return Description(self._model, "remote", f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")

    async def close(self) -> None:
        """See `EngineClient`."""
        await self._http.aclose()

    async def _pieces(self, request: Generate, deadline: float, counts: _Counts) -> AsyncGenerator[Generated, None]:
        """The answer, in the first way that the endpoint takes its tools in."""
        first: _RefusalError | None = None
        for way in self._ways(request):
            begun = False
            try:
                async with aclosing(self._by(way, request, deadline, counts)) as pieces:
                    async for piece in pieces:
                        if not begun:
                            begun = True
                            self._keep_to(way, request)
                        yield piece
            except _RefusalError as refusal:
                if begun or refusal.status not in _OF_TOOLS:
                    raise
                self._kept.pop(request.tools, None)
                first = first or refusal
            else:
                return
        if first is not None:
            raise first

    def _ways(self, request: Generate) -> tuple[_Way, ...]:
        """Those to be tried: the one that is known, where a better one has not been refused for a while."""
        if not request.tools:
            return ("words",)
        kept = self._kept.get(request.tools)
        if kept is not None and time.monotonic() - kept.since_s < _KEPT_S[kept.way]:
            return (kept.way,)
        return _WAYS[_WAYS.index(self._preferred) :]

    def _keep_to(self, way: _Way, request: Generate) -> None:
        kept = self._kept.get(request.tools)
        if not choosing.may_choose(request):
            return  # such tools are taken by servers, too, which refuse others
        if kept is not None and kept.way == way and self._ways(request) == (way,):
            return
        self._kept[request.tools] = _Kept(way, time.monotonic())
        if way != self._preferred:
            log.warning("the endpoint refuses tools", model=self._model, instead=way)

    async def _by(
        self, way: _Way, request: Generate, deadline: float, counts: _Counts
    ) -> AsyncGenerator[Generated, None]:
        if way == "schema" and choosing.may_choose(request):
            choice = choosing.choice_of(request)
            response = await self._opened(choice, deadline, choosing.choice_format(request.tools))
            written = ""
            async with aclosing(_answer(response, deadline, counts)) as pieces:
                async for piece in pieces:
                    written += piece.text
                    yield Generated("", choosing=True)
            if (chosen := choosing.choice_in(written)) is not None:
                yield Generated("", chosen=chosen)
                return
        asked = request if way == "protocol" else choosing.without_tools(request)
        async with aclosing(_answer(await self._opened(asked, deadline), deadline, counts)) as pieces:
            async for piece in pieces:
                yield piece

    async def _opened(
        self, request: Generate, deadline: float, response_format: dict[str, Any] | None = None
    ) -> httpx.Response:
        """The response, its body still to come."""
        async with asyncio.timeout_at(deadline):
            return await self._open(request, response_format)

    async def _open(self, request: Generate, response_format: dict[str, Any] | None) -> httpx.Response:
        if not self._model:
            self._model = await self._first_model()
        body = {
            "model": self._model,
            "messages": [choosing.as_message(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"stop": list(request.stop)} if request.stop else {}),
            **({"response_format": response_format} if response_format is not None else {}),
            **choosing.as_tools(request),
            **(_GO_ON if self._is_vllm and request.messages and request.messages[-1].role == "assistant" else {}),
        }
        try:
            content = json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise EngineError("invalid", "expected messages of valid Unicode") from None
        headers = {"content-type": "application/json"}
        response = await self._sent(
            self._http.build_request("POST", "chat/completions", content=content, headers=headers)
        )
        if response.status_code != 200:
            await response.aclose()
            raise _RefusalError(response.status_code)
        return response

    async def _first_model(self) -> str:
        response = await self._sent(self._http.build_request("GET", "models"))
        await response.aread()
        if response.status_code != 200:
            raise _RefusalError(response.status_code)
        if not (model := self._first_listed(response)):
            raise EngineError("invalid", "the endpoint lists no model: set TRUNKLINE_ENGINES__LLM_MODEL")
        return model

    def _first_listed(self, response: httpx.Response) -> str:
        """The first model of an answer that was read; empty where it lists none. Notes whose server it is."""
        try:
            first = json_in(response.content)["data"][0]
            self._is_vllm = first.get("owned_by") == "vllm"
            return str(first["id"])
        except (LookupError, TypeError, AttributeError):
            return ""

    async def _sent(self, request: httpx.Request) -> httpx.Response:
        for _ in range(_TRIES - 1):
            try:
                return await self._http.send(request, stream=True)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                continue
        return await self._http.send(request, stream=True)


async def _answer(response: httpx.Response, deadline: float | None, counts: _Counts) -> AsyncGenerator[Generated, None]:
    """Words as they come, a choice once it is whole. Closes the response: before its end, the endpoint stops."""
    chunks, writing, usage = _chunks(response), choosing.Writing(), None
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            usage = chunk.get("usage") or usage
            delta = _delta(chunk)
            if text := valid(delta.get("content")):
                yield Generated(text)
            if calls := delta.get("tool_calls"):
                writing.add(calls)
                yield Generated("", choosing=True)
        counts.add(usage)
        if writing.begun:
            yield Generated("", chosen=writing.finished())
    finally:
        await response.aclose()


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The objects of a server-sent event stream up to its `[DONE]`; raises EngineError when it ends before that."""
    async for line in response.aiter_lines():
        field, _, value = line.partition(":")
        if field != "data":
            continue  # comments keep the connection open; other fields say nothing here
        value = value.strip()
        if value == "[DONE]":
            return
        chunk = json_in(value)
        if not isinstance(chunk, dict):
            raise EngineError("invalid", "the endpoint sent what is no JSON object")
        if chunk.get("error"):
            raise _stream_error(chunk["error"])
        yield chunk
    raise EngineError("crashed", "the endpoint ended its answer early")


def _count(usage: Any, name: str) -> int:
    """What a usage says of these tokens; 0 where it is no number that a count can have."""
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and 0 <= found <= _TOKENS_MAX else 0


def _delta(chunk: dict[str, Any]) -> dict[str, Any]:
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return {}
    delta = choices[0].get("delta")
    return delta if isinstance(delta, dict) else {}


class _RefusalError(EngineError):
    """What a status means; the status alone, since an endpoint's text may repeat the conversation."""

    def __init__(self, status: int) -> None:
        reason, advice = _meaning(status)
        super().__init__(reason, f"the endpoint answered {status}" + (f": {advice}" if advice else ""))
        self.status = status


def _meaning(status: int) -> tuple[str, str]:
    """The reason for the stage, and what an operator is to look at."""
    if status in (401, 403):
        return "invalid", "check TRUNKLINE_ENGINES__LLM_KEY"
    if status == 404:
        return "invalid", "check TRUNKLINE_ENGINES__LLM_BASE_URL and _LLM_MODEL"
    if status in (400, 413):
        return "invalid", "expected a chat within the model's context, and options that the endpoint knows"
    if status in _REFUSALS:
        return "refused", ""
    return "invalid" if 400 <= status < 500 else "crashed", ""


def _stream_error(error: Any) -> EngineError:
    code = error.get("code") if isinstance(error, dict) else None
    return _RefusalError(code) if isinstance(code, int) else EngineError("crashed", "the endpoint reported an error")
