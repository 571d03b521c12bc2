"""/openapi.json and /docs: the API described from its routes and structs, without any CDN.

Bodies are decoded by `api.bodies`, not by Litestar, so the description is made here, from the
same structs. The two hot doors describe themselves through `HOT`.
"""

import html
import inspect
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from litestar import Request, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

from api.auth import CSRF, PROJECT, cookie_name, scope_of
from api.errors import Problem, codes_of, status_of
from core.errors import CODES

VERSION: Final = "0.1.0"
VENDOR_DIR: Final = Path(__file__).with_name("static") / "vendor"
# The documentation browser, one self-contained file that set-up fetches; it may be missing.
SCRIPT: Final = "scalar.js"
# It would call its makers otherwise; the page's policy forbids that as well.
CONFIGURATION: Final = msgspec.json.encode(
    {
        "withDefaultFonts": False,
        "telemetry": False,
        "hideClientButton": True,
        "showDeveloperTools": "never",
        "agent": {"disabled": True},
    }
).decode()

# Only what this server sends runs; the browser makes its styles at run time.
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

_PATH_PARAMETER: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
_PARAMETERS: Final[dict[str, str]] = {
    "limit": "How many objects at most, 1 to 100; 20 where it is not given.",
    "starting_after": "The id of the last object you have; the list goes on below it.",
    "from": "The first day, as 2030-01-31.",
    "to": "The last day, as 2030-01-31.",
}


JSON: Final = "application/json"
CSV: Final = "text/csv"
LINES: Final = "application/x-ndjson"

# Who may ask: a program or a person who is logged in, only one of them, or whoever comes.
Asker = Literal["key", "program", "person", "anybody"]
_ASKERS: Final[dict[Asker, list[dict[str, list[str]]]]] = {
    "key": [{"key": []}, {"session": []}],
    "program": [{"key": []}],
    "person": [{"session": []}],
    "anybody": [],
}
# What can be answered beside what was asked for: to whoever asks anything; where a key or a
# session is needed; and where something is written, which may run into another writer.
_OF_ALL: Final = frozenset({400, 404, 429, 503})
_OF_KNOWN: Final = frozenset({401, 402, 403})
_OF_ANYBODY: Final = frozenset({401, 403})
_OF_WRITES: Final = frozenset({409, 413, 415, 422, 504})


class Shape(msgspec.Struct, frozen=True):
    """What an address takes and gives, for its description."""

    body: Any = None
    answer: Any = None
    status: int = 200
    query: tuple[str, ...] = ()
    for_browsers: bool = False
    asker: Asker = "key"
    takes: tuple[str, ...] = (JSON,)
    gives: tuple[str, ...] = (JSON,)
    also: dict[int, Any] = {}


class Hot(msgspec.Struct, frozen=True):
    """An address that is answered before Litestar."""

    method: str
    path: str
    operation_id: str
    summary: str
    shape: Shape


HOT: Final[list[Hot]] = []
"""What `api.doors` answers; it adds itself."""


def shape(
    *,
    body: Any = None,
    answer: Any = None,
    status: int = 200,
    query: tuple[str, ...] = (),
    for_browsers: bool = False,
    asker: Asker = "key",
    takes: tuple[str, ...] = (JSON,),
    gives: tuple[str, ...] = (JSON,),
    also: dict[int, Any] | None = None,
) -> dict[str, Any]:
    """Return a handler's `opt` that describes it.

    `query` names what may stand behind the question mark, of a list besides `limit` and
    `starting_after`; `for_browsers`: a publishable key may call it. `takes` and `gives` are media
    types, the first of which is what comes where none is asked for. `also`: the answer by another
    status that is none of a problem.
    """
    described = Shape(body, answer, status, query, for_browsers, asker, takes, gives, also or {})
    return {"shape": described}


