"""A process's side of the socket that it inherits from its supervisor.

Over it the process shows that its event loop turns, and a spare waits for its turn. A spare is a process that has
imported and prepared everything and holds nothing that the process at work may need: no port, no group membership, no
lock. When the one at work dies, its spare goes on from there at once. The supervisor's end of the socket closes when
the supervisor dies, and a waiting spare ends then.

`python -m streams.standby MODULE ARGUMENT...` runs the module as a spare: its imports, which are most of the work, run
at a lower priority than the calls that go on meanwhile.
"""

import asyncio
import contextlib
import importlib
import os
import socket
import sys
import threading
from functools import cache

from streams.priority import READER_NICENESS

LIFELINE = "TRUNKLINE_LIFELINE_FD"
SPARE = "TRUNKLINE_SPARE"
LISTENER = "TRUNKLINE_LISTENER_FD"  # a socket that the supervisor listens on for the process
BEAT_S = 0.25
# What travels: from the process, that it lives and that it is prepared; from the supervisor, that it is its turn.
ALIVE, PREPARED, GO = b".", b"p", b"g"


def is_spare() -> bool:
    """Whether this process was started as a spare, be its turn past or to come."""
    return SPARE in os.environ


async def turn() -> None:
    """Returns at once in a process that is no spare, else when the supervisor says so; ends a spare without one."""
    line = _line()
    if line is None or not is_spare():
        return
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line, PREPARED)
    if await loop.sock_recv(line, 1) != GO:
        os._exit(0)


def show_life() -> None:
    """From now on shows the supervisor, where there is one, that the running event loop turns."""
    line = _line()
    if line is None:
        return
    loop = asyncio.get_running_loop()

    def beat() -> None:
        # A supervisor that does not read for a while has enough beats in the socket's buffer.
        with contextlib.suppress(OSError):
            line.send(ALIVE)
        loop.call_later(BEAT_S, beat)

    beat()


@cache
def _line() -> socket.socket | None:
    number = os.environ.get(LIFELINE)
    if number is None:
        return None
    line = socket.socket(fileno=int(number))
    line.setblocking(False)
    line.set_inheritable(False)
    return line


def _import_quietly(module: str) -> None:
    """On Linux each thread has a priority of its own; without privileges a process could not raise its own again."""
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), READER_NICENESS)
    importlib.import_module(module)


def main() -> int:
    """The module's own exit status."""
    module, sys.argv = sys.argv[1], sys.argv[1:]
    importing = threading.Thread(target=_import_quietly, args=(module,), name="imports")
    importing.start()
    importing.join()
    return int(importlib.import_module(module).main())


if __name__ == "__main__":
    sys.exit(main())
