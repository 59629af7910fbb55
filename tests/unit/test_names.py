"""Repository names and tags, held against the grammar written a second time, without a regular expression."""

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lading.oci.errors import NameInvalid, TagInvalid
from lading.oci.names import MAX_NAME_CHARACTERS, Tag, parse_repository_name

LOWER = frozenset(string.ascii_lowercase + string.digits)
TAG_REST = frozenset(string.ascii_letters + string.digits + "_.-")
TAG_FIRST = TAG_REST - {".", "-"}
near_names = st.text("a0._-/A é\n", max_size=14)
near_tags = st.text("aZ0._-+ é\n:/", max_size=10)


def is_component(text: str) -> bool:
    """Tell whether runs of letters and digits alternate with separators, and begin and end the component."""
    separators = []
    run = ""
    for character in text:
        if character in LOWER:
            separators.append(run)
            run = ""
        else:
            run += character
    if run or not separators or separators[0]:
        return False
    return all(not run or run in {".", "_", "__"} or set(run) == {"-"} for run in separators)


def is_name(text: str) -> bool:
    """Tell whether distribution-spec calls it a repository name."""
    return len(text) <= MAX_NAME_CHARACTERS and all(is_component(part) for part in text.split("/"))


def is_tag(text: str) -> bool:
    """Tell whether distribution-spec calls it a tag."""
    return 1 <= len(text) <= 128 and text[0] in TAG_FIRST and set(text) <= TAG_REST


def accepts_name(text: str) -> bool:
    try:
        return parse_repository_name(text) == text
    except NameInvalid:
        return False


def accepts_tag(text: str) -> bool:
    try:
        return str(Tag.parse(text)) == text
    except TagInvalid:
        return False


@settings(max_examples=300)
@given(near_names)
@example("a\n")
@example("a/b\n")
@example("")
@example("a//b")
@example("a___b")
@example("a._b")
@example("a---b")
@example("\u0663")
@example("a" * 255)
@example("a" * 256)
@example("a/" * 127 + "a")
def test_a_name_is_accepted_exactly_when_the_grammar_has_it(text: str) -> None:
    """What one registry accepts and another refuses cannot be copied between them."""
    accepted = accepts_name(text)

    assert accepted == is_name(text)


@settings(max_examples=100)
@given(st.lists(st.from_regex(r"[a-z0-9]{1,3}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}", fullmatch=True), min_size=1))
def test_a_name_of_valid_components_is_accepted_at_any_depth(components: list[str]) -> None:
    """The specification sets no depth; only the length is bounded."""
    name = "/".join(components)

    assert accepts_name(name) == (len(name) <= 255)


@settings(max_examples=300)
@given(near_tags)
@example("v1\n")
@example("a" * 128)
@example("a" * 129)
@example("_")
@example(".x")
@example("-x")
@example("a+b")
@example("\u0661")
def test_a_tag_is_accepted_exactly_when_the_grammar_has_it(text: str) -> None:
    """A tag becomes part of paths and of shell lines, so nothing outside the grammar may pass."""
    accepted = accepts_tag(text)

    assert accepted == is_tag(text)


def test_a_refused_name_or_tag_comes_back_in_the_detail() -> None:
    """Whoever reads the error in a build log has to see which name was wrong."""
    with pytest.raises(NameInvalid) as name:
        parse_repository_name("Team/App")
    with pytest.raises(TagInvalid) as tag:
        Tag.parse("v1+build")

    assert (name.value.detail, tag.value.detail) == ({"name": "Team/App"}, {"tag": "v1+build"})


@pytest.mark.parametrize("text", ["a" * 100_000, "a-" * 100_000, "a" + "-" * 100_000, "a/" * 100_000])
def test_a_name_of_any_length_is_refused_in_no_time(text: str) -> None:
    """A pattern that backtracks would let one request hold the loop; the suite's timeout would tell."""
    assert not accepts_name(text)
