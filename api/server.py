"""`python -m api.server`: the gateway as a process."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType

import structlog
import uvicorn
import uvloop

from api.app import create_app
from api.auth import Authenticator
from api.beat import Beat, MediaProtocol
from api.door import SOCKETS_SPARE
from api.session_router import SessionRouter
from streams import logs, ready, standby
from streams.garbage import collect_seldom
from streams.settings import Settings
from streams.standby import LISTENER
from streams.yamlfile import ConfigError

log = structlog.get_logger(__name__)

REQUESTS_MAX = 200
MESSAGE_BYTES_MAX = 1024 * 1024
COMPONENT = "api"


class _Refusals(logging.Filter):
    """Uvicorn takes each socket that is refused for an app's mistake, and says so."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        return record.msg != "ASGI callable returned without completing handshake."


class GatewayServer(uvicorn.Server):
    """Tells when it is ready, and ends the calls before it closes their sockets."""

    def __init__(
        self, config: uvicorn.Config, settings: Settings, router: SessionRouter, authenticator: Authenticator
    ) -> None:
        super().__init__(config)
        self._settings = settings
        self._router = router
        self._authenticator = authenticator
        self._interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn; which signal it was decides what becomes of the calls."""
        self._interrupted = self._interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)

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
        self._authenticator.begin()
        await standby.turn()
        await super().startup(sockets)
        if self.should_exit or not self.servers:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        ready.announce(self._settings, COMPONENT, http_port=port, metrics_port=port, host=host)
        log.info("ready", host=host, port=port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Callers hear of it before uvicorn closes what is left, both with close code 1012.

        SIGINT is the end of the platform, and of its calls (`ended`). SIGTERM is a restart: calls go on at the next
        gateway, or another one (`going_away`).
        """
        ready.withdraw(self._settings, COMPONENT)
        for server in self.servers:
            server.close()  # those who connect from now on, the same callers above all, are the next gateway's
        if self._interrupted:
            await self._router.end_all("shutdown", 1012)
        else:
            await self._router.leave_all()
        await super().shutdown(sockets)


_REFUSALS = _Refusals()


def make_server(settings: Settings) -> GatewayServer:
    """The server of the settings; raises ConfigError."""
    app = create_app(settings)
    logging.getLogger("uvicorn.error").addFilter(_REFUSALS)
    config = uvicorn.Config(
        app,
        host=settings.api.host,
        port=settings.api.port,
        ws=functools.partial(MediaProtocol, Beat(settings.api.frame_ms)),  # type: ignore[arg-type]
        ws_max_size=MESSAGE_BYTES_MAX,
        # Speech does not compress, and deflate would cost more than all else here.
        ws_per_message_deflate=False,
        # A caller whose network is gone is noticed within 15 s, whatever TCP believes.
        ws_ping_interval=5,
        ws_ping_timeout=10,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        # Connections of any kind; callers without a call are refused by the door before that.
        limit_concurrency=2 * settings.api.sessions_max + SOCKETS_SPARE + REQUESTS_MAX,
        proxy_headers=False,
        server_header=False,
    )
    return GatewayServer(config, settings, app.state.router, app.state.authenticator)


def inherited_listener() -> socket.socket | None:
    """The listening socket that the supervisor holds for the gateways, so that nobody is refused between two."""
    number = os.environ.get(LISTENER)
    return None if number is None else socket.socket(fileno=int(number))


def main() -> int:
    """Serves until SIGTERM or SIGINT; 0 after an orderly stop, 78 where an agent's file is wrong."""
    settings = Settings()
    logs.configure(settings, COMPONENT)
    collect_seldom()
    try:
        server = make_server(settings)
    except ConfigError as error:
        print(f"api: {error}", file=sys.stderr)
        return os.EX_CONFIG
    listener = inherited_listener()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve([listener] if listener else None))
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
