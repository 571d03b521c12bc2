"""Nobody reaches an address that is not public by way of a webhook, however they write it.

Every connection that is tried is seen by an audit hook of the interpreter: whatever is not the one
address these tests open is a breach.
"""

import asyncio
import ipaddress
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from core import outbound

pytestmark = pytest.mark.anyio

# Stands for a public address here, as one that the operator opened: nothing leaves this machine.
OPEN = "127.0.0.2"
ALLOWED = outbound.networks_of(f"{OPEN}/32")

_CLOSED = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1
127.1.2.3 127.255.255.255 168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1
172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1
198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
:: ::1 ::2 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:192.168.1.1
::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b::a9fe:a9fe 64:ff9b::c0a8:1 64:ff9b:1::1
100::1 2001::1 2001:0:7f00:1:: 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::
2002:a00:1:: 2002:c0a8:101:: 2002:a9fe:a9fe:: 3fff::1 5f00::1 fc00::1 fd00::1 fd00:ec2::254 fe80::1
fe80::a9fe:a9fe febf::1 fec0::1 ff02::1 ff05::2 ff0e::1
"""
CLOSED = _CLOSED.split()

_PUBLIC = """
1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.0.1.1
198.17.255.255 198.20.0.1 223.255.255.255 2606:4700::1111 2a00:1450::1 ::ffff:8.8.8.8
64:ff9b::808:808 2002:808:808::
"""
PUBLIC = _PUBLIC.split()

# Ways of writing an address that some readers take for another one, or that are none of ours.
_WRITTEN = """
https://127.1/ https://127.0.1/ https://2130706433/ https://0x7f000001/ https://0x7f.1/
https://0177.0.0.1/ https://017700000001/ https://0/ https://0.0/ https://127.0.0.1./
https://localhost/ https://localhost./ https://LOCALHOST/ https://[::]/ https://[::1]/
https://[0:0:0:0:0:0:0:1]/ https://[::ffff:7f00:1]/ https://[::ffff:127.0.0.1]/
https://[0000:0000:0000:0000:0000:ffff:7f00:0001]/ https://[64:ff9b::127.0.0.1]/
https://[2002:7f00:1::]/ https://[fe80::1%25eth0]/ https://[fe80::1%25lo]/
https://user@127.0.0.1/ https://user:pass@example.com/ https://example.com@127.0.0.1/
https://example.com%40127.0.0.1/ https://127.0.0.1%2f.example.com/ https://127.0.0.1%00.example.com/
https://127.0.0.1#@example.com/ https://127.0.0.1\\@example.com/ https:\\\\127.0.0.1/
http://127.0.0.1/ http://localhost:6379/ http://10.0.0.1/ http://169.254.169.254/latest/meta-data/
http://[fd00:ec2::254]/ gopher://127.0.0.1:6379/_FLUSHALL file:///etc/passwd ftp://127.0.0.1/
dict://127.0.0.1:11211/ ldap://127.0.0.1/ //127.0.0.1/ 127.0.0.1 https:// https:///etc/passwd
https://127.0.0.1:22/ https://127.0.0.1:0/ https://127.0.0.1:99999/ https://127.0.0.1:443443/
https://１２７.0.0.1/ https://ⓛocalhost/ https://127。0。0。1/
https://127.0.0.1:8443/ https://[::1]:8443/ https://0:443/ https://[::1 javascript:alert(1)
https://2852039166/ https://0xa9fea9fe/ https://169.254.43518/ https://[::ffff:a9fe:a9fe]/
"""
WRITTEN = _WRITTEN.split()

tried: list[Any] = []
_watching = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "socket.connect" and isinstance(arguments[1], tuple):
        tried.append(arguments[1][0])


sys.addaudithook(_hook)


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    global _watching
    tried.clear()
    _watching = True
    yield
    _watching = False
    assert set(tried) <= {OPEN}, "a connection to an address that is not public was tried"


def resolves_to(*answers: list[str]) -> Any:
    """A resolver that answers differently each time it is asked; the last answer stays."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    resolve.asked = asked  # type: ignore[attr-defined]
    return resolve


async def receiver(answer: bytes, host: str = OPEN) -> tuple[asyncio.Server, int, list[bytes]]:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    return server, server.sockets[0].getsockname()[1], heard


