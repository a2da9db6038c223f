"""Keeps the supervisor: `python -S -E guardian.py COMMAND...` is what `trunkline up` becomes.

It starts the command, passes signals on to it, and starts it again when something killed it. It imports nothing of
ours and waits, so that there is little in it that could fail. The command is bound to it by `launch.py`: who kills this
process kills the platform, and leaves nothing behind.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

VARIABLE = "TRUNKLINE_GUARDIAN"

_LAUNCHER = Path(__file__).with_name("launch.py")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SETTLED_S = 10.0
_BACKOFF_S_MAX = 10.0


class Guardian:
    """Runs one command until it ends by itself or is told to."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._told: int | None = None

    def run(self) -> int:
        """The command's exit status; it is started again as long as signals end it that were not sent to us."""
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)
        quick_deaths = 0
        while True:
            began_s = time.monotonic()
            code = self._run_once()
            if code >= 0 or self._told is not None:
                return code if code >= 0 else 128 - code
            quick_deaths = quick_deaths + 1 if time.monotonic() - began_s < _SETTLED_S else 0
            print(f"the supervisor was ended by {signal.Signals(-code).name} and is started again", flush=True)
            if quick_deaths:
                time.sleep(min(_BACKOFF_S_MAX, 0.25 * 2.0**quick_deaths))

    def _run_once(self) -> int:
        self._child = subprocess.Popen(
            [sys.executable, "-S", "-E", str(_LAUNCHER), str(os.getpid()), *self._command],
            env={**os.environ, VARIABLE: str(os.getpid())},
            process_group=0,  # a Ctrl-C at the terminal comes to us, and once to the command
        )
        if self._told is not None:
            self._child.send_signal(self._told)
        return self._child.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._told = number
        if self._child is not None:
            self._child.send_signal(number)


if __name__ == "__main__":
    sys.exit(Guardian(sys.argv[1:]).run())
