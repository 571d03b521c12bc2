"""Where a redemption comes from: the shopper's address and device, as the shop tells them.

Kept as keyed hashes beside the shop's metadata, so that they travel with a redemption whoever
decides it; nobody can read them back, and other projects' hashes of the same are others.
"""

import hmac
import ipaddress
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import msgspec

from core.errors import Invalid
from core.rules.limits import Metadata

# An IPv6 address with its zone and brackets.
_ADDRESS_LENGTH_MAX: Final = 64
# What browsers' fingerprints and apps' installation ids have.
_DEVICE_LENGTH_MAX: Final = 200
# 128 bits: no two devices share one.
_DIGEST_LENGTH: Final = 16
# A household or an office has a network of so many bits, and every machine in it many addresses.
_IPV6_NETWORK_BITS: Final = 64
# The names under which they stand beside a redemption's metadata.
NAMES: Final = ("_address", "_device")

_encode = msgspec.json.Encoder(order="deterministic").encode


class Context(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shopper's IP address, and whatever the shop knows their device by."""

    address: Annotated[str, msgspec.Meta(min_length=1, max_length=_ADDRESS_LENGTH_MAX)] | None = (
        None
    )
    device: Annotated[str, msgspec.Meta(min_length=1, max_length=_DEVICE_LENGTH_MAX)] | None = None


class Hidden(Context, frozen=True, kw_only=True):
    """The same, hashed."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A request that may say where it comes from."""

    context: Context | None = None


T = TypeVar("T", bound=Told)


class Contexts:
    """Hashes what requests tell of shoppers, by the system's secret and the project."""

    def __init__(self, secret: str) -> None:
        """Take the system's secret."""
        self._key = hmac.digest(secret.encode(), b"fraud", "sha256")

    def hide(self, project_id: UUID, context: Context) -> Hidden:
        """Hash a context. Raises: Invalid for an address that is none."""
        return Hidden(
            address=context.address and self.address(project_id, context.address),
            device=context.device and self.digest(project_id, "device", context.device),
        )

    def of_peer(self, project_id: UUID, address: str) -> Hidden | None:
        """Hash the address that a request came from; None where it came from no IP address."""
        try:
            return Hidden(address=self.address(project_id, address))
        except Invalid:
            return None

    def hidden(self, project_id: UUID, new: T) -> T:
        """Return a request with its context hashed. Raises: Invalid."""
        if new.context is None:
            return new
        return msgspec.structs.replace(new, context=self.hide(project_id, new.context))

    def address(self, project_id: UUID, text: str) -> str:
        """Hash an IP address; of IPv6 only the network counts. Raises: Invalid."""
        try:
            found = ipaddress.ip_address(text.strip("[]").partition("%")[0])
        except ValueError:
            raise Invalid(
                "context.address must be an IP address", field="context.address"
            ) from None
        plain = getattr(found, "ipv4_mapped", None) or found
        if plain.version == 6:
            plain = ipaddress.ip_network((int(plain), _IPV6_NETWORK_BITS), strict=False)
        return self.digest(project_id, "address", str(plain))

    def digest(self, project_id: UUID, kind: str, text: str) -> str:
        """Hash something of a kind, into 32 hex characters."""
        told = project_id.bytes + f"{kind}:{text}".encode()
        return hmac.digest(self._key, told, "sha256")[:_DIGEST_LENGTH].hex()


def stored(metadata: Metadata | None, context: Context | None) -> str | None:
    """Return the JSON text that is stored of a redemption's metadata and context."""
    told = metadata or {}
    if context is not None:
        assert isinstance(context, Hidden), "what comes in is hidden at the door"
        hashes = zip(NAMES, (context.address, context.device), strict=True)
        told = {**told, **{name: text for name, text in hashes if text}}
    return _encode(told).decode() if told else None


def without(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the shop's own metadata of what is stored."""
    if not metadata or metadata.keys().isdisjoint(NAMES):
        return metadata
    return {name: item for name, item in metadata.items() if name not in NAMES}
