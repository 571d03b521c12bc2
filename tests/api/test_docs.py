"""The API describes itself, offline, and its errors are documented."""

import re
from pathlib import Path

import httpx

from api import docs, errors
from api.app import ROUTES
from core.errors import CODES, FAULTS, REFUSALS
from core.settings import PROJECT_ROOT
from tests.api.conftest import Api


def test_the_error_page_is_fresh() -> None:
    page = (PROJECT_ROOT / "docs" / "errors.md").read_text()

    assert page == errors.page(), "run: python -m api.errors > docs/errors.md"


def test_every_code_has_one_meaning_and_one_status() -> None:
    assert CODES.keys() == REFUSALS | FAULTS
    assert REFUSALS.isdisjoint(FAULTS)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in CODES)
    assert {errors.status_of(code) for code in REFUSALS} == {409}


def test_every_address_is_described(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()

    assert described["openapi"] == "3.1.0"
    operations = {
        operation["operationId"]: operation
        for methods in described["paths"].values()
        for operation in methods.values()
    }
    served = {str(route.operation_id) for route in ROUTES if "shape" in route.opt}
    assert served <= operations.keys()
    assert {
        "vouchers.create", "vouchers.validate", "campaigns.pause", "api_keys.revoke",
        "analytics.overview",
    } <= operations.keys()  # fmt: skip
    v1 = {path for route in ROUTES for path in route.paths if path.startswith("/v1/")}
    undescribed = {p for route in ROUTES if "shape" not in route.opt for p in route.paths} & v1
    assert undescribed == set()
    for operation in operations.values():
        assert operation["summary"]
        assert "default" not in operation["responses"], "every status is named"
    for problem in described["components"]["responses"].values():
        [schema] = [part["schema"] for part in problem["content"].values()]
        assert schema == {"$ref": "#/components/schemas/Problem"}


def test_what_stands_behind_the_question_mark_is_described(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    def asked(path: str) -> list[str]:
        return [one["name"] for one in paths[path]["get"]["parameters"] if one["in"] == "query"]

    assert asked("/v1/campaigns") == ["limit", "starting_after", "status"]
    assert asked("/v1/exports/vouchers") == ["campaign_id", "starting_after"]
    assert asked("/v1/segments/{id}/members") == ["starting_after"]
    assert asked("/v1/batches/{id}/codes") == ["starting_after"]
    assert asked("/v1/gift-cards/liability") == ["from", "to"]


def test_every_reference_in_the_description_leads_somewhere(client: httpx.Client) -> None:
    answer = client.get("/openapi.json")

    names = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.text))
    assert names
    assert names <= answer.json()["components"]["schemas"].keys()


def test_amounts_are_described_as_numbers(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]

    assert schemas["NewVoucher"]["properties"]["discount_value"]["type"] == ["number", "null"]
    assert schemas["NewGiftCard"]["properties"]["amount"] == {"type": "number"}
    assert schemas["Verdict"]["properties"]["discount_applied"] == {"type": "number"}
    assert schemas["Campaign"]["properties"]["status"] == {
        "type": "string",
        "enum": ["active", "draft", "ended", "paused", "scheduled"],
    }


def test_the_docs_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    for path in ("/docs", "/docs/errors"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http:" not in answer.text
        assert "https:" not in answer.text


def test_a_problem_links_to_where_its_code_is_explained(client: httpx.Client, api: Api) -> None:
    problem = client.get("/v1/vouchers/NOBODY").json()

    assert problem["doc_url"] == f"{api.base_url}/docs/errors#not_found"
    page = httpx.get(problem["doc_url"])
    assert page.status_code == 200
    assert all(f'id="{code}"' in page.text for code in CODES)


def test_the_page_says_how_to_get_a_missing_bundle(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(docs, "VENDOR_DIR", tmp_path)

    assert docs.script_file() is None
    (tmp_path / docs.SCRIPT).write_text("")
    assert docs.script_file() == tmp_path / docs.SCRIPT
