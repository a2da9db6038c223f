"""A process of the platform's that a test starts, kills and stops."""

import subprocess


class OwnProcess:
    """What ends it, whatever it is; `_process` is None while it is not running. It may take `patience_s` to stop."""

    patience_s = 60.0
    _process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """Ends it at once (SIGKILL), as a crash would; does nothing when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """Stops it in order and returns its exit code."""
        assert self._process is not None, "the process is not running"
        self._process.terminate()
        code = self._process.wait(self.patience_s)
        self._process = None
        return code
