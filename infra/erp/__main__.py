"""`python -m infra.erp --port 8090 --data erp.sqlite`: serves until SIGTERM; prints its address when it listens."""

import argparse
import socket
from pathlib import Path

import uvicorn

from infra.erp.app import create_app
from infra.erp.store import Store


def main() -> None:
    """Runs the server."""
    parser = argparse.ArgumentParser(prog="python -m infra.erp", description="A small ERP for the demo agent.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090, help="0: any free port")
    parser.add_argument("--data", type=Path, default=Path("erp.sqlite"), help="SQLite file with returns and tickets")
    options = parser.parse_args()
    app = create_app(Store(options.data))
    listener = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(128)
    except OSError as error:
        parser.exit(1, f"cannot listen on {options.host}:{options.port}: {error.strerror}\n")
    print(f"http://{options.host}:{listener.getsockname()[1]}", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3))
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
