"""A request that the gate let in, as routes see it."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection
from starlette.types import Scope

from processors.access.roles import Principal

_NAME = "trunkline.visit"


@dataclass(frozen=True, slots=True)
class Visit:
    """Who asks, and for what: a method and a route, and the id in its path."""

    principal: Principal
    action: str
    target: str

    def begin(self, scope: Scope) -> None:
        """From now on it is that of the request."""
        scope[_NAME] = self


def visit_of(connection: HTTPConnection) -> Visit:
    """That of a request or socket that has passed the gate."""
    visit: Visit = connection.scope[_NAME]
    return visit


def _principal_of(connection: HTTPConnection) -> Principal:
    return visit_of(connection).principal


Asker = Annotated[Principal, Depends(_principal_of)]
