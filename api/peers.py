"""Who asks: the address of a request, also behind proxies that are trusted to say so."""

import ipaddress
from collections.abc import Sequence
from typing import Any, Final

from core import outbound
from core.settings import Settings

# Who connected, as the listener saw it; a caller's own is overwritten there.
PEER: Final = "x-vauchflow-peer"
# A chain of proxies has three or four.
HOPS_MAX: Final = 16

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Peers:
    """Finds the address of requests. Nobody's word counts but a trusted proxy's."""

    def __init__(self, settings: Settings) -> None:
        """Trust the networks of the setting."""
        self._trusted = outbound.networks_of(settings.trusted_proxies)

    def of(self, headers: Any) -> str:
        """Return who a request comes from; empty where that cannot be told."""
        peer = _read(headers.get(PEER) or "")
        if peer is None:
            return ""
        if self._is_trusted(peer):
            # Who is furthest from here and was seen by somebody trusted.
            for hop in reversed(_hops(headers)):
                seen = _read(hop)
                if seen is None:
                    break
                peer = seen
                if not self._is_trusted(peer):
                    break
        return str(peer)

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _hops(headers: Any) -> Sequence[str]:
    """Return whom proxies say they had it from, the nearest last."""
    if "x-forwarded-for" in headers:
        # Lines that are not ASCII are left out here, and one may be all there is: then nobody is
        # told of, and what else the request says of itself is not the proxy's word.
        told = ",".join(headers.get_all("x-forwarded-for"))
        return [hop.strip() for hop in told.split(",")][-HOPS_MAX:]
    hops = []
    for element in ",".join(headers.get_all("forwarded")).split(",")[-HOPS_MAX:]:
        pairs = (pair.partition("=") for pair in element.split(";"))
        named = [value.strip().strip('"') for name, _, value in pairs
                 if name.strip().lower() == "for"]  # fmt: skip
        hops.append(named[0] if named else "")
    return hops


def _read(text: str) -> _Address | None:
    """Read an address, with a port or without, an IPv6 one with brackets or without."""
    host = text
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
