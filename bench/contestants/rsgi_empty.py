"""What the server itself costs: an answer without a body."""

from typing import Any


async def app(scope: Any, protocol: Any) -> None:
    """Say yes."""
    protocol.response_empty(200, [])
