"""How long a no takes does not tell whether what was asked for is somebody else's, or nobody's."""

import random
import time
from collections.abc import Callable
from statistics import median

import httpx
import pytest

from core import ids
from tests.api.conftest import Api, Project
from tests.api.objects import one_of_each

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PAIRS = 1_000
DIFFERENCE_MAX = 0.05
# What is looked up in ways of its own, and the one write that most are allowed.
ASKED = (
    ("GET", "/v1/vouchers/{vouchers}"), ("GET", "/v1/campaigns/{campaigns}"),
    ("GET", "/v1/redemptions/{redemptions}"), ("GET", "/v1/gift-cards/{gift-cards}"),
    ("GET", "/v1/customers/{customers}"), ("GET", "/v1/flash-sales/{flash-sales}"),
    ("GET", "/v1/webhooks/{webhooks}"), ("POST", "/v1/vouchers/{vouchers}/redeem"),
)  # fmt: skip


def missing(value: str) -> str:
    """Return a name of the same length that nobody has."""
    prefix, _, rest = value.partition("_")
    if rest:
        return ids.format_id(prefix, ids.new())
    return "".join(random.choices("ABCDEFGHJKMNPQRSTVWXYZ", k=len(value)))


@pytest.mark.parametrize(("method", "path"), ASKED)
def test_what_is_anothers_takes_as_long_as_what_nobody_has(
    api: Api, client: httpx.Client, stranger: httpx.Client, ours: dict[str, str], method: str,
    path: str,
) -> None:  # fmt: skip
    noun = path.partition("{")[2].partition("}")[0]
    took_s: dict[str, list[float]] = {"another's": [], "nobody's": []}

    def ask(whose: str) -> None:
        value = ours[noun] if whose == "another's" else missing(ours[noun])
        request = stranger.build_request(
            method, path.replace(f"{{{noun}}}", value), content=b"{}" if method == "POST" else None
        )
        began_s = time.perf_counter()
        answer = stranger.send(request)
        took_s[whose].append(time.perf_counter() - began_s)
        assert answer.status_code == 404, answer.text

    for whose in list(took_s) * 50:
        ask(whose)
    for times in took_s.values():
        times.clear()
    for _ in range(PAIRS):
        for whose in random.sample(list(took_s), 2):
            ask(whose)
    theirs, nobodys = (median(times) for times in took_s.values())
    apart = abs(theirs - nobodys) / min(theirs, nobodys)
    print(f"{method} {path}: {theirs * 1e6:.0f} µs, {nobodys * 1e6:.0f} µs, {apart:.1%} apart")
    assert apart < DIFFERENCE_MAX


@pytest.fixture(scope="module")
def ours(api: Api, make_project: Callable[..., Project]) -> dict[str, str]:
    with api.client(make_project().secret_key) as client:
        return one_of_each(api, client, "OURS")
