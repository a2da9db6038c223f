"""A webhook's receiver as a subscriber has it, and the relay as a process, for tests that kill either."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import standardwebhooks
import svix.webhooks

from streams import ready
from streams.settings import REPOSITORY, Settings
from tests.support.process import OwnProcess

PATIENCE_S = 180.0
LOOPBACK = '["127.0.0.0/8"]'


@dataclass(frozen=True, slots=True)
class Delivered:
    """A delivery whose signature was found good by both libraries."""

    message_id: str
    attempt_at: str
    type: str
    data: dict[str, Any]

    @property
    def session_id(self) -> str:
        """The call that it tells of."""
        return str(self.data["event"]["session_id"])

    @property
    def place(self) -> tuple[str, int, int]:
        """Where it lies in the log."""
        return self.data["topic"], self.data["partition"], self.data["offset"]


def accept(number: int) -> int:
    """Answers every request with 204."""
    return 204


class Receiver:
    """An HTTP server on loopback; `answer(number)` gives the status of its n-th request, after `delay_s`."""

    def __init__(self, answer: Callable[[int], int] = accept, delay_s: float = 0.0, **headers: str) -> None:
        self.answer = answer
        self.delay_s = delay_s
        self.headers = headers
        self.secret = ""
        self.requests: list[dict[str, str]] = []
        self.delivered: list[Delivered] = []
        self.refused: list[str] = []
        self._lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it listens, or did before it was stopped."""
        return f"http://127.0.0.1:{self._port}/hook?a=b"

    def start(self) -> None:
        """Listens, on the port that it had."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(size := int(self.headers["content-length"]))
                if len(body) < size:
                    self.close_connection = True  # who sent it was killed meanwhile
                    return
                receiver._took(self, {name.lower(): value for name, value in self.headers.items()}, body)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A relay that is killed leaves broken connections."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Listens no more: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _took(self, handler: BaseHTTPRequestHandler, headers: dict[str, str], body: bytes) -> None:
        with self._lock:
            number = len(self.requests)
            self.requests.append(headers)
        time.sleep(self.delay_s)
        status = self.answer(number)
        if 200 <= status < 300:
            self._verify(headers, body)
        handler.send_response(status)
        for name, value in self.headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", "0")
        handler.end_headers()

    def _verify(self, headers: dict[str, str], body: bytes) -> None:
        try:
            told = standardwebhooks.Webhook(self.secret).verify(body, headers)
            assert told == json.loads(body)
            svix.webhooks.Webhook(self.secret).verify(body, headers)
        except Exception as error:
            self.refused.append(f"{type(error).__name__}: {error}")
            return
        delivered = Delivered(headers["webhook-id"], headers["webhook-timestamp"], told["type"], told["data"])
        with self._lock:
            self.delivered.append(delivered)


class RelayProcess(OwnProcess):
    """A relay with the data directory given, on a broker of the tests."""

    patience_s = PATIENCE_S

    def __init__(self, data_dir: Path, bootstrap_servers: str, **environment: str) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._environment = {
            **os.environ,
            "TRUNKLINE_DATA_DIR": str(data_dir),
            "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            "TRUNKLINE_WEBHOOKS__PRIVATE_NETWORKS": LOOPBACK,
            **environment,
        }
        self.settings = Settings(data_dir=data_dir)
        self.log = data_dir / "relay.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is ready; raises RuntimeError with its log when it ends instead."""
        with self.log.open("ab") as out:
            command = [sys.executable, "-m", "processors.webhooks.relay"]
            self._process = subprocess.Popen(command, cwd=REPOSITORY, env=self._environment, stdout=out, stderr=out)
        while True:
            facts = ready.read(self.settings, "webhooks")
            if facts is not None and facts["pid"] == self._process.pid:
                return
            if self._process.poll() is not None:
                raise RuntimeError(f"the relay ended: {self.log.read_text()}")
            time.sleep(0.05)

    @property
    def metrics_port(self) -> int:
        """Where it answers Prometheus."""
        facts = ready.read(self.settings, "webhooks")
        assert facts is not None, "the relay is not ready"
        return int(facts["metrics_port"])
