"""The ERP's HTTP interface."""

from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from infra.erp.store import Answer, Store

Key = Annotated[str, Header(alias="Idempotency-Key", max_length=200)]


class NewTicket(BaseModel):
    """A problem that a person has to look at."""

    problem: str = Field(min_length=1, max_length=2000)
    order_number: str = Field("", max_length=20)
    caller: str = Field("", max_length=200)


class NewReturn(BaseModel):
    """An order that comes back."""

    order_number: str = Field(min_length=1, max_length=20)


def create_app(store: Store) -> FastAPI:
    """The application over a store. POST with a known `Idempotency-Key` repeats the first answer, without effect."""
    app = FastAPI(title="Demo ERP", description="Orders, stock, returns and tickets of an outdoor-equipment shop.")

    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/orders")
    def orders() -> list[dict[str, Any]]:
        return store.orders()

    @app.get("/orders/{number}")
    def order(number: str) -> dict[str, Any]:
        return _found(store.order(number), "there is no such order")

    @app.get("/stock")
    def stock() -> list[dict[str, Any]]:
        return store.stock()

    @app.get("/stock/{product}")
    def product(product: str) -> dict[str, Any]:
        return _found(store.product(product), "there is no such product")

    @app.get("/tickets")
    def tickets() -> list[dict[str, Any]]:
        return store.rows("tickets")

    @app.post("/tickets", status_code=201)
    def open_ticket(ticket: NewTicket, key: Key = "") -> JSONResponse:
        return _answer(store.open_ticket(key, ticket.problem, ticket.order_number, ticket.caller))

    @app.get("/returns")
    def returns() -> list[dict[str, Any]]:
        return store.rows("returns")

    @app.post("/returns", status_code=201)
    def start_return(request: NewReturn, key: Key = "") -> JSONResponse:
        return _answer(store.start_return(key, request.order_number))

    return app


def _found(record: dict[str, Any] | None, missing: str) -> dict[str, Any]:
    if record is None:
        raise HTTPException(404, missing)
    return record


def _answer(answer: Answer) -> JSONResponse:
    status, body = answer
    return JSONResponse(body, status_code=status)
