"""Pictures from addresses, where the server's owner allows it; never from inside of its own network.

    url ──parse──> host ──resolve once──> public IPs ──connect to that IP──> bytes, or one more hop

Every address that a name resolves to must be public, the connection goes to the address that was checked (a name can't
change its mind in between), each redirect is checked alike, and size and time are bounded over all hops.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import h11

from pumice.serve.errors import ApiError, invalid
from pumice.serve.settings import Remote

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str, int], Awaitable[list[str]]]
Connect = Callable[[str, int, str, bool], Awaitable[Streams]]

PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL = ipaddress.ip_network("2000::/3")  # all that is assigned of IPv6's public addresses
FAILED = "the picture couldn't be fetched; send it as a data: URI instead"
MALFORMED = "not a well-formed address"


class Target(NamedTuple):
    """A parsed address."""

    tls: bool
    host: str
    port: int
    path: str


async def resolve(host: str, port: int) -> list[str]:
    """IP addresses of a name, as the system resolves it."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def connect(ip: str, port: int, host: str, tls: bool) -> Streams:
    """Streams to an IP address; with ``tls`` the certificate must be the host's."""
    context = ssl.create_default_context() if tls else None
    return await asyncio.open_connection(ip, port, ssl=context, server_hostname=host if tls else None)


class Fetcher:
    """Fetches under the rules of ``remote``; ``resolve`` and ``connect`` are replaced in tests."""

    def __init__(self, remote: Remote, resolve: Resolve = resolve, connect: Connect = connect) -> None:
        self.remote, self._resolve, self._connect = remote, resolve, connect

    async def fetch(self, url: str, where: str) -> bytes:
        """The bytes at an address.

        Raises:
            ApiError: 400, addresses aren't fetched, this one isn't allowed, or what is there is too large or too slow.
        """
        if not self.remote.allowed:
            raise refused("addresses aren't fetched by this server; send the file as a data: URI", where)
        try:
            async with asyncio.timeout(self.remote.seconds):
                for _ in range(self.remote.redirects + 1):
                    found = await self._hop(parse(url, where), where)
                    if isinstance(found, bytes):
                        return found
                    url = _joined(url, found, where)
        except TimeoutError:
            raise refused(f"fetching it takes more than {self.remote.seconds:g} seconds", where) from None
        except (OSError, UnicodeError, h11.ProtocolError):
            raise refused(FAILED, where) from None
        raise refused(f"more than {self.remote.redirects} redirects", where)

    async def _hop(self, target: Target, where: str) -> bytes | str:
        """The body, or where a redirect leads."""
        if self.remote.hosts and target.host not in self.remote.hosts:
            raise refused("this host isn't one of those that this server fetches from", where)
        addresses = await self._resolve(target.host, target.port)
        if not addresses or not all(map(is_public, addresses)):
            raise refused("this host isn't on the public internet; such addresses aren't fetched", where)
        reader, writer = await self._connect(addresses[0], target.port, target.host, target.tls)
        try:
            return await _exchange(target, reader, writer, self.remote.max_bytes, where)
        finally:
            writer.close()


def _joined(url: str, location: str, where: str) -> str:
    """Where a redirect leads."""
    try:
        return urljoin(url, location)
    except ValueError:
        raise refused(MALFORMED, where) from None


def refused(message: str, where: str) -> ApiError:
    """A 400 about an address."""
    return invalid(message, where, "remote_media_refused")


def parse(url: str, where: str) -> Target:
    """An http or https address without user names, on the scheme's own port.

    Raises:
        ApiError: 400, anything else.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host = host.encode("idna").decode("ascii").lower().rstrip(".") if not host.isascii() else host.rstrip(".")
    except (ValueError, UnicodeError):
        raise refused(MALFORMED, where) from None
    if parts.scheme not in PORTS or not host or parts.username is not None or parts.password is not None:
        raise refused("expected an http or https address without a user name, or a data: URI", where)
    if port not in (None, PORTS[parts.scheme]):
        raise refused(f"port {port} isn't fetched from; only {PORTS[parts.scheme]} of {parts.scheme}", where)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(not "!" <= c <= "~" for c in path + host):
        raise refused("an address has only visible ASCII characters; encode others with %", where)
    return Target(parts.scheme == "https", host, PORTS[parts.scheme], path)


def is_public(address: str) -> bool:
    """Whether an IP address is a public one, also where an IPv6 address only wraps one of IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64 or int(ip) >> 32 == 0:  # translated, and the old "compatible" form
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if not all(_public(one) for one in inner if one is not None):
            return False
        return ip.ipv4_mapped is not None or ip in _NAT64 or (ip in _GLOBAL and _public(ip))
    return _public(ip)


def _public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


async def _exchange(
    target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_bytes: int, where: str
) -> bytes | str:
    """One GET over HTTP/1.1."""
    http = h11.Connection(h11.CLIENT)
    host = f"[{target.host}]" if ":" in target.host else target.host
    headers = [("Host", host), ("User-Agent", "pumice"), ("Accept", "*/*"), ("Accept-Encoding", "identity")]
    ask = h11.Request(method="GET", target=target.path, headers=[*headers, ("Connection", "close")])
    writer.write((http.send(ask) or b"") + (http.send(h11.EndOfMessage()) or b""))
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            given = dict(event.headers)
            if event.status_code in REDIRECTS and b"location" in given:
                return given[b"location"].decode("ascii")
            if event.status_code != 200:
                raise refused(FAILED, where)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise refused(f"more than {max_bytes:,} bytes; no larger file is fetched", where)
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise refused(FAILED, where)
