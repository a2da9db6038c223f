"""The first call of a tool finds everything loaded."""

import subprocess
import sys

_PROGRAM = """
import asyncio, sys
from processors.engine import CallTool
from processors.llm import tools

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")
    writer.close()

async def main():
    if "warm" in sys.argv:
        await tools.warm()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    caller = tools.HttpTools()
    before = set(sys.modules)
    async for reply in caller.ask(CallTool("GET", f"http://127.0.0.1:{port}/", {}, b"", ""), 5.0):
        assert reply.status == 200
    print(len(set(sys.modules) - before))
    await caller.close()

asyncio.run(main())
"""


def loaded_by_the_first_call(*arguments: str) -> int:
    """How many modules."""
    ran = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return int(ran.stdout)


def test_the_first_call_loads_nothing_once_the_worker_is_warm() -> None:
    assert loaded_by_the_first_call() > 10, "else there is nothing to warm"
    assert loaded_by_the_first_call("warm") == 0
