"""Questions that nobody has time for are refused, not kept."""

import asyncio

import httpx

from processors.clickhouse.http import QUESTIONS_MAX, Questions, create_app
from streams.settings import Settings


async def test_too_many_questions_are_refused_and_room_is_found_again() -> None:
    # Without a connection every question waits.
    app = create_app(Questions(Settings(), concurrency=0))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://clickhouse") as http:
        asked = [asyncio.create_task(http.get("/", params={"query": "SELECT 1"})) for _ in range(QUESTIONS_MAX)]
        async with asyncio.timeout(20):
            while (answer := await first(http)) is None:
                pass
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        waiting = asyncio.create_task(http.get("/", params={"query": "SELECT 1"}))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done  # it waits like the first ones did
        waiting.cancel()


async def first(http: httpx.AsyncClient) -> httpx.Response | None:
    """The answer to one more question; None where it waits, since those before have not all arrived."""
    asking = asyncio.create_task(http.get("/", params={"query": "SELECT 1"}))
    done, _ = await asyncio.wait({asking}, timeout=0.1)
    if done:
        return asking.result()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return None
