"""llama.cpp in this process, through xllamacpp: a GGUF file, its own chat template, several answers at a time."""

import contextlib
import queue
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import xllamacpp

from processors.engine import Capabilities, EngineError, Generate, Generated, Message, Reply, Request
from processors.llm import choosing
from processors.memory import is_out_of_memory

SLOTS = 2
CONTEXT_TOKENS = 2048  # of each slot
_BATCH_TOKENS = 128  # a prompt is read in pieces of this size; between two of them it can be cancelled
_DONE = object()


def served(path: Path, threads: int, slots: int, context_tokens: int, gpu: bool = False) -> Any:
    """The runtime with that model loaded, in this process; each of its slots has a context of that size."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = slots * context_tokens
    params.n_parallel = slots
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.n_gpu_layers = -1 if gpu else 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # threads that wait leave the cores to the others
    params.cache_ram_mib = 0
    params.verbosity = -1
    # The library also listens on a loopback port, which nobody is to use.
    params.api_keys = [secrets.token_urlsafe(32)]
    return xllamacpp.Server(params)


class LlamaCpp:
    """An `Engine` for the role llm. Prompts that begin as the slot's last one did are not read again."""

    def __init__(self, path: Path, name: str, licence: str, threads: int, gpu: bool = False) -> None:
        self._server = served(path, threads, SLOTS, CONTEXT_TOKENS, gpu)
        self._name = name
        self._licence = licence
        self._device = "cuda" if gpu else "cpu"

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return Capabilities(
            "llm", self._name, streaming=True, concurrency=SLOTS, licence=self._licence, device=self._device
        )

    def warm(self) -> None:
        """See `Engine`."""
        for _ in self.answer(Generate((Message("user", "Hello"),), max_tokens=1)):
            pass

    def answer(self, request: Request) -> Iterator[Reply]:
        """See `Engine`. The last reply has no text but the counts; `cancel` may be called from any thread."""
        if not isinstance(request, Generate):
            raise EngineError("invalid", f"expected Generate, found {type(request).__name__}")
        if not request.messages:
            raise EngineError("invalid", "expected at least one message")
        if choosing.may_choose(request):
            return _Choice(self._server, request, self._name)
        return _Generation(self._server, choosing.without_tools(request), self._name)


class _Choice(Iterator[Reply]):
    """A choice by schema, since models of this size know no protocol for it, and the words where it is none."""

    def __init__(self, server: Any, request: Generate, model: str) -> None:
        self._cancelled = False
        self._server, self._request, self._model = server, request, model
        choice, held_to = choosing.choice_of(request), choosing.choice_format(request.tools)
        self._generation = _Generation(server, choice, model, held_to)
        self._replies = self._chosen()

    def _chosen(self) -> Iterator[Reply]:
        written, spent = "", Generated("")
        for piece in self._generation:
            assert isinstance(piece, Generated)
            written, spent = written + piece.text, piece
            yield Generated("", choosing=True)
        if self._cancelled:
            return
        if (chosen := choosing.choice_in(written)) is not None:
            yield Generated("", chosen=chosen)
            yield spent
            return
        self._generation = _Generation(self._server, choosing.without_tools(self._request), self._model)
        if self._cancelled:  # while it was made
            self._generation.cancel()
        for reply in self._generation:
            yield _with_spent(reply, spent) if isinstance(reply, Generated) and reply.model else reply

    def __next__(self) -> Reply:
        return next(self._replies)

    def cancel(self) -> None:
        """Asks the runtime to stop; returns at once."""
        self._cancelled = True
        self._generation.cancel()

    def close(self) -> None:
        """Stops the answer and waits until the runtime has let go of it."""
        self.cancel()
        self._generation.close()


def _with_spent(last: Generated, spent: Generated) -> Generated:
    """The last reply, with what the choice before the words took, too."""
    return msgspec.structs.replace(
        last,
        tokens_in=last.tokens_in + spent.tokens_in,
        tokens_out=last.tokens_out + spent.tokens_out,
        compute_ms=last.compute_ms + spent.compute_ms,
    )


class _Generation(Iterator[Reply]):
    """One answer in the making. The runtime calls back from a thread of its own, which ends before this does."""

    def __init__(
        self, server: Any, request: Generate, model: str, response_format: dict[str, Any] | None = None
    ) -> None:
        self._chunks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._model = model
        self._ended = False
        body = {
            "messages": [choosing.as_message(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stop": list(request.stop),
            "stream": True,
            "return_progress": True,  # calls back between the pieces of a prompt too
            **({"response_format": response_format} if response_format is not None else {}),
        }
        self._thread = threading.Thread(target=self._run, args=(server, body), name="llama-answer", daemon=True)
        self._thread.start()

    def _run(self, server: Any, body: dict[str, Any]) -> None:
        try:
            server.handle_chat_completions(body, self._take)
        except Exception as error:  # whatever the runtime raises; its text may hold the prompt
            known = error if is_out_of_memory(error) else EngineError("invalid", f"llama.cpp: {type(error).__name__}")
            self._chunks.put(known)
        self._chunks.put(_DONE)

    def _take(self, chunk: Any) -> bool:
        self._chunks.put(chunk)
        return self._cancelled.is_set()

    def __next__(self) -> Reply:
        while not self._ended:
            chunk = self._chunks.get()
            if chunk is _DONE:
                self._ended = True
            elif self._cancelled.is_set():
                continue
            elif isinstance(chunk, Exception):
                raise chunk
            elif "error" in chunk:
                raise _error(chunk["error"])
            elif reply := self._reply(chunk):
                return reply
        raise StopIteration

    def _reply(self, chunk: dict[str, Any]) -> Generated | None:
        for choice in chunk.get("choices", ()):
            text = choice["delta"].get("content")
            if text:
                return Generated(text)
            if choice.get("finish_reason"):
                times = chunk.get("timings", {})
                return Generated(
                    "",
                    model=self._model,
                    tokens_in=times.get("cache_n", 0) + times.get("prompt_n", 0),
                    tokens_out=times.get("predicted_n", 0),
                    compute_ms=times.get("prompt_ms", 0.0) + times.get("predicted_ms", 0.0),
                )
        return None

    def cancel(self) -> None:
        """Asks the runtime to stop; returns at once."""
        self._cancelled.set()

    def close(self) -> None:
        """Stops the answer and waits until the runtime has let go of it."""
        self.cancel()
        with contextlib.suppress(Exception):
            next(self)
        self._thread.join()


def _error(error: dict[str, Any]) -> EngineError:
    if error.get("type") == "exceed_context_size_error":
        found = f"{error.get('n_prompt_tokens')} tokens"
        return EngineError("invalid", f"expected a chat of less than {CONTEXT_TOKENS} tokens, found {found}")
    kind = f"llama.cpp: {error.get('type', 'error')} {error.get('code', '')}".strip()
    return EngineError("invalid" if 400 <= int(error.get("code", 500)) < 500 else "crashed", kind)
