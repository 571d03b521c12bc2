"""Templates, and how amounts, times and states are written in them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import jinja2
import msgspec
from litestar.response import Response
from markupsafe import Markup

from api.dashboard import assets
from core import ids

TEMPLATES: Final = Path(__file__).with_name("templates")
# Nothing runs, styles or is asked for but what this server sends, and nothing inline.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_SYMBOLS: Final = {"EUR": "€", "USD": "$", "GBP": "£", "JPY": "¥", "INR": "₹", "KRW": "₩"}
_TONES: Final[dict[str, str]] = {
    state: tone
    for tone, states in {
        "good": "active open redeemed rewarded done delivered settled approved final dismissed",
        "calm": "scheduled draft running attributed converted invited pending acknowledged",
        "warn": "paused sold_out rolled_back lapsed cancelled archived",
        "bad": "disabled dead fenced rejected reversed revoked deleting confirmed",
    }.items()
    for state in states.split()
}

# What a redirect may say of the change before it; the address carries the name alone.
NOTICES: Final = {
    "created": "Created.",
    "saved": "Saved.",
    "disabled": "Disabled. Nobody can redeem it until it is enabled again.",
    "enabled": "Enabled.",
    "rolled-back": "Rolled back. The unit can be redeemed again.",
    "paused": "Paused.",
    "resumed": "Running again.",
    "ended": "Ended for good.",
    "activated": "Active.",
    "opened": "Open. Every worker serves the sale.",
    "closed": "Closed. What was won is settled within moments.",
    "cloned": "This is the copy, a draft.",
    "approved": "Approved.",
    "rejected": "Rejected.",
    "erased": "Erased. The books keep their rows under a random name.",
    "tried": "An example is on its way.",
    "sent-again": "On its way again.",
    "removed": "Removed.",
    "invited": "The invitation is on its way by mail.",
    "revoked": "Revoked. It stops working everywhere within a second.",
    "cancelled": "Cancelled. What was made stays.",
    "issued": "Issued.",
    "blocked": "Blocked. It is refused everywhere within a second.",
    "lifted": "Lifted. It can redeem again.",
    "plan-changed": "The plan is changed from this hour on.",
    "archived": "Archived. Its keys have stopped, and nothing in it changes until it is restored.",
    "restored": "Restored. Its keys work again.",
    "deleting": "On its way out: sales are closed and settled, then nothing of it is left.",
    "password": "Your password is changed. Everywhere else you are logged out.",
    "second-factor-off": "The second factor is off.",
    "session-ended": "Logged out there.",
}

# What takes a change back, by the noun of the page it was made on and what the address says of it.
_UNDO: Final = {
    ("vouchers", "disabled"): "enable",
    ("vouchers", "enabled"): "disable",
    ("gift-cards", "disabled"): "enable",
    ("gift-cards", "enabled"): "disable",
    ("campaigns", "paused"): "resume",
    ("campaigns", "resumed"): "pause",
    ("flash-sales", "paused"): "open",
    ("flash-sales", "opened"): "pause",
}

# The pages of a project: address, icon, name, and the letter that leads there after a g.
NAVIGATION: Final = (
    ("", (("", "home", "Home", "h"),)),
    (
        "Sell",
        (
            ("/vouchers", "vouchers", "Vouchers", "v"),
            ("/campaigns", "campaigns", "Campaigns", "c"),
            ("/flash-sales", "flash-sales", "Flash sales", "f"),
            ("/gift-cards", "gift-cards", "Gift cards", "g"),
            ("/referrals", "referrals", "Referrals", "r"),
        ),
    ),
    (
        "Watch",
        (
            ("/redemptions", "redemptions", "Redemptions", "m"),
            ("/reports", "reports", "Reports", "d"),
            ("/customers", "customers", "Customers", "u"),
            ("/segments", "segments", "Segments", "s"),
            ("/fraud", "fraud", "Fraud", "l"),
            ("/approvals", "approvals", "Approvals", "a"),
        ),
    ),
    (
        "Build",
        (
            ("/developers", "developers", "API keys", "k"),
            ("/webhooks", "webhooks", "Webhooks", "w"),
            ("/events", "events", "Events", "e"),
            ("/requests", "requests", "Request log", "q"),
            ("/audit-log", "audit-log", "Audit log", "o"),
        ),
    ),
    (
        "Account",
        (
            ("/team", "team", "Team", "t"),
            ("/billing", "billing", "Billing", "b"),
            ("/settings", "settings", "Settings", "p"),
        ),
    ),
)


# The table that a page can be downloaded as; True: of the one thing that its address ends with.
_TABLES: Final = {
    "campaigns.html": ("campaigns", False),
    "redemptions.html": ("redemptions", False),
    "flash_sales.html": ("flash-sales", False),
    "gift_cards.html": ("gift-cards", False),
    "gift_card.html": ("entries", True),
    "referrals.html": ("referrals", False),
    "customers.html": ("customers", False),
    "segments.html": ("segments", False),
    "events.html": ("events", False),
    "audit_log.html": ("audit-log", False),
    "batches.html": ("batches", False),
    "webhook.html": ("deliveries", True),
}


def table_of(template: str, path: str, query: Mapping[str, str]) -> str | None:
    """Return where a page's list is downloaded, below the project, with the page's own filters."""
    if template not in _TABLES:
        return None
    name, is_of_one = _TABLES[template]
    given = {"of": path.rpartition("/")[2]} if is_of_one else {}
    given |= {k: v for k, v in query.items() if v and k not in _NO_FILTERS}
    return f"/tables/{name}.csv" + (f"?{urlencode(given)}" if given else "")


_NO_FILTERS: Final = frozenset({"done", "id", "limit", "starting_after"})


def undo_of(place: str, done: str) -> str | None:
    """Return what the last part of the address is that takes back what was done on a page.

    `place`: the page's address below the project; None where nothing takes it back.
    """
    noun, *one = place.strip("/").split("/")
    return _UNDO.get((noun, done)) if len(one) == 1 else None


def render(template: str, **context: Any) -> str:
    """Return a page's text."""
    return _templates().get_template(template).render(**context)


