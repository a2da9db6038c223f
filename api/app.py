"""The gateway as an ASGI app."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.websockets import WebSocket

from api import problems, registry, rest, twilio, webhooks
from api.auth import KeyMiddleware, key_of
from api.connection import Connection
from api.dialects.native import NativeDialect
from api.metrics import Metrics
from api.session_router import SessionRouter
from api.waiting import adopt
from processors.agents import Agent, load_agents
from streams.clock import Clock
from streams.settings import Settings


def create_app(settings: Settings, agents: Mapping[str, Agent] | None = None, clock: Clock | None = None) -> FastAPI:
    """The whole gateway; its lifespan opens and closes the log. `app.state.router` holds the live calls.

    Raises ConfigError where an agent's file has a mistake.
    """
    router = SessionRouter(settings, agents or load_agents(settings.agents_dir), Metrics(), clock)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await router.start()
        adopting = asyncio.create_task(adopt(router))
        try:
            yield
        finally:
            adopting.cancel()
            await router.stop()

    app = FastAPI(title="Trunkline", description="Self-hosted voice AI: the call is the log.", lifespan=lifespan)
    app.state.router = router
    problems.install(app)
    for routes in (
        rest.sessions_routes(router),
        rest.health_routes(router),
        webhooks.routes(router),
        twilio.routes(router),
        registry.routes(),
    ):
        app.include_router(routes)

    @app.websocket("/v1/calls")
    async def calls(websocket: WebSocket) -> None:
        await Connection(websocket, NativeDialect(), router).run()

    if key := key_of(settings):
        app.add_middleware(KeyMiddleware, key=key)
    return app
