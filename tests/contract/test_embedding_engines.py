"""One suite for every embedding model, on the real files."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from processors.engine import Embed, Embedded, EngineError, Speak
from processors.engine_client import SocketEngine
from processors.intent.engine import ENGINES, create
from tests.support.engines import HostProcess, replies, running_host, settings_in

ORDER = ("Where is my order?", "When does my parcel arrive?", "Has my package been sent yet?")
HOURS = ("When do you open?", "Are you open on Sunday?", "What are your opening hours?")


@pytest.fixture(scope="module", params=sorted(ENGINES))
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    settings = settings_in(tmp_path_factory.mktemp("embeddings"), embeddings=request.param)
    with running_host(settings, "embeddings") as host:
        yield host


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[SocketEngine]:
    client = SocketEngine(host.settings, "embeddings")
    yield client
    await client.close()


async def vectors(client: SocketEngine, *texts: str) -> npt.NDArray[np.float32]:
    (reply,) = await replies(client, Embed(texts))
    assert isinstance(reply, Embedded)
    assert reply.model
    return np.frombuffer(reply.vectors, "<f4").reshape(len(texts), reply.dimensions)


async def test_vectors_have_length_one(client: SocketEngine) -> None:
    found = await vectors(client, *ORDER, *HOURS, "", "x", "🙂")
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


async def test_sentences_that_mean_the_same_are_closer(client: SocketEngine) -> None:
    found = await vectors(client, *ORDER, *HOURS)
    likeness = found @ found.T
    same = [likeness[i, j] for group in (range(3), range(3, 6)) for i in group for j in group if i < j]
    different = likeness[:3, 3:]
    assert np.mean(same) > np.mean(different) + 0.2


async def test_company_does_not_change_a_vector(client: SocketEngine) -> None:
    """Padding is masked: a phrase alone and the same phrase among longer ones are one point."""
    alone = await vectors(client, ORDER[0])
    together = await vectors(client, ORDER[0], "a much longer sentence about tents, " * 5, "x")
    assert np.allclose(alone, together[:1], atol=1e-4)


async def test_no_texts_give_no_vectors(client: SocketEngine) -> None:
    assert (await vectors(client)).shape[0] == 0


async def test_many_and_long_texts_are_taken(client: SocketEngine) -> None:
    found = await vectors(client, *(f"sentence number {index}" for index in range(100)), "word " * 20_000)
    assert len(found) == 101
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


async def test_the_same_text_has_the_same_vector_whoever_else_asks(client: SocketEngine) -> None:
    alone = [await vectors(client, text) for text in ORDER]
    together = await asyncio.gather(*(vectors(client, text) for text in ORDER))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


async def test_other_requests_are_refused_by_name(client: SocketEngine) -> None:
    with pytest.raises(EngineError, match="invalid: expected Embed, found Speak"):
        await replies(client, Speak("Hi"))


def test_an_unknown_engine_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="TRUNKLINE_ENGINES__EMBEDDINGS: expected minilm, found 'nothing'"):
        create(settings_in(tmp_path, embeddings="nothing"))
