"""Engines that are started once for all tests of a run, since that takes minutes."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.vllm_server import VllmServer

KEY = "a-key-of-the-test"


@pytest.fixture(scope="session")
def vllm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(tmp_path_factory.mktemp("vllm"), KEY)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
async def vllm(vllm_process: VllmServer) -> AsyncIterator[VllmServer]:
    """A server that is up and has nothing to do; started again where the test before killed it."""
    await asyncio.to_thread(vllm_process.ensure)
    yield vllm_process
    vllm_process.go_on()
