"""Requests to addresses that customers chose, which must not lead into the operator's own network.

A name is resolved once, every address it has is judged, and the connection goes to one of those
that were judged: a name that resolves differently the next time gains nothing. Redirects are not
followed and proxies of the environment are not asked.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final
from urllib.parse import SplitResult, urlsplit

import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[list[str]]]

URL_LENGTH_MAX: Final = 2_048
# Where HTTPS is served to the public; other services on a host are nobody's webhook.
PORTS: Final = frozenset({443, 8443})
# All of it: resolving, connecting, TLS, the request and what is read of the answer.
TIMEOUT_S: Final = 15.0
# Headers of an honest answer fit in a few kB.
HEAD_BYTES_MAX: Final = 32_768
# What is read of an answer's body, for the log.
BODY_BYTES_MAX: Final = 4_096
# Of a name's addresses, as many are tried as one may be down beside another that is up.
TRIED_MAX: Final = 2

# Private, shared, loopback, link-local, documentation, benchmarking, multicast and reserved, and
# where clouds keep metadata. The standard library's own judgement differs by version and takes
# some of these for public.
_CLOSED_4: Final = [
    IPv4Network(text) for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32",
        "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
        "240.0.0.0/4",
    )
]  # fmt: skip
_CLOSED_6: Final = [
    IPv6Network(text) for text in (
        "::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32",
        "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    )
]  # fmt: skip
# An IPv4 address in an IPv6 one, and by how many bits it is shifted: mapped, NAT64 and 6to4.
_WRAPPED: Final = [
    (IPv6Network("::ffff:0:0/96"), 0),
    (IPv6Network("::ffff:0:0:0/96"), 0),
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("2002::/16"), 80),
]


class Refused(Exception):
    """The address is none that may be reached, and why. Nothing was connected."""


class Answer(msgspec.Struct, frozen=True):
    """What came back: a status, or the reason why none did; `body` is its beginning."""

    status: int | None
    error: str | None
    body: str
    latency_ms: int


def networks_of(text: str) -> list[Network]:
    """Read networks that are parted by commas. Raises: ValueError."""
    return [ipaddress.ip_network(one.strip()) for one in text.split(",") if one.strip()]


def is_public(address: Address) -> bool:
    """Say whether an address is anybody's on the internet, however it is written."""
    if isinstance(address, IPv6Address):
        for network, shift in _WRAPPED:
            if address in network:
                return is_public(IPv4Address(int(address) >> shift & 0xFFFF_FFFF))
        return not any(address in network for network in _CLOSED_6)
    return not any(address in network for network in _CLOSED_4)


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Say whether the operator opened an address that is not public."""
    return any(address.version == network.version and address in network for network in allowed)


def check_url(url: str, allowed: Sequence[Network]) -> SplitResult:
    """Hold an address against what can be said of it without resolving its name.

    http and other ports are for the operator's own networks, so they are judged when the name is
    resolved. Raises: Refused.
    """
    if len(url) > URL_LENGTH_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise Refused(f"url must be at most {URL_LENGTH_MAX} ASCII characters without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused("url is malformed") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or "\\" in url:
        raise Refused("url must be https://…")
    if parts.username is not None or parts.password is not None or "#" in url:
        raise Refused("url must have no user, password or fragment")
    if "%" in parts.netloc or port == 0:
        raise Refused("url is malformed")
    is_plain = parts.scheme == "http" or (port or 443) not in PORTS
    if is_plain and not allowed:
        raise Refused("url must be https on port 443 or 8443")
    try:
        literal = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return parts
    _judge([literal], parts, allowed)
    return parts


def _judge(addresses: Sequence[Address], parts: SplitResult, allowed: Sequence[Network]) -> None:
    if all(is_allowed(address, allowed) for address in addresses):
        return
    if not all(is_public(address) for address in addresses):
        raise Refused("the address leads to a network that is not public")
    if parts.scheme == "http" or (parts.port or 443) not in PORTS:
        raise Refused("url must be https on port 443 or 8443")


async def resolve(host: str, port: int) -> list[str]:
    """Ask the system for a name's addresses."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


async def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    allowed: Sequence[Network] = (),
    resolver: Resolve = resolve,
    context: ssl.SSLContext | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """Send a POST and return what came back; never raises for the other side's doing."""
    started_s = time.monotonic()

    def answer(status: int | None, error: str | None, text: str = "") -> Answer:
        return Answer(status, error, text, round((time.monotonic() - started_s) * 1000))

    try:
        async with asyncio.timeout(timeout_s):
            parts = check_url(url, allowed)
            return answer(*await _exchange(parts, headers, body, allowed, resolver, context))
    except Refused as refused:
        return answer(None, f"not allowed: {refused}")
    except TimeoutError:
        return answer(None, f"no answer within {timeout_s:g} s")
    except ssl.SSLError as error:
        return answer(None, f"TLS failed: {error.reason or error}")
    except (OSError, UnicodeError) as error:
        return answer(None, f"no connection: {getattr(error, 'strerror', None) or error}")
    except (ValueError, EOFError):
        return answer(None, "the answer is not HTTP")


async def _exchange(
    parts: SplitResult,
    headers: Mapping[str, str],
    body: bytes,
    allowed: Sequence[Network],
    resolver: Resolve,
    context: ssl.SSLContext | None,
) -> tuple[int, str | None, str]:
    host = parts.hostname or ""
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    # A scope ("%eth0") only says through which door an address that is closed anyway is reached.
    found = [ipaddress.ip_address(one.partition("%")[0]) for one in await resolver(host, port)]
    if not found:
        raise OSError("the name has no address")
    _judge(found, parts, allowed)
    tls = (context or ssl.create_default_context()) if is_tls else None
    reader, writer = await _connect(found[:TRIED_MAX], port, tls, host)
    try:
        writer.write(_head(parts, headers, len(body)) + body)
        await writer.drain()
        return await _read(reader)
    finally:
        writer.transport.abort()


async def _connect(
    addresses: Sequence[Address], port: int, tls: ssl.SSLContext | None, host: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    failure: OSError | None = None
    for address in addresses:
        try:
            return await asyncio.open_connection(
                str(address), port, ssl=tls, server_hostname=host if tls else None,
                limit=HEAD_BYTES_MAX,
            )  # fmt: skip
        except ssl.SSLError:
            raise
        except OSError as error:
            failure = error
    assert failure is not None
    raise failure


def _head(parts: SplitResult, headers: Mapping[str, str], length: int) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {target} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {length}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("ascii")


async def _read(reader: asyncio.StreamReader) -> tuple[int, str | None, str]:
    """Read the status, which decides, and what arrives of the body."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise ValueError("too long") from None
    lines = head.split(b"\r\n")
    version, _, rest = lines[0].partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("no status")
    status = int(rest[:3])
    if 100 <= status < 200:
        return await _read(reader)
    lengths = [line for line in lines if line.lower().startswith(b"content-length:")]
    wanted = BODY_BYTES_MAX
    if lengths and (text := lengths[0].partition(b":")[2].strip()).isdigit():
        wanted = min(wanted, int(text))
    kept = b""
    with contextlib.suppress(OSError, TimeoutError):
        # What was answered is known by now; a body that trickles is not waited for.
        async with asyncio.timeout(1.0):
            while len(kept) < wanted and (piece := await reader.read(wanted - len(kept))):
                kept += piece
    return status, None, kept.decode("utf-8", "replace").replace("\0", "�")
