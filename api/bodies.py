"""The one gate for JSON bodies, for every address: size, depth, names, characters, types.

Everything a body can be refused for is found before anything is looked up or stored, and the
problem names the member. The common case costs one typed decode and a few scans at C speed; only
what looks unusual is read a second time, exactly.
"""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Literal, NoReturn, TypeVar, get_args, get_origin

import msgspec
from litestar import Request

from core.errors import Invalid, PayloadTooLarge, UnsupportedMediaType

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]

# The largest ordinary request, 50 members of metadata with 500 four-byte characters each, has
# 100 kB in theory and 5 kB in practice.
BODY_BYTES_MAX: Final = 65_536
# A client that sends too much is read to its end, so that it gets the answer instead of a reset
# connection, up to this many bytes.
DISCARD_BYTES_MAX: Final = 32 * 1_048_576
# 64 kB at the 56 kbit/s of the worst mobile link; a slower client holds a slot for nothing.
BODY_S_MAX: Final = 10.0
# Requests here nest three deep.
DEPTH_MAX: Final = 32


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request whose address says everything."""


_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKETS: Final = re.compile(rb"[\[{]|[\]}]")
# Steps over every string, so that it never begins inside one; names are kept, the rest is empty.
_NAMES: Final = re.compile(rb'("[^"]*")\s*:|"[^"]*"')

_PATH: Final = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_INDEX: Final = re.compile(r"\[\d+\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>.*)`$", re.DOTALL)
_TYPES: Final = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<got>[^`]*)`$")
_BOUND: Final = re.compile(r"Expected `(?:int|float)[^`]*` (?P<sign>[<>]=?) (?P<limit>\S+)$")
_LENGTH: Final = re.compile(
    r"Expected `(?P<kind>\w+)[^`]*` of length (?P<sign>[<>]=) (?P<limit>\d+)$"
)
_A_TYPE: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
    "datetime": "a time such as 2030-01-31T12:00:00Z",
}
_SIGN: Final = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def check_media_type(content_type: bytes | None) -> None:
    """Accept JSON in any of its names, and bodies that do not say what they are.

    Raises: UnsupportedMediaType.
    """
    if content_type is None:
        return
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type in (b"application/json", b"text/json", b"") or media_type.endswith(b"+json"):
        return
    raise UnsupportedMediaType("The body must be JSON; send Content-Type: application/json.")


async def receive_body(receive: Receive, *, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """Read a body whole.

    Raises: PayloadTooLarge beyond `bytes_max`, Invalid when the client hangs up half-way or takes
    longer than BODY_S_MAX.
    """
    try:
        async with asyncio.timeout(BODY_S_MAX):
            return await _pieced_together(receive, bytes_max)
    except TimeoutError:
        raise too_slow() from None


async def _pieced_together(receive: Receive, bytes_max: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    more_body = True
    while more_body:
        message = await receive()
        if message["type"] != "http.request":
            raise cut_off()
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        more_body = message.get("more_body", False)
        if size > bytes_max:
            if more_body:
                await _discard(receive, size)
            raise PayloadTooLarge(f"The body may have at most {bytes_max} bytes.")
    return b"".join(pieces)


def cut_off() -> Invalid:
    """Return the fault of a body that ends before it should, or comes in chunks that are none."""
    return Invalid("The request ended before its body did.")


def too_slow() -> Invalid:
    """Return the fault of a body that does not arrive."""
    return Invalid(f"The body did not arrive within {BODY_S_MAX:.0f} seconds.")


async def _discard(receive: Receive, size: int) -> None:
    while size <= DISCARD_BYTES_MAX:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


async def received(
    request: "Request[Any, Any, Any]",
    type_: type[T],
    *,
    is_optional: bool = False,
    bytes_max: int = BODY_BYTES_MAX,
) -> tuple[bytes, T]:
    """Read and decode the body of an ordinary request; its bytes tell it from another.

    With `is_optional`, no body at all is an empty object.

    Raises: Invalid, PayloadTooLarge, UnsupportedMediaType.
    """
    headers = request.scope["headers"]
    check_media_type(next((v for k, v in headers if k == b"content-type"), None))
    raw = await receive_body(request.receive, bytes_max=bytes_max)
    if is_optional and not raw:
        raw = b"{}"
    return raw, decode(raw, type_)


async def received_nothing(request: "Request[Any, Any, Any]") -> None:
    """Read the body of a request that takes none: nothing at all, or `{}`.

    Raises: Invalid, PayloadTooLarge.
    """
    raw = await receive_body(request.receive)
    if raw:
        decode(raw, Nothing)


# One a request's struct, made on its first request.
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode(raw: bytes, type_: type[T]) -> T:
    """Read a body as a struct. Raises: Invalid, with `field` where one is to blame."""
    if not raw:
        raise Invalid("The body is empty; send a JSON object.")
    if raw.count(b"{") + raw.count(b"[") > DEPTH_MAX:
        _check_depth(raw)
    try:
        decoder = _decoders.get(type_)
        if decoder is None:
            decoder = _decoders[type_] = msgspec.json.Decoder(type_)
        value: T = decoder.decode(raw)
    except msgspec.ValidationError as error:
        _check_exactly(raw)
        _raise_invalid(str(error), type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _check_exactly(raw)
        raise Invalid(f"The body is not valid JSON: {_reason(error)}.") from None
    # Without backslashes every pair of quotes is one string, and no character is smuggled in.
    # Equal names in different objects are no fault, but rare enough to be looked at exactly.
    if b"\\" in raw or b"\x7f" in raw or not raw.isascii():
        _check_exactly(raw)
    else:
        names = [name for name in _NAMES.findall(raw) if name]
        if len(names) != len(set(names)):
            _check_exactly(raw)
    return value


def canonical(raw: bytes) -> bytes:
    """Return one text for all bodies of the same meaning: names sorted, no spaces, 5.0 as 5.

    Call it only with what `decode` accepted. Raises: Invalid for a number of thousands of digits,
    which no member takes.
    """
    try:
        return msgspec.json.encode(_GENERIC.decode(raw), order="sorted")
    except msgspec.DecodeError:
        raise Invalid("A number in the body is out of range.") from None


def _one_number(text: str) -> int | str:
    value = float(text)
    if abs(value) < _EXACT_MAX and value.is_integer():
        return int(value)
    # No string of a body begins with NUL, so this is no string's text.
    return f"\0{text if math.isinf(value) else value!r}"


# From here on a double does not hold every whole number.
_EXACT_MAX: Final = 2**53
_GENERIC: Final = msgspec.json.Decoder(float_hook=_one_number)


def _reason(error: Exception) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it ends too early" if text == "Input data was truncated" else text


def _check_depth(raw: bytes) -> None:
    depth = 0
    for bracket in _BRACKETS.findall(_STRING.sub(b"", raw)):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEPTH_MAX:
            raise Invalid(f"The body is nested more than {DEPTH_MAX} deep.")


def _check_exactly(raw: bytes) -> None:
    """Find doubled names and forbidden characters wherever they are. Raises: Invalid."""
    try:
        # Numbers are not looked at here, and Python refuses integers of 5,000 digits.
        document = json.loads(
            raw, object_pairs_hook=_Pairs, parse_constant=_not_finite,
            parse_int=_any_number, parse_float=_any_number,
        )  # fmt: skip
    except (ValueError, RecursionError):
        # Not JSON at all: the typed decoder has said so, or is about to.
        return
    _check_value(document, "")


class _Pairs(list[tuple[str, Any]]):
    """The members of one object in order, doubled ones included."""


class _NotFinite:
    """NaN or an infinity, which JSON does not have."""


def _any_number(_text: str) -> int:
    return 0


def _not_finite(_name: str) -> _NotFinite:
    return _NotFinite()


def _check_value(value: Any, path: str) -> None:
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, _Pairs):
        seen = set()
        for name, item in value:
            _check_text(name, path)
            below = f"{path}.{name}" if path else name
            if name in seen:
                raise Invalid(f"{below} is given twice", field=below)
            seen.add(name)
            _check_value(item, below)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_value(item, f"{path}[{index}]")
    elif isinstance(value, _NotFinite):
        raise Invalid(f"{path or 'The body'} must be a finite number", field=path or None)


def _check_text(text: str, path: str) -> None:
    if any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in text):
        raise Invalid(
            f"{path or 'The body'} holds a control character or half a surrogate pair",
            field=path or None,
        )


def _raise_invalid(message: str, type_: type[Any]) -> NoReturn:
    """Turn a message of msgspec into a field and a sentence that says the mend."""
    where = _PATH.search(message)
    path = where["path"].replace("[...]", "") if where else ""
    text = message[: where.start()] if where else message
    for pattern, ending in ((_UNKNOWN, "is not known here"), (_MISSING, "is required")):
        if found := pattern.match(text):
            field = f"{path}.{found['name']}" if path else found["name"]
            raise Invalid(f"{field} {ending}", field=field)
    subject = path or "The body"
    raise Invalid(f"{subject} {_mend(text, path, type_)}", field=path or None)


def _mend(text: str, path: str, type_: type[Any]) -> str:
    if found := _TYPES.match(text):
        wanted = " or ".join(_A_TYPE.get(w, w) for w in found["wanted"].split(" | "))
        return f"must be {wanted}, not {_A_TYPE.get(found['got'], found['got'])}"
    if found := _BOUND.match(text):
        return f"must be {_SIGN[found['sign']]} {found['limit']}"
    if found := _LENGTH.match(text):
        unit = "characters" if found["kind"] == "str" else "members"
        return f"must have {_SIGN[found['sign']]} {found['limit']} {unit}"
    if "timezone" in text:
        return "must say its offset from UTC, such as 2030-01-31T12:00:00Z"
    if "RFC3339" in text:
        return "must be a time such as 2030-01-31T12:00:00Z"
    if text.startswith("Invalid enum value"):
        return f"must be one of {', '.join(_allowed(type_, path))}"
    return f"cannot be used: {text[:1].lower()}{text[1:]}"


def _allowed(type_: Any, path: str) -> list[str]:
    """Return the values a member takes, by its path through nested structs and lists."""
    for name in filter(None, _INDEX.sub("", path).split(".")):
        for candidate in _parts(type_):
            if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
                fields = msgspec.structs.fields(candidate)
                type_ = next(f.type for f in fields if f.encode_name == name)
                break
    return [
        str(value) for option in _parts(type_) if get_origin(option) is Literal
        for value in get_args(option)
    ]  # fmt: skip


def _parts(type_: Any) -> Iterator[Any]:
    """Yield a type and what it is made of: the members of unions and lists."""
    yield type_
    if get_origin(type_) is not Literal:
        for part in get_args(type_):
            yield from _parts(part)
