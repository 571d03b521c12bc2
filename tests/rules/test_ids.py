"""Public ids are their uuid and nothing else."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import ids


@given(st.uuids())
def test_every_id_survives_the_way_out_and_back(value: UUID) -> None:
    text = ids.format_id("vch", value)

    assert len(text) == 30
    assert ids.parse_id("vch", text) == value
    assert ids.parse_id("vch", text.lower()) == value
    assert ids.parse_id("cmp", text) is None


@given(st.lists(st.uuids(), min_size=2, max_size=5))
def test_texts_sort_as_their_ids(values: list[UUID]) -> None:
    texts = [ids.format_id("vch", value) for value in sorted(values)]

    assert texts == sorted(texts)


@pytest.mark.parametrize(
    "text",
    ["", "vch_", "vch_" + "0" * 25, "vch_" + "0" * 27, "vch_8" + "Z" * 25, "vch_" + "I" * 26,
     "vch_" + "U" * 26, "vch-" + "0" * 26, "vch_" + "0" * 25 + "\n", "vch_" + "٣" * 26,
     "xvch_" + "0" * 25, "vch_" + "0" * 25 + "_"],
)  # fmt: skip
def test_what_is_no_id_is_none(text: str) -> None:
    assert ids.parse_id("vch", text) is None


def test_the_edges_of_128_bits() -> None:
    assert ids.format_id("rdm", UUID(int=0)) == "rdm_" + "0" * 26
    assert ids.format_id("rdm", UUID(int=2**128 - 1)) == "rdm_7" + "Z" * 25


def test_later_ids_sort_later() -> None:
    made = [ids.new() for _ in range(100)]

    assert made == sorted(made)
    assert all(value.version == 7 for value in made)
