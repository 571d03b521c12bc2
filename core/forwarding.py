"""`./vauchflow listen` and `trigger`: webhooks on a developer's own machine, without one.

`listen` asks the API for new events and hands them to an address, signed as a webhook's would be.
"""

import asyncio
import base64
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from core import demo, outbound, webhooks
from core.settings import SettingsError

# Somebody is looking at a screen.
LOOK_S: Final = 0.5
TIMEOUT_S: Final = 10.0
PAGE: Final = 100
# Where events are forwarded to is the choice of who runs this.
ANYWHERE: Final = outbound.networks_of("0.0.0.0/0, ::/0")


class _Page(msgspec.Struct):
    data: list[dict[str, msgspec.Raw]]
    has_more: bool


class Desk:
    """Talks to the API with a secret key: a given one, or that of the demo project."""

    def __init__(self, data_dir: Path, base_url: str | None, key: str | None) -> None:
        """Raises: SettingsError, where neither a key nor a demo project is there."""
        if base_url is None or key is None:
            try:
                known = msgspec.json.decode((data_dir / demo.DEMO_FILE).read_bytes())
            except OSError:
                raise SettingsError("give --url and --key: there is no demo project here") from None
            base_url, key = base_url or known["base_url"], key or known["secret_key"]
        self._base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def ask(self, path: str, body: Any = None) -> bytes:
        """Send one request. Raises: SettingsError with the API's own words; OSError."""
        request = urllib.request.Request(  # noqa: S310 - the operator's own address
            self._base_url + path,
            data=None if body is None else msgspec.json.encode(body),
            headers=self._headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise SettingsError(f"the API answered {error.code}: {error.read().decode()}") from None

    def after(self, seen: str | None) -> list[dict[str, msgspec.Raw]]:
        """Return events that came after one, the oldest first; the last one where none is given."""
        found: list[dict[str, msgspec.Raw]] = []
        cursor = ""
        while True:
            limit = 1 if seen is None else PAGE
            text = self.ask(f"/v1/events?limit={limit}{cursor}")
            page = msgspec.json.decode(text, type=_Page)
            for event in page.data:
                if seen is not None and _text(event["id"]) <= seen:
                    return found[::-1]
                found.append(event)
            if seen is None or not page.has_more:
                return found[::-1]
            cursor = f"&starting_after={_text(page.data[-1]['id'])}"


def _text(raw: msgspec.Raw) -> str:
    return str(msgspec.json.decode(raw))


async def listen(desk: Desk, forward_to: str, say: Callable[[str], None]) -> None:
    """Forward what happens from now on, until cancelled; each event once, whatever is answered."""
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    last = await asyncio.to_thread(desk.after, None)
    seen = _text(last[0]["id"]) if last else ""
    say(f"forwarding to {forward_to}, signed with {secret}")
    while True:
        for event in await asyncio.to_thread(desk.after, seen):
            seen = _text(event["id"])
            body = msgspec.json.encode(event)
            signed = webhooks.headers([secret], seen, int(time.time()), body)
            got = await outbound.post(forward_to, signed, body, allowed=ANYWHERE)
            say(f"{_text(event['type'])}  {seen}  {got.status or got.error}  {got.latency_ms} ms")
        await asyncio.sleep(LOOK_S)


def trigger(desk: Desk, type: str) -> None:
    """Have an example of a type told to whoever listens. Raises: SettingsError; OSError."""
    desk.ask("/v1/webhooks/test", {"type": type})
