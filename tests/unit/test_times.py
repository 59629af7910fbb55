"""Moments as people and protocols write them: what is taken, what is not, and that none is a little off."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.cli.registry import actor, parse_moment, parse_tag
from lading.metadata import times
from lading.metadata.times import HOUR_US, now_us
from lading.oci.errors import CommandRefused, LadingError

YEAR_9999_US = 253_402_300_799_999_999


@given(st.integers(0, YEAR_9999_US))
def test_a_moment_is_read_back_as_it_was_written(at_us: int) -> None:
    """A page of a history begins where the last one ended, to the microsecond."""
    assert times.parse(times.text(at_us)) == at_us
    assert times.parse(times.to_second(at_us)) == at_us // 1_000_000 * 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "2026-05-04T03:02:01Z",
        "2026-05-04t03:02:01.0z",
        "2026-05-04 05:02:01+02:00",
        "2026-05-03T22:32:01.000000009-04:30",
    ],
)
def test_each_way_of_writing_a_moment_is_that_moment(text: str) -> None:
    """RFC 3339 allows more than one."""
    assert times.parse(text) == datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC).timestamp() * 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "now",
            "2026-05-04",
            "20260504T030201Z",
            "2026-05-04T03:02:01",
            "2026-05-04T03:02Z",
            "2026-W19-1T00:00:00Z",
        ),
        *("2026-13-04T03:02:01Z", "2026-05-04T25:02:01Z", "2026-05-04T03:02:01+24:00", "2026-05-04T03:02:01Z\n"),
        *("٢٠٢٦-05-04T03:02:01Z", "2026-05-04T03:02:01.Z", "0000-01-01T00:00:00Z", "2026-05-04T03:02:01.1234567890Z"),
    ],
)
def test_nothing_else_is_a_moment(text: str) -> None:
    """A guess at what was meant restores something else than was meant."""
    with pytest.raises(ValueError, match=r".+"):
        times.parse(text)
    with pytest.raises(CommandRefused, match="is no time"):
        parse_moment(text)


def test_a_command_takes_how_long_ago_it_was() -> None:
    """In an incident nobody reckons in UTC."""
    before = now_us()
    two_hours, same = parse_moment("2h"), parse_moment("120m")
    assert two_hours is not None
    assert same is not None
    assert before - 2 * HOUR_US <= two_hours <= same <= now_us() - 2 * HOUR_US
    assert parse_moment(None) is None


@pytest.mark.parametrize(
    "text", ["2999-01-01T00:00:00Z", "1960-01-01T00:00:00Z", "9999w", "-2h", "2 h", "h", "9999999d"]
)
def test_a_moment_that_cannot_be_gone_back_to_is_refused(text: str) -> None:
    """What has not been yet is as impossible as what is older than computers."""
    with pytest.raises(CommandRefused) as refused:
        parse_moment(text)
    assert refused.value.hint


@pytest.mark.parametrize(
    "text", ["app", "app:", ":v1", "", "App:v1", "app:-v", "host:5000/app:v1", "app:v1\n", "a/../b:v1"]
)
def test_what_names_no_tag_is_refused(text: str) -> None:
    """The names of a command are parsed like those of a request."""
    with pytest.raises(LadingError):
        parse_tag(text)


def test_who_gives_a_command_is_one_short_word() -> None:
    """It goes into the history, and from there to terminals."""
    assert re.fullmatch(r"cli:\S{1,64}", actor())
