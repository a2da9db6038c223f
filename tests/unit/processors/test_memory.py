"""Which exceptions mean that a model found no memory, and how a request is made smaller for it."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.engine import Capabilities, Embed, Embedded, EngineError, Reply, Request
from processors.memory import answered_in_parts, is_out_of_memory


class OutOfMemoryError(RuntimeError):
    """Called as PyTorch's is, which is not installed here."""


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA failed with error out of memory"), True),
        (RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("expected a voice, found 'out of memory'"), False),
        (EngineError("invalid", "no text"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error: Exception, lacks: bool) -> None:
    assert is_out_of_memory(error) is lacks


def test_what_wraps_a_lack_of_memory_is_one() -> None:
    wrapped = RuntimeError("the model failed")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)
    endless = RuntimeError("the model failed")
    endless.__cause__ = endless
    assert not is_out_of_memory(endless)


class Narrow:
    """Has memory for so many texts at a time."""

    capabilities = Capabilities("embeddings", "narrow")

    def __init__(self, texts_max: int) -> None:
        self.texts_max = texts_max

    def warm(self) -> None:
        """Nothing to load."""

    def answer(self, request: Request) -> Iterator[Reply]:
        assert isinstance(request, Embed)
        if len(request.texts) > self.texts_max:
            raise MemoryError
        rows = np.array([[float(text)] for text in request.texts], "<f4")
        yield Embedded(rows.tobytes(), 1, "narrow", 2.0)


@given(st.integers(1, 40), st.integers(1, 12))
def test_the_vectors_are_those_of_the_texts_in_their_order(count: int, texts_max: int) -> None:
    texts = tuple(str(number) for number in range(count))
    (reply,) = answered_in_parts(Narrow(texts_max), Embed(texts))
    assert isinstance(reply, Embedded)
    assert np.frombuffer(reply.vectors, "<f4").tolist() == [float(text) for text in texts]


def test_one_text_for_which_there_is_no_memory_is_given_up() -> None:
    with pytest.raises(MemoryError):
        list(answered_in_parts(Narrow(0), Embed(("1", "2", "3"))))
