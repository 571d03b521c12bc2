"""Forms: described once, shown by `form.html`, and read through the API's own gate for bodies.

What was typed becomes the JSON that the API would take, so a form can ask for nothing that a
request could not, and is refused with the same sentences.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import msgspec
from litestar import Request

from api import bodies
from core.errors import Invalid

T = TypeVar("T")
Given = Mapping[str, str]
# Many times the largest form; a million empty fields are a second of work.
FIELDS_MAX: Final = 300
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", re.ASCII)
_BETWEEN: Final = re.compile(r"[,\r\n]")

Kind = Literal["text", "password", "email", "number", "time", "choice", "tick", "area", "words"]


class Field(msgspec.Struct, frozen=True):
    """One question of a form. `name` is the member's path in the request, such as `rules.code`.

    `clears`: an empty answer is null instead of left out. `words` are several, parted by commas.
    """

    name: str
    label: str
    kind: Kind = "text"
    hint: str = ""
    choices: Sequence[tuple[str, str]] = ()
    required: bool = False
    clears: bool = False
    value: str = ""
    suffix: str = ""
    autocomplete: str = "off"


async def received(request: "Request[Any, Any, Any]") -> dict[str, str]:
    """Read a posted form. Raises: Invalid, PayloadTooLarge."""
    raw = await bodies.receive_body(request.receive)
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, errors="strict",
            max_num_fields=FIELDS_MAX,
        )  # fmt: skip
    except ValueError:
        raise Invalid("The form is malformed.") from None
    return dict(pairs)


def read(
    type_: type[T],
    fields: Sequence[Field],
    given: Given,
    zone: str,
    more: Mapping[str, Any] | None = None,
) -> T:
    """Return what the form asks for; `more` are members that are no fields. Raises: Invalid."""
    members: dict[str, Any] = {}
    for field in fields:
        text = given.get(field.name, "").strip()
        value = _value(field, text, zone)
        if value is not None or field.clears:
            _put(members, field.name, value)
    for name, value in (more or {}).items():
        _put(members, name, value)
    return bodies.decode(msgspec.json.encode(members), type_)


def _put(members: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for name in above:
        members = members.setdefault(name, {})
    members[last] = value


def _value(field: Field, text: str, zone: str) -> Any:
    if field.kind == "tick":
        return text == "on"
    if not text:
        return None
    if field.kind == "number":
        return number(text)
    if field.kind == "time":
        return _instant(text, zone)
    if field.kind == "words":
        return words(text)
    return text


def words(text: str) -> list[str]:
    """Return what is parted by commas or lines, without what is empty."""
    return [word for word in map(str.strip, _BETWEEN.split(text)) if word]


def number(text: str) -> Any:
    """Return a number's text as JSON; other text stays text, which the gate refuses."""
    return msgspec.Raw(text.encode()) if _NUMBER.fullmatch(text) else text


def _instant(text: str, zone: str) -> str:
    """Return a clock's reading in the project's time zone as an instant."""
    try:
        local = datetime.fromisoformat(text)
    except ValueError:
        return text
    return local.replace(tzinfo=ZoneInfo(zone)).isoformat() if local.tzinfo is None else text


def reading(at: datetime | None, zone: str) -> str:
    """Return an instant as such a field shows it."""
    return "" if at is None else f"{at.astimezone(ZoneInfo(zone)):%Y-%m-%dT%H:%M}"


def blamed(fields: Sequence[Field], path: str | None) -> str | None:
    """Return the name of the field that a fault speaks of, None where none is."""
    named = [f.name for f in fields if path and (path == f.name or path.startswith(f.name))]
    return max(named, key=len, default=None)
