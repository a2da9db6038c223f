"""Starts a command that cannot outlive the process that started it, however that one ends.

`python -S -E launch.py [--watch FD] PARENT_PID COMMAND...`: run by its path, so that it needs no import of ours and
costs some 15 ms. On Linux the kernel kills the command when its parent dies. Elsewhere, or with `--watch`, a small
watcher process waits for the other end of the pipe FD to close, and kills the command then. Either way the command
keeps this process's id.
"""

import ctypes
import os
import select
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> NoReturn:
    """Binds this process to its parent's life and becomes the command; exits with 127 when it cannot be run."""
    watched = None
    if arguments[:1] == ["--watch"]:
        watched, arguments = int(arguments[1]), arguments[2:]
    parent, command = int(arguments[0]), arguments[1:]
    if watched is not None:
        _watch(watched)
    else:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the binding held
        sys.exit(0)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


def _watch(lifeline: int) -> None:
    """Forks the watcher; returns in the process that becomes the command, without the pipe."""
    command = os.getpid()
    if os.fork():
        os.close(lifeline)
        return
    os.setsid()  # a Ctrl-C at the terminal is for the others
    while os.getppid() == command:
        if select.select([lifeline], [], [], 1.0)[0]:
            os.kill(command, signal.SIGKILL)
            break
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
