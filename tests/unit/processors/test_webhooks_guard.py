"""No address inside a private network is connected to, however it is written, resolved, or redirected to."""

import asyncio
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from processors.webhooks import guard as guards
from processors.webhooks import sender as senders
from processors.webhooks.guard import Guard, RefusedAddressError, split_url
from processors.webhooks.sender import Sender
from streams.clock import SystemClock

PRIVATE = """
127.0.0.1 127.8.8.8 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1
255.255.255.255 192.0.2.1 198.18.0.1 240.0.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12:3456::1 fec0::1 ff02::1
::ffff:10.0.0.1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 2002:0a00:0001::1 2001:db8::1
2001:0:4136:e378:8000:63bf:3fff:fdd2
""".split()
PUBLIC = "93.184.216.34 8.8.8.8 2606:2800:220:1:248:1893:25c8:1946 64:ff9b::8.8.8.8 ::ffff:8.8.8.8".split()


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused_with_the_reason(address: str) -> None:
    assert "no public address" in Guard().refusal(address, "https")


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached_over_https_alone(address: str) -> None:
    assert Guard().refusal(address, "https") == ""
    assert "https is expected" in Guard().refusal(address, "http")


def test_networks_of_the_settings_are_reached_over_http_too() -> None:
    guard = Guard(["10.1.0.0/16", "fd00::/8"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1"):
        assert (guard.refusal(address, "http"), guard.refusal(address, "https")) == ("", "")
    for address in ("10.2.0.1", "127.0.0.1", "fe80::1"):
        assert "no public address" in guard.refusal(address, "https")


@given(st.ip_addresses(v=4))
def test_an_address_of_version_4_is_judged_alike_in_each_spelling(address: ipaddress.IPv4Address) -> None:
    guard = Guard()
    refused = bool(guard.refusal(str(address), "https"))
    assert bool(guard.refusal(f"::ffff:{address}", "https")) == refused
    assert bool(guard.refusal(str(ipaddress.IPv6Address((0x64FF9B << 96) | int(address))), "https")) == refused


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///etc/passwd", "https://host/path"),
        ("https://", "https://host/path"),
        ("//host/path", "https://host/path"),
        ("https://user@host/", "without user"),
        ("https://host/#part", "fragment"),
        ("https://host:0/", "port"),
        ("https://host:99999/", "ort"),
        ("https://ho st/", "without spaces"),
        ("https://host/\r\nX-Injected: 1", "without spaces"),
        ("https://höst/", "ASCII"),
        (f"https://host/{'a' * 3000}", "2048"),
    ],
)
def test_unusable_urls_say_what_is_expected(url: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        assert split_url(url).port != 0


class Names:
    """A name server whose answers the test chooses; each question takes the next, the last for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked = 0
        monkeypatch.setattr(guards, "_resolve", self._resolve)

    def _resolve(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Web:
    """A server on 127.0.0.1 that counts its requests; `location` makes it redirect."""

    def __init__(self, location: str = "", context: ssl.SSLContext | None = None) -> None:
        self.requests = 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                web.requests += 1
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(307 if location else 200)
                if location:
                    self.send_header("location", location)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


async def posted(url: str, guard: Guard, times: int = 1) -> list[tuple[int, str]]:
    sender = Sender(url, guard, SystemClock(), 10, 1)
    try:
        answers = [await sender.post(b"{}", {"connection": "close"}) for _ in range(times)]
        return [(answer.status, answer.reason) for answer in answers]
    finally:
        await sender.close()


async def test_a_name_with_one_private_address_among_others_is_refused(
    monkeypatch: pytest.MonkeyPatch, web: Web
) -> None:
    Names(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    ((status, reason),) = await posted(f"https://example.org:{web.port}/", Guard())
    assert status == 0
    assert "127.0.0.1 is no public address" in reason
    assert web.requests == 0


async def test_a_name_that_changes_its_mind_is_refused(monkeypatch: pytest.MonkeyPatch, web: Web) -> None:
    """DNS rebinding: 127.0.0.2 is allowed here and stands for a public address; what comes next is not."""
    names = Names(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
    guard = Guard(["127.0.0.2/32"])
    assert await guard.addresses("example.org", web.port, "http") == ["127.0.0.2"]
    ((status, reason),) = await posted(f"http://example.org:{web.port}/", guard)
    assert (status, web.requests, names.asked) == (0, 0, 2)
    assert "127.0.0.1 is no public address" in reason


async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch, web: Web) -> None:
    """The name resolves once for a connection: a second answer, which would be refused, is never asked for."""
    names = Names(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    assert await posted(f"http://example.org:{web.port}/", Guard(["127.0.0.0/8"])) == [(200, "")]
    assert (web.requests, names.asked) == (1, 1)


async def test_each_new_connection_is_checked_anew(monkeypatch: pytest.MonkeyPatch, web: Web) -> None:
    Names(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    first, second = await posted(f"http://example.org:{web.port}/", Guard(["127.0.0.0/8"]), times=2)
    assert first == (200, "")
    assert second[0] == 0
    assert "10.0.0.1 is no public address" in second[1]


async def test_redirects_are_failures_and_not_followed(web: Web) -> None:
    redirecting = Web(location=f"http://127.0.0.1:{web.port}/inside")
    try:
        answers = await posted(f"http://127.0.0.1:{redirecting.port}/", Guard(["127.0.0.0/8"]))
    finally:
        redirecting.close()
    assert answers == [(307, "HTTP 307, and redirects are not followed")]
    assert (redirecting.requests, web.requests) == (1, 0)


async def test_a_host_that_does_not_resolve_is_an_answer_too() -> None:
    with pytest.raises(RefusedAddressError, match="cannot be resolved"):
        await Guard().addresses("nowhere.invalid", 443, "https")


async def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
    sender = Sender(url, Guard(["127.0.0.0/8"]), SystemClock(), 0.2, 1)
    answer = await sender.post(b"{}", {})
    await sender.close()
    silent.close()
    assert (answer.status, answer.reason) == (0, "no answer within 0.2 s")


async def test_an_answer_without_an_end_counts_by_its_status() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 10_000)
                await writer.drain()
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await posted(f"http://127.0.0.1:{port}/", Guard(["127.0.0.0/8"])) == [(200, "")]
    server.close()


@pytest.mark.parametrize(("name", "accepted"), [("example.org", True), ("evil.example", False)])
async def test_certificates_are_checked_against_the_name_though_the_address_is_pinned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, accepted: bool
) -> None:
    certificate, key = _certificate(tmp_path, "example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(senders, "_authorities", lambda: trusting)
    Names(monkeypatch, ["127.0.0.1"])
    server = Web(context=context)
    try:
        ((status, reason),) = await posted(f"https://{name}:{server.port}/", Guard(["127.0.0.0/8"]))
    finally:
        server.close()
    assert (status == 200, server.requests == 1) == (accepted, accepted)
    assert accepted or "certificate is not accepted" in reason


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for the name, signed by its own key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, none))
    return folder / "certificate.pem", folder / "key.pem"
