"""Who an adapter says it is: the headers of its requests, got anew when they are no longer taken."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx

from processors.adapters.adapter import Adapter, Basic, Bearer, ClientCredentials, Csrf, Login
from processors.adapters.answer import Answer
from processors.adapters.shape import as_base64
from processors.engine import EngineError
from streams.clock import Clock

# A token is not used in its last moments: it would expire on the way.
_SPARE_S = 30.0
_EXPIRES_S = 3600.0

Send = Callable[[httpx.Request], Awaitable[Answer]]


class Authority:
    """The credentials of one adapter; `send` is for what has to be asked for first."""

    def __init__(self, adapter: Adapter, secrets: Mapping[str, str], clock: Clock, send: Send) -> None:
        self._adapter = adapter
        self._values = {"secrets": secrets}
        self._clock = clock
        self._send = send
        self._turn = asyncio.Lock()
        self._kept: dict[str, str] | None = None
        self._until_s = 0.0
        self._csrf: dict[str, str] | None = None

    async def headers(self, writes: bool) -> dict[str, str]:
        """What goes with a request; raises EngineError where the system does not let us in, RenderError."""
        headers = await self._identity()
        if writes and self._adapter.csrf is not None:
            async with self._turn:
                self._csrf = self._csrf or await self._csrf_token(self._adapter.csrf, headers)
                return headers | self._csrf
        return headers

    async def _identity(self) -> dict[str, str]:
        match self._adapter.auth:
            case Basic(username=username, password=password):
                pair = f"{username.render(self._values)}:{password.render(self._values)}"
                return {"Authorization": f"Basic {as_base64(pair)}"}
            case Bearer(token=token):
                return {"Authorization": f"Bearer {token.render(self._values)}"}
            case ClientCredentials() | Login() as auth:
                async with self._turn:  # many ask at once, one is sent
                    if self._kept is None or self._clock.monotonic_s() >= self._until_s:
                        self._kept = await (
                            self._token(auth) if isinstance(auth, ClientCredentials) else self._session(auth)
                        )
                    return self._kept
            case _:
                return {}

    def refused(self, headers: Mapping[str, str]) -> bool:
        """These were not taken; whether others may be got."""
        if self._kept is not None and self._kept.items() <= headers.items():
            self._kept = None
        has_token = self._csrf is not None and self._csrf.items() <= headers.items()
        if has_token:
            self._csrf = None
        return has_token or isinstance(self._adapter.auth, ClientCredentials | Login)

    async def _csrf_token(self, csrf: Csrf, headers: Mapping[str, str]) -> dict[str, str]:
        url = f"{self._adapter.base_url}/{csrf.path.render(self._values).lstrip('/')}"
        answer = await self._send(httpx.Request("GET", url, headers={**headers, csrf.header: "Fetch"}))
        token = answer.headers.get(csrf.header.lower())
        if token is None:
            raise EngineError("refused", f"{self._adapter.id}: no {csrf.header} (status {answer.status})")
        return {csrf.header: token}

    async def _token(self, auth: ClientCredentials) -> dict[str, str]:
        form = {
            "grant_type": "client_credentials",
            "client_id": auth.client_id.render(self._values),
            "client_secret": auth.client_secret.render(self._values),
            **({"scope": auth.scope} if auth.scope else {}),
            **{name: text.render(self._values) for name, text in auth.fields.items()},
        }
        url = str(auth.token_url.render(self._values))
        url = self._adapter.base_url + url if url.startswith("/") else url
        answer = await self._asked(httpx.Request("POST", url, data=form))
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise EngineError("invalid", f"{self._adapter.id}: the answer to client credentials holds no access_token")
        expires_s = answer.get("expires_in")
        self._keep(float(expires_s) if isinstance(expires_s, int | float) else _EXPIRES_S)
        return {"Authorization": f"Bearer {token}"}

    async def _session(self, auth: Login) -> dict[str, str]:
        url = f"{self._adapter.base_url}/{auth.path.render(self._values).lstrip('/')}"
        answer = await self._asked(httpx.Request("POST", url, json=auth.body.render(self._values)))
        login = {name: search.find(answer) for name, search in auth.answer.items()}
        if missing := sorted(name for name, value in login.items() if value is None):
            raise EngineError("invalid", f"{self._adapter.id}: the answer to the login lacks {', '.join(missing)}")
        self._keep(float("inf"))
        return {name: str(text.render({**self._values, "login": login})) for name, text in auth.headers.items()}

    async def _asked(self, request: httpx.Request) -> Any:
        answer = await self._send(request)
        if not 200 <= answer.status < 300:
            raise EngineError("refused", f"{self._adapter.id}: not let in (status {answer.status})")
        return answer.body

    def _keep(self, for_s: float) -> None:
        self._until_s = self._clock.monotonic_s() + max(for_s - _SPARE_S, for_s / 2)
