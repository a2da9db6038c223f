"""The gateway as an ASGI app."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from fastapi import FastAPI
from starlette.websockets import WebSocket

from api import keys, privacy, problems, registry, rest, twilio, webhooks
from api.assist import Followers
from api.auth import Authenticator
from api.connection import Connection
from api.dialects.native import NativeDialect
from api.gate import Gate
from api.metrics import Metrics
from api.session_router import SessionRouter
from api.visit import visit_of
from api.waiting import adopt
from api.witness import Witness
from processors.agents import Agent, load_agents
from streams.clock import Clock
from streams.settings import Settings


def create_app(settings: Settings, agents: Mapping[str, Agent] | None = None, clock: Clock | None = None) -> FastAPI:
    """The whole gateway; its lifespan opens and closes the log. `app.state.router` holds the live calls,
    `app.state.authenticator` knows who may come in.

    Raises ConfigError where an agent's file has a mistake.
    """
    router = SessionRouter(settings, agents or load_agents(settings.agents_dir), Metrics(), clock)
    authenticator = Authenticator(settings, router.clock)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        authenticator.begin()
        try:
            await router.start()
            await authenticator.open()
        except BaseException:
            await authenticator.close()
            raise
        adopting = asyncio.create_task(adopt(router))
        try:
            yield
        finally:
            adopting.cancel()
            await authenticator.close()
            await router.stop()

    app = FastAPI(title="Trunkline", description="Self-hosted voice AI: the call is the log.", lifespan=lifespan)
    app.state.router = router
    app.state.authenticator = authenticator
    problems.install(app, router.refusals)
    for routes in (
        rest.sessions_routes(router),
        privacy.routes(router),
        rest.health_routes(router),
        webhooks.routes(router),
        keys.routes(router),
        twilio.routes(router, authenticator),
        registry.routes(),
    ):
        app.include_router(routes)

    @app.websocket("/v1/calls")
    async def calls(websocket: WebSocket) -> None:
        await Connection(websocket, NativeDialect(), router, visit_of(websocket)).run()

    followers = Followers(router)

    @app.websocket("/v1/assist/{session_id}")
    async def assist(websocket: WebSocket, session_id: str) -> None:
        await followers.serve(websocket, session_id, visit_of(websocket))

    app.add_middleware(Witness, router=router)
    app.add_middleware(
        Gate, settings=settings, authenticator=authenticator, refusals=router.refusals, clock=router.clock
    )
    return app
