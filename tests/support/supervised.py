"""A process for a supervisor's tests: `python -m tests.support.supervised RUN_DIR NAME`.

It says when it was ready and ended in RUN_DIR/diary. A file RUN_DIR/NAME.hang makes its event loop stand,
NAME.unprepared keeps it from being prepared, and NAME.exit makes it exit with the status in it. With a listener from
its supervisor it answers each connection with its process id.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from streams import standby


async def work(run: Path, name: str) -> None:
    """Works until SIGTERM or SIGINT."""
    standby.show_life()
    if (run / f"{name}.unprepared").exists():
        print(f"{name} cannot be prepared", flush=True)
        sys.exit(1)
    await standby.turn()
    leave_if_told(run, name)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, run, name, number, stopping)
    descriptor = os.environ.get(standby.LISTENER)
    server = await asyncio.start_server(answer, sock=socket.socket(fileno=int(descriptor))) if descriptor else None
    announcement = run / f"{name}.json"
    fresh = announcement.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"pid": os.getpid()}))
    fresh.replace(announcement)
    note(run, name, "ready")
    while not stopping.is_set():
        if (run / f"{name}.hang").exists():
            (run / f"{name}.hang").unlink()
            time.sleep(600)  # noqa: ASYNC251 - that is the fault
        await asyncio.sleep(0.02)
    if server is not None:
        server.close()
        await asyncio.sleep(0.1)  # for those it has accepted
    note(run, name, "ended")


def told(run: Path, name: str, number: signal.Signals, stopping: asyncio.Event) -> None:
    """Notes which signal came."""
    note(run, name, number.name)
    stopping.set()


def leave_if_told(run: Path, name: str) -> None:
    """Exits where a test wants it."""
    status = run / f"{name}.exit"
    if status.exists():
        print(f"{name} will not work", flush=True)
        sys.exit(int(status.read_text()))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says which process answers."""
    writer.write(str(os.getpid()).encode())
    await writer.drain()
    writer.close()


def note(run: Path, name: str, what: str) -> None:
    """One line of the diary, which all processes share."""
    with (run / "diary").open("a") as diary:
        diary.write(f"{name} {os.getpid()} {what}\n")


def main() -> int:
    """See the module."""
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
