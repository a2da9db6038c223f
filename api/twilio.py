"""Telephone calls through Twilio: the webhook that answers with TwiML, and the media socket."""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, urlsplit, urlunsplit
from xml.sax.saxutils import escape, quoteattr

from fastapi import APIRouter, Request, Response
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from api.auth import key_of
from api.connection import Connection
from api.dialects.dialect import Start
from api.dialects.twilio import TOKEN_PARAMETER, TwilioDialect
from api.problems import ProblemError
from api.session_router import SessionRouter
from streams.settings import Settings

BODY_BYTES_MAX = 65_536
_PORTS = {"https": 443, "http": 80, "wss": 443, "ws": 80}


def signature(token: str, url: str, parameters: Sequence[tuple[str, str]]) -> str:
    """Twilio's X-Twilio-Signature: base64 of HMAC-SHA1 over the URL and the sorted parameters."""
    text = url + "".join(name + value for name, value in sorted(set(parameters)))
    return base64.b64encode(hmac.new(token.encode(), text.encode(), hashlib.sha1).digest()).decode()


def signed(token: str, url: str, parameters: Sequence[tuple[str, str]], given: str) -> bool:
    """Whether the signature fits the URL, with its port named or not: Twilio does either."""
    candidates = [signature(token, variant, parameters) for variant in _with_and_without_port(url)]
    return any(hmac.compare_digest(candidate.encode(), given.encode()) for candidate in candidates)


def _with_and_without_port(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = parts.port or _PORTS.get(parts.scheme, 443)
    return urlunsplit(parts._replace(netloc=host)), urlunsplit(parts._replace(netloc=f"{host}:{port}"))


def public_url(settings: Settings, connection: HTTPConnection) -> str:
    """The URL that Twilio used, query included: from api.public_url, else from the request and its proxy's headers."""
    url = connection.url
    path = url.path + (f"?{url.query}" if url.query else "")
    if settings.api.public_url:
        scheme, _, rest = settings.api.public_url.rstrip("/").partition("://")
    else:
        secure = url.scheme in ("https", "wss") or connection.headers.get("x-forwarded-proto") == "https"
        scheme, rest = "https" if secure else "http", url.netloc
    if connection.scope["type"] == "websocket":
        scheme = {"https": "wss", "http": "ws"}.get(scheme, scheme)
    return f"{scheme}://{rest}{path}"


def call_token(settings: Settings, call_sid: str) -> str:
    """What the webhook hands to the media socket through Twilio, as proof; empty where nothing is demanded."""
    secret = _auth_token(settings) or key_of(settings)
    return hmac.new(secret.encode(), call_sid.encode(), hashlib.sha256).hexdigest() if secret else ""


def _auth_token(settings: Settings) -> str:
    token = settings.api.twilio_auth_token
    return token.get_secret_value() if token is not None else ""


async def _checked_form(request: Request, settings: Settings) -> dict[str, str]:
    """The webhook's parameters; raises ProblemError when it is not Twilio that asks."""
    body = await request.body()
    if len(body) > BODY_BYTES_MAX:
        raise ProblemError(413, "too_big", "The request is too big.", f"At most {BODY_BYTES_MAX} bytes.")
    pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    token = _auth_token(settings)
    given = request.headers.get("x-twilio-signature", "")
    if token and not signed(token, public_url(settings, request), pairs, given):
        hint = "api.twilio_auth_token must be the account's, api.public_url the address that Twilio calls."
        raise ProblemError(403, "bad_signature", "X-Twilio-Signature does not fit.", hint)
    if not token and key_of(settings):
        hint = "Set TRUNKLINE_API__TWILIO_AUTH_TOKEN, so that Twilio's signature can be checked."
        raise ProblemError(403, "no_auth_token", "Telephone calls are not set up.", hint)
    return dict(pairs)


def _twiml(content: str) -> Response:
    document = f'<?xml version="1.0" encoding="UTF-8"?><Response>{content}</Response>'
    return Response(document, media_type="text/xml")


def _connect(request: Request, settings: Settings, form: Mapping[str, str], agent: str) -> str:
    base, _, _ = public_url(settings, request).partition("/v1/twilio/voice")
    stream = base.replace("http", "ws", 1) + "/v1/twilio/media"
    parameters = {"agent": agent, "caller": form.get("From", "")}
    parameters[TOKEN_PARAMETER] = call_token(settings, form.get("CallSid", ""))
    tags = "".join(
        f"<Parameter name={quoteattr(name)} value={quoteattr(value)}/>" for name, value in parameters.items() if value
    )
    after = quoteattr(base + "/v1/twilio/after")
    return f"<Connect action={after}><Stream url={quoteattr(stream)}>{tags}</Stream></Connect>"


def routes(router: SessionRouter) -> APIRouter:
    """The three addresses that Twilio is told."""
    api = APIRouter(prefix="/v1/twilio", tags=["telephone"])
    settings = router.settings

    @api.post("/voice")
    async def voice(request: Request, agent: str = "") -> Response:
        """Answers an incoming call: TwiML that connects it to the media socket, or says busy."""
        form = await _checked_form(request, settings)
        if agent and agent not in router.agents:
            raise ProblemError(404, "unknown_agent", "There is no such agent.", "GET /v1/agents lists them.")
        if refusal := router.door.refusal():
            router.door.refused(refusal)
            return _twiml('<Reject reason="busy"/>')
        router.door.reserve(form.get("CallSid", ""))
        return _twiml(_connect(request, settings, form, agent))

    @api.post("/after")
    async def after(request: Request) -> Response:
        """Says how a call goes on when its media socket has closed: dial the transfer's target, or hang up."""
        form = await _checked_form(request, settings)
        call_sid = form.get("CallSid", "")
        for summary in reversed(router.recent):
            if call_sid and summary.call_id == call_sid and summary.reason == "transferred" and summary.transfer_target:
                return _twiml(f"<Dial>{escape(summary.transfer_target)}</Dial>")
        return _twiml("<Hangup/>")

    @api.websocket("/media")
    async def media(websocket: WebSocket) -> None:
        """Twilio Media Streams."""
        token = _auth_token(settings)
        given = websocket.headers.get("x-twilio-signature", "")
        trusted = bool(token and given) and signed(token, public_url(settings, websocket), (), given)

        def authorise(start: Start) -> bool:
            expected = call_token(settings, start.call_id)
            return trusted or not expected or hmac.compare_digest(expected.encode(), start.token.encode())

        await Connection(websocket, TwilioDialect(), router, authorise).run()

    return api
