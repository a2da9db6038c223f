"""`python -m api.server`: the gateway as a process."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator

import structlog
import uvicorn
import uvloop

from api.app import create_app
from api.auth import ExposedError, require_key_if_exposed
from api.session_router import SessionRouter
from streams import logs, ready, standby
from streams.settings import Settings
from streams.standby import LISTENER
from streams.yamlfile import ConfigError

log = structlog.get_logger(__name__)

MESSAGE_BYTES_MAX = 1024 * 1024
COMPONENT = "api"


class GatewayServer(uvicorn.Server):
    """Tells when it is ready, and ends the calls before it closes their sockets."""

    def __init__(self, config: uvicorn.Config, settings: Settings, router: SessionRouter) -> None:
        super().__init__(config)
        self._settings = settings
        self._router = router

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again at the end: an orderly stop is a success."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn; a spare waits for its turn before it, and afterwards the process is announced."""
        standby.show_life()
        await standby.turn()
        await super().startup(sockets)
        if self.should_exit or not self.servers:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        ready.announce(self._settings, COMPONENT, http_port=port, metrics_port=port, host=host)
        log.info("ready", host=host, port=port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Callers hear of it (`ended`, close code 1012) before uvicorn closes what is left."""
        ready.withdraw(self._settings, COMPONENT)
        await self._router.end_all("shutdown", 1012)
        await super().shutdown(sockets)


def make_server(settings: Settings) -> GatewayServer:
    """The server of the settings; raises ExposedError, ConfigError."""
    require_key_if_exposed(settings)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.api.host,
        port=settings.api.port,
        ws="websockets-sansio",
        ws_max_size=MESSAGE_BYTES_MAX,
        # Speech does not compress, and deflate would cost more than all else here.
        ws_per_message_deflate=False,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        proxy_headers=False,
        server_header=False,
    )
    return GatewayServer(config, settings, app.state.router)


def inherited_listener() -> socket.socket | None:
    """The listening socket that the supervisor holds for the gateways, so that nobody is refused between two."""
    number = os.environ.get(LISTENER)
    return None if number is None else socket.socket(fileno=int(number))


def main() -> int:
    """Serves until SIGTERM or SIGINT; 0 after an orderly stop."""
    settings = Settings()
    logs.configure(settings, COMPONENT)
    try:
        server = make_server(settings)
    except (ExposedError, ConfigError) as error:
        print(f"api: {error}", file=sys.stderr)
        return 2
    listener = inherited_listener()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve([listener] if listener else None))
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
