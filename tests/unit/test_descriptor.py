"""Descriptors: what each field may be, and that the error names the place."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.oci.descriptor import MAX_CONTENT_BYTES, Descriptor
from lading.oci.digest import Digest
from lading.oci.errors import ManifestInvalid

DIGEST = "sha256:" + "a" * 64
PLAIN: dict[str, Any] = {"mediaType": "text/plain", "digest": DIGEST, "size": 3}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def test_a_descriptor_has_a_type_a_digest_and_a_size() -> None:
    """These three are what image-spec requires; other fields are the client's own."""
    descriptor = Descriptor.parse({**PLAIN, "data": "Zm9v", "custom": [1], "annotations": {"a": "b"}}, "config")

    assert descriptor == Descriptor("text/plain", Digest.parse(DIGEST), 3, has_urls=False)


@pytest.mark.parametrize("size", [0, 1, MAX_CONTENT_BYTES])
def test_any_size_that_a_file_can_have_is_accepted(size: int) -> None:
    """A size is compared with the stored one later; here it only has to be one."""
    assert Descriptor.parse({**PLAIN, "size": size}, "config").content_bytes == size


@pytest.mark.parametrize("size", [True, False, -1, 1.0, 3.5, "3", None, [], MAX_CONTENT_BYTES + 1, float("inf")])
def test_a_size_is_an_integer_of_a_file(size: object) -> None:
    """In Python a bool is an integer and 1.0 equals 1; in JSON neither is a size."""
    with pytest.raises(ManifestInvalid, match=r"layers\[2\]\.size must be an integer"):
        Descriptor.parse({**PLAIN, "size": size}, "layers[2]")


@pytest.mark.parametrize("field", ["mediaType", "digest", "size"])
def test_a_required_field_that_is_missing_is_named(field: str) -> None:
    """The one who wrote the manifest looks for that word."""
    value = {key: entry for key, entry in PLAIN.items() if key != field}

    with pytest.raises(ManifestInvalid, match=rf"subject\.{field} "):
        Descriptor.parse(value, "subject")


@pytest.mark.parametrize("media_type", ["", None, 1, ["text/plain"], {}])
def test_a_media_type_is_a_text(media_type: object) -> None:
    """An empty type would be listed to clients that switch on it."""
    with pytest.raises(ManifestInvalid, match=r"config\.mediaType"):
        Descriptor.parse({**PLAIN, "mediaType": media_type}, "config")


@pytest.mark.parametrize("digest", ["", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:../../etc/passwd", 7, None])
def test_a_digest_is_parsed_before_it_is_used(digest: object) -> None:
    """It becomes a file name further down (I10)."""
    with pytest.raises(ManifestInvalid, match=r"config\.digest"):
        Descriptor.parse({**PLAIN, "digest": digest}, "config")


@pytest.mark.parametrize(("urls", "has_urls"), [(None, False), ([], False), (["https://example.org/x"], True)])
def test_content_with_urls_may_be_fetched_elsewhere(urls: object, *, has_urls: bool) -> None:
    """Only a real URL excuses a blob that was never pushed."""
    assert Descriptor.parse({**PLAIN, "urls": urls}, "layers[0]").has_urls is has_urls


@pytest.mark.parametrize("urls", ["https://example.org/x", [1], {}, [None], True])
def test_urls_are_a_list_of_texts(urls: object) -> None:
    """A value of another kind must not count as an excuse for missing content."""
    with pytest.raises(ManifestInvalid, match=r"layers\[0\]\.urls"):
        Descriptor.parse({**PLAIN, "urls": urls}, "layers[0]")


@settings(max_examples=300)
@given(json_values | st.fixed_dictionaries({}, optional=dict.fromkeys([*PLAIN, "urls"], json_values)))
def test_no_json_value_gets_past_the_one_error(value: object) -> None:
    """Any other exception would be answered as a fault of ours."""
    try:
        sentence = f"config has {Descriptor.parse(value, 'config').content_bytes} bytes"
    except ManifestInvalid as error:
        sentence = str(error)

    assert sentence.startswith("config")
