"""Mail to people, by an operator's SMTP server; where none is set, it is written to the log.

A mail waits in its process and is tried a few times. One that is lost with its process is asked for
again by whoever waits for it: all that is sent from here can be.
"""

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
import structlog

from core.errors import Unavailable
from core.settings import Settings

# At a second each, what a server takes longer for is not read at once either.
WAITING_MAX: Final = 1_000
# A server that is restarted is back within half a minute.
PAUSES_S: Final = (1.0, 5.0, 30.0)
# What a slow server needs to greet; ten times what one does.
TIMEOUT_S: Final = 10.0
# A process that ends waits so long for what is being sent.
DRAIN_S: Final = 5.0

_log = structlog.get_logger("vauchflow.mails")


class Mail(msgspec.Struct, frozen=True):
    """A mail of plain text to one address."""

    to: str
    subject: str
    text: str


class Mailer:
    """Sends mails one after the other, beside whoever asked for them."""

    def __init__(self, settings: Settings) -> None:
        """Open nothing: `run` sends."""
        self._settings = settings
        self._waiting: asyncio.Queue[Mail] = asyncio.Queue(WAITING_MAX)

    def send(self, mail: Mail) -> None:
        """Have a mail sent soon. Raises: Unavailable (overloaded), when too many wait."""
        try:
            self._waiting.put_nowait(mail)
        except asyncio.QueueFull:
            raise Unavailable("Too many mails wait to be sent.", code="overloaded") from None

    async def run(self) -> None:
        """Send what waits, until cancelled."""
        while True:
            mail = await self._waiting.get()
            try:
                await self._deliver(mail)
            finally:
                self._waiting.task_done()

    async def drain(self) -> None:
        """Wait a little for what is still to be sent."""
        try:
            await asyncio.wait_for(self._waiting.join(), DRAIN_S)
        except TimeoutError:
            _log.warning("mails_lost", count=self._waiting.qsize() + 1)

    async def _deliver(self, mail: Mail) -> None:
        if not self._settings.smtp_url:
            _log.info("mail", to=mail.to, subject=mail.subject, text=mail.text)
            return
        for pause_s in (*PAUSES_S, None):
            try:
                await asyncio.to_thread(_send, self._settings, mail)
            except (OSError, smtplib.SMTPException) as error:
                _log.warning("mail_not_sent", subject=mail.subject, error=type(error).__name__)
                if pause_s is None or isinstance(error, smtplib.SMTPRecipientsRefused):
                    return
                await asyncio.sleep(pause_s)
            else:
                return


def _send(settings: Settings, mail: Mail) -> None:
    message = EmailMessage()
    message["From"] = settings.mail_from
    message["To"] = mail.to
    message["Subject"] = mail.subject
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain="vauchflow")
    message.set_content(mail.text)
    url = urlsplit(settings.smtp_url)
    host = url.hostname or "localhost"
    context = ssl.create_default_context()
    connection: smtplib.SMTP
    if url.scheme == "smtps":
        connection = smtplib.SMTP_SSL(host, url.port or 465, timeout=TIMEOUT_S, context=context)
    else:
        connection = smtplib.SMTP(host, url.port or 587, timeout=TIMEOUT_S)
    with connection:
        connection.ehlo()
        if url.scheme == "smtp" and connection.has_extn("starttls"):
            connection.starttls(context=context)
            connection.ehlo()
        if url.username is not None:
            connection.login(unquote(url.username), unquote(url.password or ""))
        connection.send_message(message)
