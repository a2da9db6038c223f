"""Telephone calls through Twilio: the webhook that answers with TwiML, and the media socket."""

import base64
import contextlib
import hashlib
import hmac
import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from xml.sax.saxutils import escape, quoteattr

from fastapi import APIRouter, Request, Response
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from api.auth import Authenticator
from api.connection import Connection
from api.dialects.dialect import Start
from api.dialects.twilio import AGAIN_PARAMETER, SESSION_PARAMETER, TOKEN_PARAMETER, TwilioDialect
from api.history import Wanted
from api.problems import ProblemError
from api.session_router import SessionRouter
from api.visit import visit_of
from schemas.events import RefusalKind
from streams.client import LogError
from streams.keys import partition_of
from streams.settings import Settings

BODY_BYTES_MAX = 65_536
CALL_S_MAX = 24 * 60 * 60  # Twilio's longest call
_SESSIONS = uuid.UUID("b8a1f7b2-52f4-4f43-9d53-0f4f3f5f6c11")
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
    """What the webhook hands to the media socket through Twilio, as proof; empty without an auth token."""
    secret = _auth_token(settings)
    return hmac.new(secret.encode(), call_sid.encode(), hashlib.sha256).hexdigest() if secret else ""


def _auth_token(settings: Settings) -> str:
    token = settings.api.twilio_auth_token
    return token.get_secret_value() if token is not None else ""


async def _checked_form(request: Request, settings: Settings, is_open: bool) -> dict[str, str]:
    """The webhook's parameters; raises ProblemError when it is not Twilio that asks."""
    body = await request.body()
    if len(body) > BODY_BYTES_MAX:
        raise ProblemError(413, "too_big", "The request is too big.", f"At most {BODY_BYTES_MAX} bytes.")
    pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    token = _auth_token(settings)
    given = request.headers.get("x-twilio-signature", "")
    if token and not signed(token, public_url(settings, request), pairs, given):
        hint = "api.twilio_auth_token must be the account's, api.public_url the address that Twilio calls."
        problem = ProblemError(403, "bad_signature", "X-Twilio-Signature does not fit.", hint)
        raise problem.as_refusal(RefusalKind.UNAUTHENTICATED, "bad_signature")
    if not token and not is_open:
        hint = "Set TRUNKLINE_API__TWILIO_AUTH_TOKEN, so that Twilio's signature can be checked."
        problem = ProblemError(403, "no_auth_token", "Telephone calls are not set up.", hint)
        raise problem.as_refusal(RefusalKind.UNAUTHENTICATED, "no_auth_token")
    return dict(pairs)


def _twiml(content: str) -> Response:
    document = f'<?xml version="1.0" encoding="UTF-8"?><Response>{content}</Response>'
    return Response(document, media_type="text/xml")


def session_of(router: SessionRouter, call_sid: str) -> str:
    """The session of a telephone call: the same for all gateways that begin calls in the same partitions."""
    partitions = router.settings.kafka.partitions
    names = (f"{router.settings.tenant}/{call_sid}/{number}" for number in itertools.count())
    ids = (str(uuid.uuid5(_SESSIONS, name)) for name in names)
    return next(session_id for session_id in ids if partition_of(session_id, partitions) in router.partitions_for_new)


async def _announced(router: SessionRouter, tenant: str, call_sid: str) -> tuple[str, bool]:
    """A token for the call's session, and whether that has been begun before."""
    now_us = router.clock.now_us()
    session_id, since_us = session_of(router, call_sid), now_us
    with contextlib.suppress(LogError):
        started, ended = await router.histories.life(session_id, now_us - CALL_S_MAX * 1_000_000)
        if ended is not None:
            session_id = router.mint()
        elif started is not None:
            return router.resume_token(session_id, started.tenant_id, started.occurred_at), True
    return router.resume_token(session_id, tenant, since_us), False