def answer(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    """Answer a page, which nobody keeps, frames or adds to."""
    return Response(
        text.encode(),
        status_code=status,
        media_type="text/html",
        headers={"Content-Security-Policy": POLICY, **(headers or {})},
    )


def redirect(address: str, headers: dict[str, str] | None = None) -> Response[bytes]:
    """Answer 303: look there with a GET."""
    return Response(b"", status_code=303, headers={"Location": address, **(headers or {})})


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals["asset"] = assets.address_of
    environment.globals["now"] = lambda: datetime.now(UTC)
    environment.filters.update(
        amount=amount, count=count, when=when, day=day, words=words, tone=tone, plain=plain,
        signed=signed, epoch=epoch, browser=browser, public_key=partial(ids.format_id, "key"),
        segment=partial(ids.format_id, "seg"), session=partial(ids.format_id, "ses"),
    )  # fmt: skip
    environment.tests["given"] = is_given
    return environment


def is_given(value: Any) -> bool:
    """Say whether a member of an answer has a value."""
    return value is not None and value is not msgspec.UNSET


def plain(value: Any) -> str:
    """Write a JSON number's text, nothing where there is none."""
    if not is_given(value):
        return ""
    return bytes(value).decode() if isinstance(value, msgspec.Raw) else str(value)


def amount(value: Any, currency: str) -> str:
    """Write an amount of money for reading: `€1,234.50`."""
    if not is_given(value):
        return "–"
    text = plain(value)
    sign, text = ("−", text[1:]) if text.startswith("-") else ("", text)
    whole, dot, part = text.partition(".")
    symbol = _SYMBOLS.get(currency, f"{currency}\u00a0")
    return f"{sign}{symbol}{int(whole):,}{dot}{part}"


def signed(value: Any, currency: str) -> str:
    """Write a change of money with its sign: `+€5.00`."""
    text = amount(value, currency)
    return text if text.startswith(("−", "–")) else f"+{text}"


def count(value: Any) -> str:
    """Write a whole number with its thousands apart."""
    return "–" if not is_given(value) else f"{value:,}"


@jinja2.pass_context
def when(context: jinja2.runtime.Context, value: Any) -> Markup | str:
    """Write an instant on the project's clock."""
    at = _instant(value)
    if at is None:
        return "–"
    local = at.astimezone(ZoneInfo(context.get("zone") or "UTC"))
    text = f"{local.day} {local:%b %Y, %H:%M}"
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), text)


@jinja2.pass_context
def day(context: jinja2.runtime.Context, value: Any) -> Markup | str:
    """Write the day of an instant on the project's clock."""
    at = _instant(value)
    if at is None:
        return "–"
    local = at.astimezone(ZoneInfo(context.get("zone") or "UTC"))
    text = f"{local.day} {local:%b %Y}"
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), text)


def _instant(value: Any) -> datetime | None:
    if not is_given(value):
        return None
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def epoch(iso_day: str) -> int:
    """Return a day as the seconds a chart counts."""
    return int(datetime.fromisoformat(iso_day).replace(tzinfo=UTC).timestamp())


# The first that an agent's text has: browsers name those they want to be taken for as well.
_BROWSERS: Final = (
    ("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"),
    ("Safari/", "Safari"), ("curl/", "curl"),
)  # fmt: skip
_SYSTEMS: Final = (
    ("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("Windows", "Windows"),
    ("Mac OS", "macOS"), ("Linux", "Linux"),
)  # fmt: skip
_AGENT_LENGTH_MAX: Final = 40


def browser(agent: str | None) -> str:
    """Write what a browser says of itself for reading: `Firefox on Windows`."""
    text = agent or "–"
    found = [next((name for mark, name in kinds if mark in text), None)
             for kinds in (_BROWSERS, _SYSTEMS)]  # fmt: skip
    told = " on ".join(name for name in found if name)
    return told if found[0] else text[:_AGENT_LENGTH_MAX]


def words(value: Any) -> str:
    """Write a name of the API for reading: `sold_out` as `Sold out`."""
    return str(value).replace("_", " ").capitalize()


def tone(status: str) -> str:
    """Return the colour of a state."""
    return _TONES.get(status, "calm")