@pytest.mark.parametrize("address", CLOSED)
async def test_a_name_that_leads_to_a_closed_address_is_not_connected_to(address: str) -> None:
    for answer in ([address], ["93.184.216.34", address], [address, "93.184.216.34"]):
        got = await outbound.post(
            "https://hooks.example/", {}, b"{}", resolver=resolves_to(answer), timeout_s=2
        )
        assert (got.status, tried) == (None, []), got
        assert got.error is not None and got.error.startswith("not allowed")


@pytest.mark.parametrize("address", CLOSED)
async def test_a_closed_address_as_itself_is_refused_before_anything_is_stored(
    address: str,
) -> None:
    host = f"[{address}]" if ":" in address else address
    for text in (f"https://{host}/", f"https://{host}:8443/x"):
        with pytest.raises(outbound.Refused):
            outbound.check_url(text, [])
        assert (await outbound.post(text, {}, b"{}", timeout_s=2)).status is None


@pytest.mark.parametrize("text", WRITTEN)
async def test_an_address_written_in_a_strange_way_reaches_nothing(text: str) -> None:
    got = await outbound.post(text, {}, b"{}", timeout_s=2)
    assert (got.status, tried) == (None, []), got
    assert got.error is not None and got.error.startswith(("not allowed", "no connection"))


@pytest.mark.parametrize("address", PUBLIC)
async def test_what_is_public_is_taken_for_public(address: str) -> None:
    assert outbound.is_public(ipaddress.ip_address(address))


async def test_a_name_that_resolves_differently_the_next_time_gains_nothing() -> None:
    """The first answer is judged and connected to; nobody asks a second time."""
    server, port, heard = await receiver(b"HTTP/1.1 204 No Content\r\n\r\n")
    resolver = resolves_to([OPEN], ["127.0.0.1"])
    got = await outbound.post(
        f"http://rebinds.example:{port}/", {}, b"{}", allowed=ALLOWED, resolver=resolver
    )
    server.close()
    assert (got.status, got.error, tried, resolver.asked) == (
        204, None, [OPEN], ["rebinds.example"],
    )  # fmt: skip
    assert b"Host: rebinds.example" in heard[0]


async def test_what_the_operator_opened_opens_nothing_beside_it() -> None:
    for answer in ([OPEN, "127.0.0.1"], ["127.0.0.1"], ["10.0.0.1", OPEN]):
        got = await outbound.post(
            "http://inside.example:80/", {}, b"{}", allowed=ALLOWED, resolver=resolves_to(answer)
        )
        assert (got.status, tried) == (None, [])
    # http and other ports are for what is opened, and not for the public.
    for url in ("http://outside.example/", "https://outside.example:6379/"):
        resolver = resolves_to(["93.184.216.34"])
        got = await outbound.post(url, {}, b"{}", allowed=ALLOWED, resolver=resolver)
        assert (got.status, tried) == (None, [])


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    server, port, _ = await receiver(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 4\r\n\r\nover"
    )
    got = await outbound.post(
        f"http://{OPEN}:{port}/", {}, b"{}", allowed=ALLOWED, resolver=resolves_to([OPEN])
    )
    server.close()
    assert (got.status, got.body, tried) == (302, "over", [OPEN])


@pytest.mark.parametrize(
    "answer",
    [b"", b"\r\n\r\n", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n",
     b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n"],
)  # fmt: skip
async def test_what_is_no_answer_is_a_failure_with_a_reason(answer: bytes) -> None:
    server, port, _ = await receiver(answer)
    got = await outbound.post(
        f"http://{OPEN}:{port}/", {}, b"{}", allowed=ALLOWED, resolver=resolves_to([OPEN])
    )
    server.close()
    assert got.status is None and got.error


async def test_an_answer_is_waited_for_so_long_and_only_its_beginning_is_read() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/silent" in head:
            # Until nobody waits any more.
            await reader.read()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000)
        writer.close()

    server = await asyncio.start_server(serve, OPEN, 0)
    port = server.sockets[0].getsockname()[1]
    given: dict[str, Any] = {"allowed": ALLOWED, "resolver": resolves_to([OPEN])}
    slow = await outbound.post(f"http://{OPEN}:{port}/silent", {}, b"{}", timeout_s=0.2, **given)
    assert slow.status is None and "0.2 s" in (slow.error or "") and slow.latency_ms < 1_500
    long = await outbound.post(f"http://{OPEN}:{port}/", {}, b"{}", **given)
    assert (long.status, len(long.body)) == (200, outbound.BODY_BYTES_MAX)
    server.close()


def test_there_are_enough_of_them() -> None:
    assert len(CLOSED) * 2 + len(WRITTEN) >= 120