@dataclass(frozen=True, slots=True)
class _Stream:
    """What a media stream is told: the agent, the session, and how often it was tried since the stream before."""

    agent: str
    session_token: str
    again: bool = False
    tries: int = 0

    def twiml(self, request: Request, settings: Settings, form: Mapping[str, str]) -> str:
        """Connects the call; when the stream ends, Twilio asks what to do next."""
        base, _, _ = public_url(settings, request).partition("/v1/twilio/")
        parameters = {
            "agent": self.agent,
            "caller": form.get("From", ""),
            TOKEN_PARAMETER: call_token(settings, form.get("CallSid", "")),
            SESSION_PARAMETER: self.session_token,
            AGAIN_PARAMETER: "1" if self.again else "",
        }
        tags = "".join(
            f"<Parameter name={quoteattr(name)} value={quoteattr(value)}/>"
            for name, value in parameters.items()
            if value
        )
        query = urlencode({"session": self.session_token, "agent": self.agent, "tries": self.tries})
        stream = quoteattr(base.replace("http", "ws", 1) + "/v1/twilio/media")
        pause = '<Pause length="1"/>' if self.tries > 1 else ""
        after = quoteattr(f"{base}/v1/twilio/after?{query}")
        return f"{pause}<Connect action={after}><Stream url={stream}>{tags}</Stream></Connect>"


async def _what_next(router: SessionRouter, call_sid: str, stream: _Stream) -> str | _Stream:
    """TwiML for a call whose stream has ended, or the stream on which it goes on."""
    for summary in reversed(router.recent):
        if call_sid and summary.call_id == call_sid:
            return _farewell(summary.transfer_target if summary.reason == "transferred" else "")
    token = router.tokens.read(stream.session_token, router.clock.now_us())
    if token is None or stream.tries > router.settings.api.resume_grace_s:
        return _farewell("")
    try:
        history = await router.histories.of(Wanted(token.session_id, token.since_us))
    except LogError:
        history = None
    if history is not None and history.ended is not None:
        return _farewell(history.transfer_target)
    return replace(stream, again=True, tries=stream.tries + 1)


def _farewell(target: str) -> str:
    return f"<Dial>{escape(target)}</Dial>" if target else "<Hangup/>"


def routes(router: SessionRouter, authenticator: Authenticator) -> APIRouter:
    """The three addresses that Twilio is told."""
    api = APIRouter(prefix="/v1/twilio", tags=["telephone"])
    settings = router.settings

    @api.post("/voice")
    async def voice(request: Request, agent: str = "") -> Response:
        """Answers an incoming call: TwiML that connects it to the media socket, or says busy."""
        form = await _checked_form(request, settings, authenticator.is_open)
        if agent and agent not in router.agents:
            raise ProblemError(404, "unknown_agent", "There is no such agent.", "GET /v1/agents lists them.")
        tenant = router.tenant_of(visit_of(request).principal, agent or next(iter(router.agents)))
        token, begun = await _announced(router, tenant, form.get("CallSid", ""))
        if not begun:
            if refusal := router.door.refusal():
                router.door.refused(refusal)
                return _twiml('<Reject reason="busy"/>')
            router.door.reserve(form.get("CallSid", ""))
        return _twiml(_Stream(agent, token, again=begun).twiml(request, settings, form))

    @api.post("/after")
    async def after(request: Request, session: str = "", agent: str = "", tries: int = 0) -> Response:
        """Says how a call goes on when its media socket has closed: another stream, where the call is not over; else
        the transfer's target is dialled, or the caller hung up.
        """
        form = await _checked_form(request, settings, authenticator.is_open)
        stream = _Stream(agent, session, tries=tries)
        following = await _what_next(router, form.get("CallSid", ""), stream)
        return _twiml(following if isinstance(following, str) else following.twiml(request, settings, form))

    @api.websocket("/media")
    async def media(websocket: WebSocket) -> None:
        """Twilio Media Streams."""
        token = _auth_token(settings)
        given = websocket.headers.get("x-twilio-signature", "")
        trusted = bool(token and given) and signed(token, public_url(settings, websocket), (), given)

        def authorise(start: Start) -> bool:
            expected = call_token(settings, start.call_id)
            if trusted or not expected:
                return trusted or authenticator.is_open
            return hmac.compare_digest(expected.encode(), start.token.encode())

        await Connection(websocket, TwilioDialect(), router, visit_of(websocket), authorise).run()

    return api
