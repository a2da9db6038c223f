"""Which addresses the relay may connect to: none inside a private network, unless the settings allow it.

A host's name is resolved once for each connection, every address that comes is looked at, and the connection goes to
one of those that were: a name that answers differently the second time (DNS rebinding) is not asked a second time.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpcore

from streams.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SocketOption = Any  # httpcore's: a tuple as setsockopt takes it

URL_CHARACTERS_MAX = 2048
_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that is assigned for the public network, but for _NAT64


class RefusedAddressError(httpcore.ConnectError):
    """The relay does not connect there; the message says why, for the owner of the subscription."""


def guard_of(settings: Settings) -> "Guard":
    """With the networks that the settings allow."""
    return Guard(map(str, settings.webhooks.private_networks))


def split_url(url: str) -> SplitResult:
    """The parts of a usable URL; raises ValueError, with what is expected."""
    if len(url) > URL_CHARACTERS_MAX:
        raise ValueError(f"at most {URL_CHARACTERS_MAX} characters are expected")
    if not url.isascii() or any(character <= " " for character in url):
        raise ValueError("an ASCII URL without spaces is expected")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("https://host/path is expected")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL without user and password is expected; the signature proves who sends")
    if parts.fragment:
        raise ValueError("a URL without a fragment (#) is expected")
    if parts.port == 0:
        raise ValueError("a port above 0 is expected")
    return parts


def port_of(parts: SplitResult) -> int:
    """The port, the scheme's own where the URL names none."""
    return parts.port or _PORTS[parts.scheme]


class Guard:
    """Judges addresses. `allowed` are private networks that may be reached, over http, too."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed: tuple[Network, ...] = tuple(ipaddress.ip_network(network) for network in allowed)

    def refusal(self, address: str, scheme: str) -> str:
        """Why that address is not connected to; empty where it may be."""
        found = [_unwrapped(ipaddress.ip_address(address.partition("%")[0]))]
        found += _embedded(found[0])
        if all(self._is_allowed(one) for one in found):
            return ""
        if not all(_is_public(one) for one in found):
            return f"{address} is no public address; webhooks.private_networks names those that may be reached"
        if scheme != "https":
            return "https is expected; http is for webhooks.private_networks alone"
        return ""

    async def addresses(
        self, host: str, port: int, scheme: str, threads: ThreadPoolExecutor | None = None
    ) -> list[str]:
        """The host's addresses, all of which may be connected to; raises RefusedAddressError."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(threads, _resolve, host, port)
        except (OSError, UnicodeError):
            raise RefusedAddressError(f"the host {host} cannot be resolved") from None
        if not found:
            raise RefusedAddressError(f"the host {host} has no address")
        for address in found:
            if refusal := self.refusal(address, scheme):
                raise RefusedAddressError(refusal)
        return found

    def _is_allowed(self, address: Address) -> bool:
        return any(address in network for network in self._allowed if network.version == address.version)


def _resolve(host: str, port: int) -> list[str]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST and address not in _NAT64:
        return False
    return address.is_global and not address.is_multicast


def _unwrapped(address: Address) -> Address:
    """An IPv4 address that is written as an IPv6 one is that address."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _embedded(address: Address) -> list[Address]:
    """IPv4 addresses to which an IPv6 address may be translated on the way."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    found: list[Address] = [address.sixtofour] if address.sixtofour else []
    if address.teredo:
        found += address.teredo
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return found


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses alone; `resolve` stands between a name and its addresses.

    For one endpoint: its own thread resolves, so that a name server that does not answer delays no other endpoint.
    """

    def __init__(self, guard: Guard, scheme: str) -> None:
        self._guard = guard
        self._scheme = scheme
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="webhook-resolver")
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's interface)
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore; TLS is still negotiated for, and certificates checked against, the host's name."""
        addresses = await self._guard.addresses(host, port, self._scheme, self._threads)
        return await self._connect(addresses, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's interface)
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise RefusedAddressError("a socket on this machine is no webhook")

    async def sleep(self, seconds: float) -> None:
        """See httpcore."""
        await asyncio.sleep(seconds)

    def close(self) -> None:
        """Lets go of its thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _connect(
        self,
        addresses: Sequence[str],
        port: int,
        timeout: float | None,  # noqa: ASYNC109 (httpcore's interface)
        local_address: str | None,
        socket_options: Iterable[SocketOption] | None,
    ) -> httpcore.AsyncNetworkStream:
        """To the first that takes the connection."""
        *others, last = addresses
        for address in others:
            try:
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._plain.connect_tcp(last, port, timeout, local_address, socket_options)
