"""The read part of the Confluent Schema Registry's REST interface, so that its clients read every topic.

`url=http://host:port/registry` for any of them; the answers come from `streams.registry.respond`.
"""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from streams.registry import MEDIA_TYPE, respond

PREFIX = "/registry"
BODY_BYTES_MAX = 1024 * 1024


def routes() -> APIRouter:
    """Everything below /registry."""
    api = APIRouter(prefix=PREFIX, tags=["schema registry"])

    @api.get("/{path:path}")
    @api.post("/{path:path}")
    async def read(path: str, request: Request) -> JSONResponse:
        """`schemas/ids/{id}`, `subjects`, `subjects/{subject}/versions/{version}` and the rest of it, read only."""
        raw = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0] or request.url.path
        body = await request.body()
        if len(body) > BODY_BYTES_MAX:
            return JSONResponse({"error_code": 413, "message": f"at most {BODY_BYTES_MAX} bytes"}, 413)
        reply = respond(request.method, raw.removeprefix(PREFIX), dict(request.query_params), body)
        return JSONResponse(reply.body, reply.status, media_type=MEDIA_TYPE)

    return api
