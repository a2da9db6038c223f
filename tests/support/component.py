"""A process of the platform as the supervisor starts it, for tests that kill it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from streams import ready
from streams.settings import REPOSITORY, Settings
from tests.support.process import OwnProcess


class Component(OwnProcess):
    """`python -m MODULE ARGUMENT...`, which announces itself under `name`."""

    patience_s = 180.0

    def __init__(
        self, name: str, module: str, *arguments: str, data_dir: Path, bootstrap_servers: str, **environment: str
    ) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._name = name
        self._command = [sys.executable, "-m", module, *arguments]
        self._environment = {
            **os.environ,
            "TRUNKLINE_DATA_DIR": str(data_dir),
            "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            **environment,
        }
        self._settings = Settings(data_dir=data_dir)
        self.log = data_dir / f"{name}.log"

    def start(self) -> None:
        """Returns when it is ready; raises RuntimeError with its log when it ends instead."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, cwd=REPOSITORY, env=self._environment, stdout=out, stderr=out
            )
        while True:
            facts = ready.read(self._settings, self._name)
            if facts is not None and facts["pid"] == self._process.pid:
                return
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._name} ended: {self.log.read_text()}")
            time.sleep(0.05)
