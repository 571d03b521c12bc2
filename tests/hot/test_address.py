"""Which addresses the compiled batcher understands."""

import pytest
from vauchflow_hotpath import BUILD_PROFILE, RedisAddress, parse_redis_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://db.example", RedisAddress("db.example:6379", None, None, 0)),
        ("redis://:p%40ss@h:7000/3", RedisAddress("h:7000", None, "p@ss", 3)),
        ("redis://me:secret@[::1]:7000", RedisAddress("[::1]:7000", "me", "secret", 0)),
        ("unix:///run/v.sock", RedisAddress("unix:/run/v.sock", None, None, 0)),
        ("unix://me:secret@/run/v.sock?db=2", RedisAddress("unix:/run/v.sock", "me", "secret", 2)),
    ],
)
def test_an_address_is_read_from_its_url(url: str, expected: RedisAddress) -> None:
    assert parse_redis_url(url) == expected


@pytest.mark.parametrize("url", ["rediss://h", "http://h", "unix://", "redis://h/x", ""])
def test_what_it_does_not_speak_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_redis_url(url)


def test_what_is_installed_was_built_for_speed() -> None:
    assert BUILD_PROFILE == "release"
