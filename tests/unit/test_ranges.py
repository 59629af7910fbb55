"""Ranges, held against a model that knows only single bytes."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lading.oci.errors import RangeUnsatisfiable
from lading.oci.ranges import MAX_RANGES, ByteRange, ChunkRange, parse_range, upload_range

HUGE = 10**25
numbers = st.integers(0, 14) | st.sampled_from([2**63 - 1, 2**63, HUGE])
specs = st.tuples(st.none() | numbers, st.none() | numbers).filter(lambda spec: spec != (None, None))


def selects(spec: tuple[int | None, int | None], position: int, blob_bytes: int) -> bool:
    """Tell whether one range of RFC 9110 asks for the byte at `position`."""
    first, last = spec
    if first is None:
        assert last is not None
        return position >= blob_bytes - last
    return position >= first and (last is None or position <= last)


def written(spec: tuple[int | None, int | None]) -> str:
    return "-".join("" if end is None else str(end) for end in spec)


def answered(header: str, blob_bytes: int) -> list[range] | None:
    """Return the bytes of each range that the parser finds; None when none can be satisfied."""
    try:
        found = parse_range(header, blob_bytes)
    except RangeUnsatisfiable:
        return None
    return [range(part.first, part.last + 1) for part in found]


@settings(max_examples=300)
@given(st.lists(specs, min_size=1, max_size=4), st.integers(0, 10))
@example([(5, 2)], 10)
@example([(None, 0)], 10)
@example([(0, None)], 0)
@example([(None, 5)], 0)
@example([(10, None)], 10)
@example([(0, HUGE)], 10)
@example([(None, HUGE)], 10)
def test_a_range_selects_the_bytes_that_a_walk_over_the_blob_selects(
    asked: list[tuple[int | None, int | None]], blob_bytes: int
) -> None:
    """One byte too many or too few corrupts a resumed layer."""
    content = range(blob_bytes)
    model = [[byte for byte in content if selects(spec, byte, blob_bytes)] for spec in asked]
    touched = [selected for selected in model if selected]

    ascends = all(before[-1] < after[0] for before, after in pairwise(touched))

    found = answered("bytes=" + ", ".join(map(written, asked)), blob_bytes)

    expected = touched if ascends else []  # ignored: the whole blob is sent once
    assert (None if found is None else [list(part) for part in found]) == (expected if touched else None)


@settings(max_examples=200)
@given(st.text("0123456789-,= bytesx\u0661", max_size=14), st.integers(0, 20))
@example("bytes=", 5)
@example("bytes=-", 5)
@example("bytes=abc", 5)
@example("items=0-1", 5)
@example("bytes=1-2-3", 5)
@example("bytes=\u0661-\u0662", 5)
@example("bytes=+1-2", 5)
@example("bytes 0-1", 5)
def test_any_header_gives_ranges_within_the_blob_or_is_ignored(header: str, blob_bytes: int) -> None:
    """A header nobody expected must not become a read past the end or a fault of ours."""
    for part in answered(header, blob_bytes) or []:
        assert 0 <= part.start < part.stop <= blob_bytes


@pytest.mark.parametrize(
    "header", ["items=0-1", "bytes=abc", "bytes=-", "bytes", "bytes=", "bytes=0-1,x", "bytes=1-2-3", "bytes=\u0661-"]
)
def test_what_is_no_byte_range_is_ignored(header: str) -> None:
    """RFC 9110 14.2: the whole blob is always a right answer."""
    assert parse_range(header, 10) == ()


@pytest.mark.parametrize("header", ["bytes=2-3", "Bytes=2-3", "bytes= 2-3 "])
def test_the_unit_is_read_without_case_or_blanks(header: str) -> None:
    """Range units are case-insensitive (RFC 9110 14.1)."""
    assert parse_range(header, 10) == (ByteRange(2, 3),)


def test_a_range_beyond_the_blob_is_told_its_length() -> None:
    """A client that resumes a finished download sees by it that nothing is left."""
    with pytest.raises(RangeUnsatisfiable) as caught:
        parse_range("bytes=10-", 10)

    assert caught.value.headers == {"Content-Range": "bytes */10"}


def test_more_ranges_than_any_client_sends_are_ignored() -> None:
    """Thousands of tiny ranges would make an answer much bigger than the blob."""
    most = "bytes=" + ",".join(f"{byte}-{byte}" for byte in range(MAX_RANGES))

    assert len(parse_range(most, 1000)) == MAX_RANGES
    assert parse_range(f"{most},{MAX_RANGES}-", 1000) == ()


@pytest.mark.parametrize("header", ["bytes=0-,0-", "bytes=4-5,0-1", "bytes=0-5,5-6", "bytes=0-1,-10"])
def test_ranges_that_overlap_or_go_back_are_ignored(header: str) -> None:
    """A hundred times the whole blob, for a request of 300 bytes, is a way to wear out a server."""
    assert parse_range(header, 10) == ()


@settings(max_examples=100)
@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_range_counts_and_writes_its_bytes_inclusively(first: int, extra: int) -> None:
    """Content-Range names the last byte, not the one after it."""
    part = ByteRange(first, first + extra)

    assert part.length == extra + 1
    assert str(part) == f"{first}-{first + extra}"


@settings(max_examples=200)
@given(
    st.integers(0, 10**19 - 1),
    st.integers(0, 10**19 - 1),
    st.sampled_from(["", "bytes ", "bytes="]),
    st.sampled_from(["", "/*", "/100"]),
)
def test_a_chunk_range_is_read_in_all_the_ways_clients_write_it(first: int, last: int, unit: str, total: str) -> None:
    """The specification writes `0-99`, RFC 9110 `bytes 0-99/*`, and both are on the wire."""
    chunk = ChunkRange.parse(f" {unit}{first}-{last}{total} ")

    if first > last:
        assert chunk is None
    else:
        assert chunk == ChunkRange(first, last)
        assert chunk.length == last - first + 1


@settings(max_examples=200)
@given(st.text("0123456789-/* bytes=\u0661\n", max_size=16))
@example("bytes */5")
@example("5-4")
@example("-5")
@example("5-")
@example("\u0660-\u0669")
@example("0-9\n0-9")
@example("0-99999999999999999999")
def test_what_is_no_chunk_range_is_none(header: str) -> None:
    """It is answered as out of order, never guessed at."""
    chunk = ChunkRange.parse(header)

    digits = re.findall("[0-9]+", header)
    if chunk is None:
        return
    assert (chunk.first, chunk.last) == (int(digits[0]), int(digits[1]))
    assert chunk.first <= chunk.last
    assert header.isascii()


@settings(max_examples=100)
@given(st.integers(0, 10**15))
@example(0)
@example(1)
@example(2)
def test_docker_reads_the_offset_back_from_the_range_of_an_upload(offset: int) -> None:
    """It scans `%d-%d` and writes `last - first + 1` into its manifest; `0--1` ends its push."""
    match = re.fullmatch(r"([0-9]+)-([0-9]+)", upload_range(offset))

    assert match is not None
    first, last = map(int, match.groups())
    assert first == 0
    assert last - first + 1 == max(offset, 1)
