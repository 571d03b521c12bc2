"""Customer tokens: what a shop signs so that a browser may claim for one of its customers.

A token is `<expiry>.<signature>`: seconds since 1970, and the HMAC-SHA256, as hex, of the sale's
id, the customer's id, the order value in minor units (nothing where there is none) and the expiry,
each on a line. The key is the sale's own secret, derived from the server's: it is checked without
asking anybody, and a secret that leaks opens one sale alone.
"""

import hmac
import re
import time
from typing import Final
from uuid import UUID

from core import ids
from core.errors import InvalidCustomerToken

PREFIX: Final = "vf_cs_"
# The clock of a shop's server may run ahead: a token that ends far away was made to live for ever.
LIFETIME_S_MAX: Final = 7 * 86_400

_TOKEN: Final = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})\Z", re.ASCII)


def secret_of(server_secret: str, sale_id: UUID) -> str:
    """Return the secret that a shop signs a sale's tokens with."""
    key = server_secret.encode()
    return PREFIX + hmac.digest(key, b"customer token " + sale_id.bytes, "sha256").hex()


def sign(
    secret: str, sale_id: UUID, customer_id: str, order_value_minor: int | None, expires_s: int
) -> str:
    """Return a token: what a shop's server does. `expires_s`: seconds since 1970."""
    worth = "" if order_value_minor is None else str(order_value_minor)
    text = "\n".join([ids.format_id("fls", sale_id), customer_id, worth, str(expires_s)])
    return f"{expires_s}.{hmac.digest(secret.encode(), text.encode(), 'sha256').hex()}"


def check(
    token: str, secret: str, sale_id: UUID, customer_id: str | None, order_value_minor: int | None
) -> None:
    """Hold a token against the claim it came with. Pure but for the clock.

    Raises: InvalidCustomerToken.
    """
    parts = _TOKEN.match(token)
    if parts is None:
        raise InvalidCustomerToken("customer_token must read <expiry>.<signature as hex>")
    expires_s = int(parts[1])
    wanted = sign(secret, sale_id, customer_id or "", order_value_minor, expires_s)
    if not hmac.compare_digest(wanted, token):
        raise InvalidCustomerToken(
            "customer_token was signed for another sale, customer, order value or expiry"
        )
    now_s = int(time.time())
    if not now_s < expires_s <= now_s + LIFETIME_S_MAX:
        raise InvalidCustomerToken("customer_token is over, or ends more than a week from now")
