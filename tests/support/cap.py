"""A real ERP: SAP CAP, in a process of its own, from the project in tests/node/erp and the packages of `make test`."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.node import MODULES, PROGRAMS
from tests.support.process import OwnProcess

USER, PASSWORD = "trunkline", "for-tests-alone"
SECRETS = {"TRUNKLINE_SECRET_SAP_USER": USER, "TRUNKLINE_SECRET_SAP_PASSWORD": PASSWORD}
_SERVE = MODULES / "@sap" / "cds" / "bin" / "serve.js"


class Cap(OwnProcess):
    """The ERP on loopback; what it holds is lost when it ends."""

    def __init__(self, folder: Path) -> None:
        self._node = shutil.which("node")
        if self._node is None or not _SERVE.is_file():
            pytest.skip("no Node with the packages of tests/node: install Node and npm, then `make test`")
        self._project = folder / "erp"
        shutil.copytree(PROGRAMS / "erp", self._project)
        (self._project / "node_modules").symlink_to(MODULES)
        self._log = folder / "erp.log"
        self.url = ""

    def start(self) -> None:
        """Returns when it has answered; raises RuntimeError with its log when it ends instead.

        Its first answer takes long, and who looks a caller up does not wait for long.
        """
        assert self._node is not None, "it was looked for"
        command = [self._node, str(_SERVE), "all", "--in-memory"]
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                command, cwd=self._project, env={**os.environ, "PORT": "0"}, stdout=out, stderr=out
            )
        while not (found := re.search(r"url: 'http://localhost:(\d+)'", self._log.read_text())):
            if self._process.poll() is not None:
                raise RuntimeError(f"the ERP ended: {self._log.read_text()}")
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{found[1]}/odata/v4/service"
        self.rows("Customers")

    def rows(self, entity: str) -> list[dict[str, Any]]:
        """All rows of an entity, as its own users see them."""
        answer = httpx.get(f"{self.url}/{entity}", auth=(USER, PASSWORD), timeout=60)
        answer.raise_for_status()
        return list(answer.json()["value"])