def describe(routes: list[HTTPRouteHandler], base_url: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of these routes and the hot doors."""
    found = list(HOT)
    for route in routes:
        if "shape" not in route.opt:
            continue
        summary = (route.fn.__doc__ or "").strip().splitlines()[0]
        for method in sorted(route.http_methods - {"HEAD", "OPTIONS"}):
            for path in route.paths:
                operation_id = str(route.operation_id)
                found.append(Hot(method, path, operation_id, summary, route.opt["shape"]))
    types = [
        t for hot in found
        for t in (hot.shape.body, hot.shape.answer, *hot.shape.also.values()) if t is not None
    ]  # fmt: skip
    types.append(Problem)
    unique = list({repr(t): t for t in types}.values())
    schemas, components = msgspec.json.schema_components(
        unique, ref_template="#/components/schemas/{name}"
    )
    _tidy(components)
    components["Problem"]["properties"]["code"]["enum"] = list(CODES)
    for component in components.values():
        _let_amounts_be_null(component)
    schema_of = {repr(t): s for t, s in zip(unique, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for hot in found:
        path = _PATH_PARAMETER.sub(r"{\1}", hot.path)
        paths.setdefault(path, {})[hot.method.lower()] = _operation(hot, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "VauchFlow",
            "version": VERSION,
            "description": "Vouchers, campaigns and flash sales that never over-redeem. Errors "
            "are RFC 9457 problems; every code is explained at /docs/errors.",
        },
        "servers": [{"url": base_url}],
        "security": _ASKERS["key"],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(components.items())),
            "responses": {
                f"Problem{status}": _problem(status, schema_of[repr(Problem)])
                for status in sorted(_OF_ALL | _OF_KNOWN | _OF_WRITES)
            },
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "vf_sk_…, vf_ak_… or vf_pk_…",
                },
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": cookie_name(base_url),
                    "description": f"Of a person who is logged in. A write sends {CSRF}, too; who "
                    f"is in several projects says which in {PROJECT}.",
                },
            },
        },
    }


def _tidy(schema: Any) -> None:
    """Say the type of enumerations, which some readers of descriptions need; unindent texts."""
    for value in schema.values() if isinstance(schema, dict) else schema:
        if not isinstance(value, dict | list):
            continue
        if isinstance(value, dict):
            if isinstance(value.get("enum"), list) and "type" not in value:
                value["type"] = "string"
            if isinstance(value.get("description"), str):
                value["description"] = inspect.cleandoc(value["description"])
        _tidy(value)


def _let_amounts_be_null(component: dict[str, Any]) -> None:
    """Say of what is sent that an amount that may be left out may also be null."""
    if component.get("additionalProperties") is not False:
        return
    for name, member in component["properties"].items():
        if member.get("type") == "number" and name not in component.get("required", ()):
            member["type"] = ["number", "null"]


def _operation(hot: Hot, schema_of: dict[str, Any]) -> dict[str, Any]:
    noun = hot.operation_id.partition(".")[0].replace("_", "-")
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PARAMETER.findall(hot.path)
    ]
    of_lists = ("limit", "starting_after") if hot.operation_id.endswith(".list") else ()
    for name in (*of_lists, *hot.shape.query):
        parameters.append(
            {
                "name": name,
                "in": "query",
                "description": _PARAMETERS.get(name, f"Only objects with this {name}."),
                "schema": {"type": "integer", "minimum": 1, "maximum": 100}
                if name == "limit"
                else {"type": "string"},
            }
        )
    if hot.method != "GET":
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "Makes a retry safe: the same key gets the first answer again. "
                "1 to 255 printable ASCII characters, quoted or not.",
                "schema": {"type": "string"},
            }
        )
    answers = {hot.shape.status: hot.shape.answer, **hot.shape.also}
    operation: dict[str, Any] = {
        "operationId": hot.operation_id,
        "summary": hot.summary,
        "tags": [noun],
        "parameters": parameters,
        "responses": {
            **{
                str(status): {
                    "description": "Done." if status == hot.shape.status else "Begun.",
                    "content": _content(hot.shape.gives, schema_of[repr(answer)]),
                }
                for status, answer in answers.items()
            },
            **{
                str(status): {"$ref": f"#/components/responses/Problem{status}"}
                for status in sorted(_problems_of(hot))
            },
        },
    }
    if hot.shape.asker != "key":
        operation["security"] = _ASKERS[hot.shape.asker]
    if hot.shape.asker == "anybody":
        operation["description"] = "Needs neither a key nor a session."
    elif hot.shape.asker == "person":
        operation["description"] = "For people who are logged in; keys have no say in it."
    else:
        operation["description"] = f"Scope: `{scope_of(hot.operation_id, hot.method)}`."
    if hot.shape.for_browsers:
        operation["description"] += " May be called from a browser, with a publishable key."
    if hot.shape.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": _content(hot.shape.takes, schema_of[repr(hot.shape.body)]),
        }
    return operation


def _problems_of(hot: Hot) -> frozenset[int]:
    """Return every status that an address answers with a problem."""
    known = _OF_ANYBODY if hot.shape.asker == "anybody" else _OF_KNOWN
    return _OF_ALL | known | (frozenset() if hot.method == "GET" else _OF_WRITES)


def _problem(status: int, schema: Any) -> dict[str, Any]:
    codes = (f"`{code}`: {CODES[code]}" for code in codes_of(status))
    return {
        "description": " ".join(codes),
        "content": {"application/problem+json": {"schema": schema}},
    }


def _content(media_types: tuple[str, ...], schema: Any) -> dict[str, Any]:
    return {
        media_type: {"schema": schema if media_type == JSON else {"type": "string"}}
        for media_type in media_types
    }


@get("/openapi.json", operation_id="openapi")
async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return the description of the API."""
    return Response(request.app.state.openapi, media_type="application/json")


@get("/docs", operation_id="docs")
async def page() -> Response[str]:
    """Show the description in a browser."""
    if script_file() is None:
        body = (
            "<main><h1>VauchFlow API</h1><p>The documentation browser is not installed on this "
            "machine. Run <code>make setup</code> with access to the npm registry once, then load "
            'this page again.</p><p>Until then: <a href="/openapi.json">/openapi.json</a>, '
            '<a href="/docs/errors">error codes</a>.</p></main>'
        )
    else:
        body = (
            '<script id="api-reference" type="application/json" data-url="/openapi.json" '
            f'data-configuration="{html.escape(CONFIGURATION)}"></script>'
            '<script src="/docs/scalar.js"></script>'
        )
    return _document("VauchFlow API", body)


@get("/docs/scalar.js", operation_id="docs_script")
async def script() -> Response[bytes]:
    """Return the documentation browser from the installed bundle."""
    path = script_file()
    if path is None:
        raise NotFoundException
    return Response(
        _read(path), media_type="text/javascript", headers={"Cache-Control": "max-age=3600"}
    )


@get("/docs/errors", operation_id="docs_errors")
async def errors() -> Response[str]:
    """Show every error code; problems link here."""
    rows = "".join(
        f'<tr id="{code}"><td><code>{code}</code></td><td>{status_of(code)}</td>'
        f"<td>{html.escape(sentence)}</td></tr>"
        for code, sentence in CODES.items()
    )
    return _document(
        "VauchFlow errors",
        "<main><h1>Errors</h1><table><thead><tr><th>code</th><th>status</th><th>meaning</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></main>",
    )


def script_file() -> Path | None:
    """Return the installed bundle's file, None when set-up could not get it."""
    path = VENDOR_DIR / SCRIPT
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def _read(path: Path) -> bytes:
    return path.read_bytes()


def _document(title: str, body: str) -> Response[str]:
    return Response(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>main{{max-width:60rem;margin:3rem auto;padding:0 1rem;"
        "font:1rem/1.6 system-ui,sans-serif}td,th{text-align:left;padding:.3rem .8rem .3rem 0;"
        "vertical-align:top}tr:target{background:#fff3b0}</style></head>"
        f"<body>{body}</body></html>",
        media_type="text/html",
        headers={"Content-Security-Policy": PAGE_POLICY},
    )


ROUTES: Final = [openapi, page, script, errors]
