"""Questions that nobody has time for are refused, not kept."""

import asyncio
from typing import Any

import httpx
import pytest

from processors.clickhouse.http import QUESTIONS_MAX, Questions, create_app, shape_of
from streams.settings import Settings

SESSION = "0b5e7c1a-3d51-4b7e-9d1c-5f0a4a8c2e11"


async def test_too_many_questions_are_refused_and_room_is_found_again() -> None:
    # Without a connection every question waits.
    app = create_app(Questions(Settings(), unnoted, concurrency=0))
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


async def unnoted(*_: Any, **__: Any) -> None:
    """Nothing is asked so far that it would have to be written down."""


@pytest.mark.parametrize(
    ("query", "shape"),
    [
        ("SELECT 1 + 42", "SELECT 1 + 42"),
        ("SELECT caller FROM calls WHERE caller = '+43 660 1234'", "SELECT caller FROM calls WHERE caller = '?'"),
        ("SELECT * FROM calls WHERE caller IN (436601234, 7)", "SELECT * FROM calls WHERE caller IN (?, 7)"),
        (f"SELECT 1 WHERE session_id = '{SESSION}'", f"SELECT 1 WHERE session_id = '{SESSION}'"),
        ("SELECT `a 12345`, 'it\\'s', 'a''b'", "SELECT `a 12345`, '?', '?'"),
    ],
)
def test_a_question_is_written_down_without_what_may_name_persons(query: str, shape: str) -> None:
    assert shape_of(query) == shape


async def first(http: httpx.AsyncClient) -> httpx.Response | None:
    """The answer to one more question; None where it waits, since those before have not all arrived."""
    asking = asyncio.create_task(http.get("/", params={"query": "SELECT 1"}))
    done, _ = await asyncio.wait({asking}, timeout=0.1)
    if done:
        return asking.result()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return None
