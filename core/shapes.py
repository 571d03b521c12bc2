"""Types that several nouns' requests and answers share."""

from datetime import datetime
from typing import Annotated

import msgspec

from core.rules.limits import REDEMPTIONS_MAX, Metadata
from core.rules.orders import Reference

# The text of a JSON number, in and out: no float ever sees an amount. `core.rules.money` reads
# and writes it; an empty one was not given.
Amount = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "number"})]

Count = Annotated[int, msgspec.Meta(ge=1, le=REDEMPTIONS_MAX)]

# RFC 3339 with an offset: an instant, not a wall clock's reading.
Instant = Annotated[datetime, msgspec.Meta(tz=True)]

CustomerId = Reference
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=320)]


class Person(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a call tells of its customer beside the id; what is left out stays as it was."""

    name: Text | None = None
    email: Text | None = None
    attributes: Metadata | None = None
