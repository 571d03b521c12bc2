"""Style, scripts and what set-up fetched, each at an address that holds the hash of its text."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from litestar import get
from litestar.exceptions import NotFoundException
from litestar.response import Response

from api.docs import VENDOR_DIR

OWN_DIR: Final = Path(__file__).with_name("assets")
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# The address changes with the text.
_KEPT: Final = {"Cache-Control": "public, max-age=31536000, immutable"}


@lru_cache(maxsize=64)
def _found(name: str) -> tuple[str, bytes] | None:
    for folder in (OWN_DIR, VENDOR_DIR):
        path = folder / name
        if path.parent == folder and path.suffix in _TYPES and path.is_file():
            text = path.read_bytes()
            return hashlib.sha256(text).hexdigest()[:12], text
    return None


def address_of(name: str) -> str:
    """Return a file's address, empty where set-up could not fetch it: pages do without."""
    found = _found(name)
    return "" if found is None else f"/dashboard/assets/{found[0]}/{name}"


@get("/dashboard/assets/{version:str}/{name:str}", operation_id="dashboard.asset")
async def show(version: str, name: str) -> Response[Any]:
    """Return one file; it is the same for ever."""
    found = _found(name)
    if found is None or found[0] != version:
        raise NotFoundException
    media_type = _TYPES[Path(name).suffix]
    return Response(found[1], media_type=media_type, headers=_KEPT)


ROUTES: Final = [show]
