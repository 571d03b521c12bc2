"""Owners are mailed once when a part of a quota or budget is used, and never twice."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from core import ids, notices
from core.db import Database
from core.mails import Mail, Mailer
from tests.api.conftest import Api, Person


class Box(Mailer):
    """Keeps what would be sent."""

    def __init__(self, api: Api) -> None:
        super().__init__(api.settings)
        self.mails: list[Mail] = []

    def send(self, mail: Mail) -> None:
        self.mails.append(mail)


def told(api: Api, email: str, workers: int = 1) -> list[str]:
    """Look `workers` times at once; return the subjects of the mails to somebody."""
    box = Box(api)

    async def look() -> None:
        database = await Database.open(api.settings.database_dsn("worker"), size_max=workers)
        try:
            looks = (notices.tell(database, box, datetime.now(UTC)) for _ in range(workers))
            await asyncio.gather(*looks)
        finally:
            await database.close()

    asyncio.run(look())
    return sorted(mail.subject for mail in box.mails if mail.to == email)


def set_calls(api: Api, project_id: str, calls: int) -> None:
    api.rows(
        "insert into vf.usage_hours values ($1, date_trunc('month', now(), 'UTC'), $2) "
        "on conflict (project_id, hour) do update set call_count = $2", project_id, calls,
    )  # fmt: skip


@pytest.fixture
def owner(sign_up: Callable[..., Person]) -> tuple[str, str]:
    """The e-mail of somebody on the free plan, and the id of their project."""
    anna = sign_up()
    return anna.email, str(ids.parse_id("prj", anna.project))


def test_owners_are_mailed_at_80_and_at_100_per_cent_of_a_quota_once(
    api: Api, owner: tuple[str, str]
) -> None:
    email, project_id = owner
    set_calls(api, project_id, 799)
    assert told(api, email) == []
    set_calls(api, project_id, 800)
    assert told(api, email, workers=3) == ["80 % of the month's API calls are used"]
    assert told(api, email) == []
    set_calls(api, project_id, 1_000)
    assert told(api, email, workers=3) == ["100 % of the month's API calls are used"]
    assert told(api, email) == []
    # Another plan has another quota.
    api.rows(
        "update vf.accounts a set plan = 'starter' from vf.projects p "
        "where p.account_id = a.id and p.id = $1", project_id,
    )  # fmt: skip
    assert told(api, email) == []
    set_calls(api, project_id, 10_000)
    assert told(api, email) == ["100 % of the month's API calls are used"]
    assert told(api, email) == []


def test_a_project_says_at_which_parts_and_of_which_budgets(
    api: Api, owner: tuple[str, str]
) -> None:
    email, project_id = owner
    api.rows("update vf.projects set mail_at_percent = '{50}' where id = $1", project_id)
    api.rows(
        "insert into vf.campaigns (project_id, id, name, status) "
        "values ($1, gen_random_uuid(), 'Summer', 'active')", project_id,
    )  # fmt: skip
    put = (
        "insert into vf.budgets (project_id, scope_id, label, subject, period, used, used_max) "
        "select $1, c.id, 'discount', $2, $3, $4, 1000 from vf.campaigns c where c.project_id = $1"
    )
    api.rows(put, project_id, "", "", 499)
    # One customer's own budget is nobody's business here.
    api.rows(put, project_id, "customer-1", "", 1_000)
    assert told(api, email) == []
    api.rows("update vf.budgets set used = 500 where project_id = $1 and subject = ''", project_id)
    assert told(api, email) == ["50 % of a budget of campaign Summer are used"]
    assert told(api, email) == []
    # What is over was told then, or is of no use any more.
    api.rows(put, project_id, "", "2024-02", 1_000)
    api.rows(put, project_id, "", "2024-02-29", 1_000)
    assert told(api, email) == []
    api.rows(put, project_id, "", f"{datetime.now(UTC):%Y-%m}", 700)
    assert told(api, email) == ["50 % of a budget of campaign Summer are used"]
    set_calls(api, project_id, 600)
    assert told(api, email) == ["50 % of the month's API calls are used"]
