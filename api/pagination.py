"""Query parameters, and lists: `limit`, `starting_after`, `{"data": […], "has_more": …}`."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, Generic, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec
from litestar import Request

from core import ids
from core.errors import Invalid

T = TypeVar("T")

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 100
# A filter is a code, an id or a date; the longest is a customer's or an order's id.
_TEXT_LENGTH_MAX: Final = 255
_PARAMETERS_MAX: Final = 50


class Page(msgspec.Struct, frozen=True):
    """The part of a list that was asked for. Ask the database for one more than `limit`."""

    limit: int
    after: UUID | None
    filters: dict[str, str]


class Listed(msgspec.Struct, Generic[T], frozen=True):
    """A list as the API shows it."""

    data: list[T]
    has_more: bool


def asked(request: "Request[Any, Any, Any]", prefix: ids.Prefix, *filters: str) -> Page:
    """Read the query of a list; each of `filters` may be given once.

    Raises: Invalid, with `field`, for unknown, doubled, overlong and malformed parameters.
    """
    given = parameters(request, "limit", "starting_after", *filters)
    limit = limit_of(given)
    after = None
    if (cursor := given.pop("starting_after", None)) is not None:
        after = ids.parse_id(prefix, cursor)
        if after is None:
            raise Invalid(
                f"starting_after must be the id ({prefix}_…) of the last object you have",
                field="starting_after",
            )
    return Page(limit, after, given)


def asked_by_number(request: "Request[Any, Any, Any]") -> tuple[int, int | None]:
    """Read the query of a list whose cursor is a number: the limit, and the number or None.

    Raises: Invalid, as `asked`.
    """
    given = parameters(request, "limit", "starting_after")
    limit = limit_of(given)
    cursor = given.get("starting_after")
    if cursor is None:
        return limit, None
    after = _whole(cursor, digits_max=15)
    if after is None:
        raise Invalid(
            "starting_after must be the number of the last object you have", field="starting_after"
        )
    return limit, after


def limit_of(given: dict[str, str]) -> int:
    """Take the limit out of a query's parameters. Raises: Invalid, with `field`."""
    limit = _whole(given.pop("limit", str(LIMIT_DEFAULT)), digits_max=4)
    if limit is None or not 1 <= limit <= LIMIT_MAX:
        raise Invalid(f"limit must be a whole number from 1 to {LIMIT_MAX}", field="limit")
    return limit


def _whole(text: str, *, digits_max: int) -> int | None:
    # Not isdigit alone: that lets in digits of other scripts, which int() takes, too.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits_max else None


def parameters(request: "Request[Any, Any, Any]", *allowed: str) -> dict[str, str]:
    """Return the query's parameters. Raises: Invalid, as `asked`."""
    query = request.scope.get("query_string", b"")
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict",
            max_num_fields=_PARAMETERS_MAX,
        )  # fmt: skip
    except ValueError:
        raise Invalid("The query of the address is malformed.") from None
    given: dict[str, str] = {}
    for name, text in pairs:
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise Invalid(f"{name[:40]!a} is not known here; there are: {known}", field=name[:40])
        if name in given:
            raise Invalid(f"{name} is given twice", field=name)
        if len(text) > _TEXT_LENGTH_MAX or not text.isprintable():
            raise Invalid(
                f"{name} takes at most {_TEXT_LENGTH_MAX} printable characters", field=name
            )
        given[name] = text
    return given


def one_of(page: Page, name: str, *allowed: str) -> str | None:
    """Return a filter that takes few values. Raises: Invalid, with `field`."""
    text = page.filters.get(name)
    if text is not None and text not in allowed:
        raise Invalid(f"{name} must be one of {', '.join(allowed)}", field=name)
    return text


def id_of(page: Page, name: str, prefix: ids.Prefix) -> UUID | None:
    """Return a filter that is an id. Raises: Invalid, with `field`."""
    text = page.filters.get(name)
    if text is None:
        return None
    found = ids.parse_id(prefix, text)
    if found is None:
        raise Invalid(f"{name} must be an id ({prefix}_…)", field=name)
    return found


def instant_of(page: Page, name: str, *, is_end: bool = False) -> datetime | None:
    """Read a filter that is an instant or a day; a day as `to` includes itself."""
    text = page.filters.get(name)
    if text is None:
        return None
    try:
        if len(text) == len("2030-01-31"):
            day = date.fromisoformat(text) + timedelta(days=is_end)
            return datetime.combine(day, time(), UTC)
        at = datetime.fromisoformat(text.replace(" ", "+"))
        if at.tzinfo is not None:
            return at
    except (ValueError, OverflowError):
        pass
    raise Invalid(
        f"{name} must be a day such as 2030-01-31 or a time such as 2030-01-31T12:00:00Z",
        field=name,
    )


def listed(rows: list[T], page: Page) -> Listed[T]:
    """Cut the row that only tells whether there are more."""
    return Listed(rows[: page.limit], len(rows) > page.limit)
