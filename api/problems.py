"""HTTP errors as clients get them: `{"code", "message", "hint"}`, whatever raised them."""

from typing import Any, Self

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from api.visit import visit_of
from processors.access.refusals import Refusals
from schemas.events import RefusalKind
from streams.client import LogError


class ProblemError(Exception):
    """Raise it in a route: the client gets the status and the three texts."""

    refused: tuple[RefusalKind, str] | None = None

    def __init__(
        self, status: int, code: str, message: str, hint: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, "hint": hint}
        self.headers = headers

    def as_refusal(self, kind: RefusalKind, reason: str) -> Self:
        """The same, to be recorded as a refusal, too; who asked does not learn of it."""
        self.refused = kind, reason
        return self


def unknown_tenant() -> ProblemError:
    """For a tenant that is not the asker's, be it there or not."""
    problem = ProblemError(404, "unknown_tenant", "There is no such tenant.", "tenant: leave it out, to name your own.")
    return problem.as_refusal(RefusalKind.FOREIGN, "tenant")


_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_big"}


def install(app: FastAPI, refusals: Refusals) -> None:
    """Makes the app answer all errors in this form, and record those that are refusals."""

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> JSONResponse:
        if error.refused is not None:
            visit = visit_of(request)
            refusals.tell(*error.refused, visit.principal, visit.action, visit.target)
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        body = {"code": _CODES.get(error.status_code, "http_error"), "message": str(error.detail), "hint": "See /docs."}
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(_field_problem(error.errors()), 422)

    @app.exception_handler(LogError)
    async def _log(request: Request, error: LogError) -> JSONResponse:
        body = {"code": "log_unavailable", "message": "The log cannot be reached.", "hint": "Is Kafka running?"}
        return JSONResponse(body, 503, {"Retry-After": "2"})


def _field_problem(errors: Any) -> dict[str, str]:
    first = errors[0]
    if first["type"] == "json_invalid":
        return {"code": "invalid_json", "message": "The body is no JSON.", "hint": f"{first['ctx']['error']}."}
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return {
        "code": "invalid_field",
        "message": f"The field {where} is not usable.",
        "hint": f"{where}: {first['msg']}.",
    }
