"""What goes out comes in again, in parts, in tables that run nothing, and by command."""

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from core import exports
from core.settings import PROJECT_ROOT
from tests.api.conftest import Api, Project

OWN = ("id", "created_at", "updated_at")


def fill(client: httpx.Client) -> list[dict[str, Any]]:
    campaign = client.post(
        "/v1/campaigns", json={"name": "C", "rules": {"discount_value": 15}}
    ).json()["id"]
    bodies: list[dict[str, Any]] = [
        {"code": "=SUM(A1)", "discount_value": 12.5, "metadata": {"a": "=1+1", "n": 3, "f": False}},
        {"code": 'say "hi", you', "discount_type": "AMOUNT", "discount_value": 7.05,
         "max_redemptions": 4, "per_customer_limit": 2, "min_order_value": 20, "holder": "hol"},
        {"code": "DATED", "discount_type": "FIXED", "discount_value": 9,
         "starts_at": "2030-01-01T00:00:00Z", "expires_at": "2031-06-30T12:30:00Z"},
        {"code": "INHERITS", "campaign_id": campaign},
        {"code": "OFF", "discount_value": 1},
    ]  # fmt: skip
    for body in bodies:
        made = client.post("/v1/vouchers", json=body)
        assert made.status_code == 201, made.text
    client.post("/v1/vouchers/OFF/disable")
    return client.get("/v1/vouchers").json()["data"]


def told(vouchers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [{n: v for n, v in one.items() if n not in OWN} for one in vouchers]
    return sorted(kept, key=lambda one: one["code"])


def table_of(client: httpx.Client, **query: str) -> httpx.Response:
    answer = client.get("/v1/exports/vouchers", params=query)
    assert answer.status_code == 200, answer.text
    return answer


def test_a_table_that_went_out_comes_in_as_it_was(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with (
        api.client(make_project().secret_key) as here,
        api.client(make_project().secret_key) as there,
    ):
        mine = fill(here)
        table = table_of(here)
        cells = [cell for line in csv.reader(io.StringIO(table.text)) for cell in line]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
        answer = there.post(
            "/v1/vouchers/import", content=table.content, headers={"Content-Type": "text/csv"}
        ).json()
        assert (answer["imported"], [one["code"] for one in answer["refused"]]) == (4, ["INHERITS"])
        theirs = there.get("/v1/vouchers").json()["data"]
        assert told(theirs) == [one for one in told(mine) if one["code"] != "INHERITS"]


def test_what_was_used_is_not_given_out_again(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with (
        api.client(make_project().secret_key) as here,
        api.client(make_project().secret_key) as there,
    ):
        here.post("/v1/vouchers", json={"code": "U", "discount_value": 5, "max_redemptions": 3})
        here.post("/v1/vouchers/U/redeem", json={"order_value": 5})
        there.post(
            "/v1/vouchers/import", content=table_of(here).content,
            headers={"Content-Type": "text/csv"},
        )  # fmt: skip
        assert there.get("/v1/vouchers/U").json()["remaining"] == 2


def test_parts_follow_each_other_without_a_gap_and_lines_have_all_rules(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with api.client(make_project().secret_key) as client:
        codes = set()
        for _ in range(2):
            body = {"discount_value": 5, "count": exports.PART_MAX // 2 + 100}
            codes |= set(client.post("/v1/vouchers/bulk", json=body, timeout=60).json()["codes"])
        rich = {"code": "RICH", "discount_value": 5, "budgets": [{"of": "discount", "max": 9}]}
        client.post("/v1/vouchers", json=rich)
        accept = {"Accept": "application/x-ndjson"}
        first = client.get("/v1/exports/vouchers", headers=accept, timeout=60)
        rest = client.get(
            "/v1/exports/vouchers", headers=accept, timeout=60,
            params={"starting_after": first.headers["x-next"]},
        )  # fmt: skip
        assert "x-next" not in rest.headers
        lines = [json.loads(line) for line in (first.text + rest.text).splitlines()]
        assert len(first.text.splitlines()) == exports.PART_MAX
        assert len(lines) == len(codes) + 1
        assert {line["code"] for line in lines} == codes | {"RICH"}
        assert lines[0]["budgets"] == [{"of": "discount", "per": None, "period": None, "max": 9}]


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ({"starting_after": "x"}, 400, "starting_after"),
        ({"campaign_id": "cmp_x"}, 404, "campaign_id"),
        ({"limit": "5"}, 400, "limit"),
    ],
)
def test_what_cannot_be_asked_is_named(
    client: httpx.Client, query: dict[str, str], status: int, field: str
) -> None:
    refused = client.get("/v1/exports/vouchers", params=query)
    assert (refused.status_code, refused.json()["field"]) == (status, field)


def command(api: Api, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROJECT_ROOT / "vauchflow"), *arguments, "--data-dir", str(api.settings.data_dir)],
        env=api.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def project_id(api: Api, client: httpx.Client, code: str) -> str:
    from core import ids

    sql = "select project_id from vf.vouchers where code = $1"
    return ids.format_id("prj", api.rows(sql, code)[0][0])


def test_the_commands_write_a_file_and_read_it_again(
    api: Api, make_project: Callable[..., Project], tmp_path: Path
) -> None:
    with api.client(make_project().secret_key) as client:
        client.post("/v1/vouchers", json={"code": "CMD-0", "discount_value": 5})
        mine = project_id(api, client, "CMD-0")
        source = tmp_path / "in.csv"
        rows = "".join(f"CMD-{n},10,PERCENT,\n" for n in range(6_001))
        source.write_text("code,value,discount_type,channel\n" + rows + "BAD,900,PERCENT,\n")
        done = command(api, "import", str(source), "--project", mine)
        assert (done.returncode, done.stdout) == (1, "imported 6000, refused 2\n"), done.stderr
        assert "line 1: CMD-0: a voucher with this code is there already" in done.stderr
        assert "line 6002: BAD:" in done.stderr
        again = command(api, "import", str(source), "--project", mine)
        assert again.stdout == "imported 0, refused 6002\n", "nothing comes twice"
        target = tmp_path / "out.csv"
        written = command(api, "export", str(target), "--project", mine)
        assert (written.returncode, written.stdout) == (0, "exported 6001\n"), written.stderr
        found = list(csv.DictReader(io.StringIO(target.read_text())))
        assert {row["code"] for row in found} == {f"CMD-{n}" for n in range(6_001)}
        assert list(tmp_path.glob(".*")) == []


def test_a_command_says_which_projects_there_are_and_what_is_no_table(
    api: Api, client: httpx.Client, tmp_path: Path
) -> None:
    file = tmp_path / "x.csv"
    file.write_text("a,b\n1,2\n")
    lost = command(api, "import", str(file))
    assert lost.returncode == 1 and "Name a project with --project; there are: prj_" in lost.stderr
    client.post("/v1/vouchers", json={"code": "TABLELESS", "discount_value": 5})
    mine = project_id(api, client, "TABLELESS")
    broken = command(api, "import", str(file), "--project", mine)
    assert broken.returncode == 1 and "one must be code" in broken.stderr
    assert "Traceback" not in lost.stderr + broken.stderr
