"""Digests: written and read the same way, and nothing else is one."""

import hashlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lading.oci.digest import EMPTY_SHA256, EMPTY_SHA512, Algorithm, Digest, RunningDigest, is_empty_content
from lading.oci.errors import DigestInvalid

algorithms = st.sampled_from(Algorithm)
HEX = frozenset("0123456789abcdef")
LENGTHS = {"sha256": 64, "sha512": 128}


def accepts(text: str) -> bool:
    try:
        return str(Digest.parse(text)) == text
    except DigestInvalid:
        return False


@settings(max_examples=100)
@given(algorithms, st.data())
def test_a_digest_survives_being_written_and_read(algorithm: Algorithm, data: st.DataObject) -> None:
    """Digests travel through URLs, headers, rows and file names; each way has to lead back."""
    raw = data.draw(st.binary(min_size=algorithm.digest_bytes, max_size=algorithm.digest_bytes))
    digest = Digest(algorithm, raw)

    assert Digest.parse(str(digest)) == digest
    assert str(digest) == f"{algorithm.text}:{raw.hex()}"
    assert digest.hex == raw.hex()
    assert Algorithm(int(algorithm)) is Algorithm.parse(algorithm.text) is algorithm


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=40), max_size=5), algorithms)
def test_a_digest_is_that_of_hashlib_however_the_content_is_cut(pieces: list[bytes], algorithm: Algorithm) -> None:
    """A blob comes in pieces of the client's choice, and has one address."""
    content = b"".join(pieces)
    running = RunningDigest(algorithm)

    for piece in pieces:
        running.update(piece)

    assert running.seen_bytes == len(content)
    assert running.digest() == Digest.of(content, algorithm)
    assert running.digest().raw == hashlib.new(algorithm.text, content).digest()


@settings(max_examples=300)
@given(
    st.sampled_from(["sha256", "sha512", "SHA256", "md5", "sha1", "sha256+b64u", "", "sha384", "Sha512"]),
    st.sampled_from([":", "", "::", "-", "%3A"]),
    st.text("0af", min_size=62, max_size=66) | st.text("0afAFg \né", max_size=130) | st.text("1", min_size=128),
)
@example("sha256", ":", "0" * 64 + "\n")
@example("sha256", ":", "A" * 64)
@example("sha256", ":", "\u0660" * 64)
@example("sha512", ":", "0" * 64)
def test_only_lowercase_hex_of_the_right_length_is_a_digest(name: str, colon: str, encoded: str) -> None:
    """Two spellings of one digest would be two names of one blob, in a key that must be unique."""
    valid = colon == ":" and len(encoded) == LENGTHS.get(name) and set(encoded) <= HEX

    assert accepts(f"{name}{colon}{encoded}") == valid


@pytest.mark.parametrize("text", ["sha256:abc", "9f86d0", "sha512:" + "0" * 64])
def test_a_malformed_digest_comes_back_in_the_detail(text: str) -> None:
    """A digest cut by a copy and paste is found by looking at it."""
    with pytest.raises(DigestInvalid) as caught:
        Digest.parse(text)

    assert caught.value.detail == {"digest": text}


def test_an_unknown_algorithm_is_told_which_ones_there_are() -> None:
    """The answer is the next thing to try."""
    with pytest.raises(DigestInvalid, match="md5 is not supported; use sha256 or sha512"):
        Digest.parse("md5:d41d8cd98f00b204e9800998ecf8427e")


@settings(max_examples=50)
@given(st.binary(max_size=2), algorithms)
@example(b"", Algorithm.SHA256)
@example(b"", Algorithm.SHA512)
def test_only_no_bytes_at_all_are_empty_content(content: bytes, algorithm: Algorithm) -> None:
    """A POST with a digest and no body is a whole upload of this content, and of no other."""
    assert is_empty_content(Digest.of(content, algorithm)) == (not content)
    assert {EMPTY_SHA256.algorithm, EMPTY_SHA512.algorithm} == set(Algorithm)
