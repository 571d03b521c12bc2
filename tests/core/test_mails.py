"""Mails arrive whole at a real SMTP server, are tried again, and never hold anybody up."""

import asyncio
import email
import email.policy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from core import mails
from core.endings import end
from core.errors import Unavailable
from core.mails import Mail, Mailer
from core.settings import Settings

pytestmark = pytest.mark.anyio


class Post:
    """As much of an SMTP server as a mail needs; `refusals` says how often it is busy first."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.tries = 0
        self.received: list[email.message.EmailMessage] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tries += 1
        is_busy = self.tries <= self.refusals
        writer.write(b"421 busy\r\n" if is_busy else b"220 post\r\n")
        while not is_busy and (line := await reader.readline()):
            verb = line[:4].upper()
            if verb == b"DATA":
                writer.write(b"354 go on\r\n")
                raw = (await reader.readuntil(b"\r\n.\r\n"))[:-3].replace(b"\r\n..", b"\r\n.")
                self.received.append(email.message_from_bytes(raw, policy=email.policy.default))
            writer.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
            if verb == b"QUIT":
                break
        await writer.drain()
        writer.close()


@asynccontextmanager
async def posting(settings: Settings, post: Post) -> AsyncIterator[Mailer]:
    server = await asyncio.start_server(post.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mailer = Mailer(
        msgspec.structs.replace(
            settings, smtp_url=f"smtp://127.0.0.1:{port}", mail_from="Shop <shop@example.com>"
        )
    )
    running = asyncio.create_task(mailer.run())
    try:
        yield mailer
    finally:
        await end(running)
        server.close()
        await server.wait_closed()


async def test_a_mail_arrives_as_it_was_written(settings: Settings) -> None:
    post = Post()
    async with posting(settings, post) as mailer:
        mailer.send(Mail("anna@example.com", "Grüße", "Hallo Änna\n.\nhttps://x.example/?t=1\n"))
        await mailer.drain()

    message = post.received[0]
    assert (message["To"], message["From"]) == ("anna@example.com", "Shop <shop@example.com>")
    assert message["Subject"] == "Grüße"
    assert message.get_content().splitlines() == ["Hallo Änna", ".", "https://x.example/?t=1"]
    assert len(post.received) == 1


async def test_a_busy_server_is_tried_again_and_the_mail_comes_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mails, "PAUSES_S", (0.01, 0.01, 0.01))
    post = Post(refusals=2)
    async with posting(settings, post) as mailer:
        mailer.send(Mail("anna@example.com", "s", "t"))
        await mailer.drain()

    assert (post.tries, len(post.received)) == (3, 1)


async def test_a_server_that_is_away_costs_one_mail_and_not_the_next(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mails, "PAUSES_S", (0.01,))
    post = Post(refusals=2)
    async with posting(settings, post) as mailer:
        mailer.send(Mail("first@example.com", "s", "t"))
        mailer.send(Mail("second@example.com", "s", "t"))
        await mailer.drain()

    assert [message["To"] for message in post.received] == ["second@example.com"]


async def test_mails_that_nobody_sends_do_not_pile_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mails, "WAITING_MAX", 2)
    mailer = Mailer(settings)
    for _ in range(2):
        mailer.send(Mail("anna@example.com", "s", "t"))

    with pytest.raises(Unavailable):
        mailer.send(Mail("anna@example.com", "s", "t"))
