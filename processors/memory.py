"""Memory of models: how its lack is recognised, what is given back then, and how much a process has.

The libraries that an engine runs on are not imported here: what of them is loaded is asked.
"""

import contextlib
import gc
import re
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from processors.engine import Embed, Embedded, Engine, Reply, Request

OUT_OF_MEMORY = "out_of_memory"  # as the reason of an EngineError: less at once may still be answered

# What PyTorch, CTranslate2, cuBLAS, ONNX Runtime and ggml say, in this order. All but PyTorch on CUDA raise the
# exception that they raise for anything.
_SAID = re.compile(
    r"CUDA out of memory|can't allocate memory"
    r"|CUDA failed with error out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|cudaErrorMemoryAllocation|Failed to allocate memory|bad_alloc|cudaMalloc failed: out of memory"
)
_CAUSES_MAX = 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a model's runtime, or Python, had no memory left, on the device or beside it."""
    cause: BaseException | None = error
    for _ in range(_CAUSES_MAX):
        if cause is None:
            return False
        # PyTorch's class by its name: it has been called by two, and PyTorch need not be there.
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or _SAID.search(str(cause)):
            return True
        cause = cause.__cause__
    return False


def give_back() -> None:
    """Frees what nobody uses and, where the library has a call for it, what it keeps for later."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    with contextlib.suppress(AttributeError, RuntimeError):  # a torch without CUDA, or a device that is gone
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def answered_in_parts(engine: Engine, request: Request) -> Iterator[Reply]:
    """The engine's answer, where memory does not suffice for all at once.

    Of a request with several texts each half is asked for by itself, and halved again for as long as memory lacks.
    """
    if isinstance(request, Embed) and request.texts:
        return _in_parts(engine, request.texts)
    return engine.answer(request)


def _in_parts(engine: Engine, texts: tuple[str, ...]) -> Iterator[Reply]:
    left, found = [part for part in _halves(texts) if part], list[Embedded]()
    while left:
        part = left.pop(0)
        try:
            found += [reply for reply in engine.answer(Embed(part)) if isinstance(reply, Embedded)]
        except Exception as error:
            if len(part) < 2 or not is_out_of_memory(error):
                raise
            left[:0] = _halves(part)
        else:
            continue
        give_back()  # out of the handler, since the error's traceback holds what the attempt had
    vectors, compute_ms = b"".join(one.vectors for one in found), sum(one.compute_ms for one in found)
    yield msgspec.structs.replace(found[0], vectors=vectors, compute_ms=compute_ms)


def _halves(texts: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    middle = len(texts) // 2
    return texts[:middle], texts[middle:]
