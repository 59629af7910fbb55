"""Manifests: what is accepted, how the type is decided, and that hostile JSON is refused cheaply and by one error."""

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lading.oci import media_types
from lading.oci.digest import Digest
from lading.oci.errors import ManifestInvalid
from lading.oci.manifest import MAX_DEPTH, MAX_ELEMENTS, MAX_MANIFEST_BYTES, MAX_REFERENCES, Manifest, parse

Json = dict[str, Any]

OCI_IMAGE, OCI_INDEX = media_types.OCI_MANIFEST, media_types.OCI_INDEX
DOCKER_IMAGE, DOCKER_LIST = media_types.DOCKER_MANIFEST, media_types.DOCKER_MANIFEST_LIST
TYPES = [OCI_IMAGE, OCI_INDEX, DOCKER_IMAGE, DOCKER_LIST]
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def descriptor(letter: str, media_type: str, **more: object) -> Json:
    return {"mediaType": media_type, "digest": f"sha256:{letter * 64}", "size": 7, **more}


def image(**more: object) -> Json:
    return {
        "schemaVersion": 2,
        "config": descriptor("a", CONFIG_TYPE),
        "layers": [descriptor("b", LAYER_TYPE), descriptor("c", LAYER_TYPE)],
        **more,
    }


def index(**more: object) -> Json:
    return {"schemaVersion": 2, "manifests": [descriptor("d", OCI_IMAGE), descriptor("e", OCI_INDEX)], **more}


def document_of(media_type: str, **more: object) -> Json:
    return index(**more) if media_type in media_types.INDEXES else image(**more)


def read(document: Json, content_type: str = OCI_IMAGE) -> Manifest:
    return parse(json.dumps(document).encode(), content_type)


def refusal(payload: bytes, content_type: str = OCI_IMAGE) -> str:
    """Return the sentence by which the payload is refused."""
    with pytest.raises(ManifestInvalid) as caught:
        parse(payload, content_type)
    return str(caught.value)


def with_field(field: bytes) -> bytes:
    """Return a valid image manifest that has the raw JSON `field` as well."""
    return json.dumps(image()).encode()[:-1] + b', "x": ' + field + b"}"


def letters(manifest: Manifest) -> tuple[str, str, str]:
    """Return which blobs, optional blobs and children the manifest names, a letter for each."""
    parts = (manifest.blobs, manifest.optional_blobs, manifest.children)
    blobs, optional, children = ("".join(str(entry.digest)[7] for entry in part) for part in parts)
    return blobs, optional, children


# What is accepted


def test_an_image_names_its_config_and_then_its_layers() -> None:
    """All of them must be there before the manifest is (I3)."""
    manifest = read(image())

    assert letters(manifest) == ("abc", "", "")
    assert (manifest.media_type, manifest.artifact_type, manifest.subject) == (OCI_IMAGE, CONFIG_TYPE, None)


def test_an_index_names_its_children() -> None:
    """They are manifests, or blobs in a build cache."""
    manifest = read(index(), OCI_INDEX)

    assert letters(manifest) == ("", "", "de")
    assert (manifest.media_type, manifest.artifact_type) == (OCI_INDEX, None)


@pytest.mark.parametrize(("document", "media_type"), [(image(layers=[]), OCI_IMAGE), (index(manifests=[]), OCI_INDEX)])
def test_empty_lists_are_lists(document: Json, media_type: str) -> None:
    """Artifacts without layers and indexes without children are pushed by the conformance suite."""
    assert read(document, media_type).media_type == media_type


@pytest.mark.parametrize(
    "layer",
    [
        descriptor("c", LAYER_TYPE, urls=["https://example.org/layer"]),
        descriptor("c", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
        descriptor("c", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    ],
)
def test_a_foreign_layer_may_be_absent(layer: Json) -> None:
    """Its bytes are never pushed (image-spec, Non-Distributable Layers)."""
    assert letters(read(image(layers=[descriptor("b", LAYER_TYPE), layer]))) == ("ab", "c", "")


def test_a_config_is_never_optional() -> None:
    """Only layers have bytes that their owner may forbid to copy."""
    config = descriptor("a", "application/vnd.oci.image.layer.nondistributable.v1.tar", urls=["https://example.org/"])

    assert letters(read(image(config=config))) == ("abc", "", "")


def test_unknown_fields_and_types_are_the_clients_own() -> None:
    """A registry that refuses what it does not know stops every new kind of artifact."""
    config, layer = descriptor("a", "application/x-mine"), descriptor("b", "model/x-new", data="Zm9v", custom={"a": 1})

    manifest = read(image(config=config, layers=[layer], artifactType="application/x-thing", custom=[None, 1.5, True]))

    assert manifest.artifact_type == "application/x-thing"
    assert letters(manifest) == ("ab", "", "")


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=4), st.booleans())
def test_the_bytes_are_kept_as_they_came(extra: Json, indented: bool) -> None:  # noqa: FBT001 - drawn
    """The digest is of these bytes, so not even a space may change."""
    payload = json.dumps({**extra, **image()}, indent=2 if indented else None).encode() + b" \n"

    assert parse(payload, OCI_IMAGE if extra.get("mediaType") is None else "").payload == payload


# The type: protocol 1.6


@pytest.mark.parametrize("media_type", TYPES)
@pytest.mark.parametrize("suffix", ["", "; charset=utf-8", ";charset=UTF-8 ", " ; a=b; c=d"])
def test_the_header_and_the_body_agree_on_the_type(media_type: str, suffix: str) -> None:
    """What is served later is the bare type; parameters of the header are not part of it."""
    assert read(document_of(media_type, mediaType=media_type), media_type + suffix).media_type == media_type


@pytest.mark.parametrize("header", ["", "application/json", "application/octet-stream", "application/json; charset=x"])
@pytest.mark.parametrize("media_type", TYPES)
def test_a_generic_header_leaves_the_type_to_the_body(media_type: str, header: str) -> None:
    """Scripts send whatever their default is."""
    assert read(document_of(media_type, mediaType=media_type), header).media_type == media_type


@pytest.mark.parametrize(("document", "media_type"), [(image(), OCI_IMAGE), (index(), OCI_INDEX)])
@pytest.mark.parametrize("header", ["", "application/json"])
def test_without_any_type_the_shape_decides(document: Json, media_type: str, header: str) -> None:
    """A config with layers is an image manifest, and manifests are an index."""
    assert read(document, header).media_type == media_type


@pytest.mark.parametrize("media_type", [OCI_IMAGE, OCI_INDEX])
def test_an_oci_type_may_be_missing_in_the_body(media_type: str) -> None:
    """Helm and older buildah leave it out."""
    assert read(document_of(media_type), media_type).media_type == media_type


@pytest.mark.parametrize("media_type", [DOCKER_IMAGE, DOCKER_LIST])
def test_a_docker_type_must_be_in_the_body(media_type: str) -> None:
    """Docker's own format requires it."""
    assert "must carry its mediaType" in refusal(json.dumps(document_of(media_type)).encode(), media_type)


@pytest.mark.parametrize(
    ("header", "in_body"), [(header, in_body) for header in TYPES for in_body in TYPES if header != in_body]
)
def test_a_header_that_contradicts_the_body_is_refused(header: str, in_body: str) -> None:
    """Two clients would read two things out of one digest (CVE-2021-41190)."""
    for document in (image(mediaType=in_body), index(mediaType=in_body)):
        assert f"mediaType is {in_body}" in refusal(json.dumps(document).encode(), header)


@pytest.mark.parametrize("media_type", sorted(media_types.SCHEMA1))
def test_schema_1_is_refused_by_name(media_type: str) -> None:
    """Whoever still has such an image needs to know that it is the format that is gone."""
    body = json.dumps({"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "mediaType": media_type}).encode()

    assert "schema 1" in refusal(body, media_type)
    assert "schema 1" in refusal(body, "")


@pytest.mark.parametrize("media_type", ["text/plain", "application/vnd.oci.artifact.manifest.v1+json", CONFIG_TYPE])
def test_another_type_is_no_manifest(media_type: str) -> None:
    """Podman converts its manifest when it reads MANIFEST_INVALID, and stops at anything else."""
    assert f"{media_type} is not a manifest type" in refusal(json.dumps(image()).encode(), media_type)
    assert f"{media_type} is not a manifest type" in refusal(json.dumps(image(mediaType=media_type)).encode(), "")


@pytest.mark.parametrize("media_type", [1, True, [OCI_IMAGE], {}])
def test_a_media_type_that_is_no_text_is_refused(media_type: object) -> None:
    """It would be stored and sent as a header."""
    assert refusal(json.dumps(image(mediaType=media_type)).encode(), "") == "mediaType must be a string"


@pytest.mark.parametrize("document", [{"schemaVersion": 2}, {"schemaVersion": 2, "layers": []}, {}])
def test_a_shape_that_is_neither_is_refused(document: Json) -> None:
    """There is no type left to guess."""
    assert "looks like no manifest" in refusal(json.dumps(document).encode(), "")


@pytest.mark.parametrize("both", [image(manifests=[]), index(layers=[]), index(config=None), image(manifests=None)])
@pytest.mark.parametrize("header", [OCI_IMAGE, OCI_INDEX, ""])
def test_a_manifest_that_is_both_is_refused(both: Json, header: str) -> None:
    """One client would see an image and another an index under the same digest (CVE-2021-41190)."""
    assert "this one has both" in refusal(json.dumps(both).encode(), header)


@pytest.mark.parametrize(("document", "media_type"), [(image(), OCI_INDEX), (index(), OCI_IMAGE)])
def test_a_body_of_the_other_shape_is_refused(document: Json, media_type: str) -> None:
    """Its references would go unchecked."""
    refusal(json.dumps(document).encode(), media_type)


@pytest.mark.parametrize("version", [1, 3, 2.0, True, "2", None, [2]])
def test_the_schema_version_is_the_integer_2(version: object) -> None:
    """2.0 equals 2 in Python, and is none of the specification's."""
    assert refusal(json.dumps(image(schemaVersion=version)).encode()) == "schemaVersion must be 2"


def test_the_schema_version_must_be_there() -> None:
    """A list of configs and layers without it is somebody else's format."""
    document = image()
    del document["schemaVersion"]

    assert refusal(json.dumps(document).encode()) == "schemaVersion must be 2"


# Artifact type, annotations, subject


@pytest.mark.parametrize(("given_type", "listed"), [("a/b", "a/b"), (None, CONFIG_TYPE), ("", CONFIG_TYPE)])
def test_an_image_without_artifact_type_is_listed_by_its_config(given_type: str | None, listed: str) -> None:
    """Distribution-spec says so for referrers, and cosign relies on it."""
    assert read(image(artifactType=given_type)).artifact_type == listed


def test_an_index_has_its_own_artifact_type_or_none() -> None:
    """It has no config to take one from."""
    assert read(index(artifactType="a/b"), OCI_INDEX).artifact_type == "a/b"
    assert read(index(), OCI_INDEX).artifact_type is None


@pytest.mark.parametrize("value", [1, True, [], {}])
def test_an_artifact_type_is_a_text(value: object) -> None:
    """Referrers are filtered by it."""
    assert refusal(json.dumps(image(artifactType=value)).encode()) == "artifactType must be a string"


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=5), st.booleans())
def test_annotations_are_read_exactly(annotations: dict[str, str], escaped: bool) -> None:  # noqa: FBT001 - drawn
    """The referrers list repeats them, and signatures of policies hang on them."""
    payload = json.dumps(image(annotations=annotations), ensure_ascii=escaped).encode()

    assert parse(payload, OCI_IMAGE).annotations == annotations


@pytest.mark.parametrize("annotations", [{"a": 1}, {"a": None}, {"a": {}}, [], "a", 1, False])
def test_annotations_are_texts_by_texts(annotations: object) -> None:
    """Image-spec says so, and clients in typed languages fail on anything else."""
    message = refusal(json.dumps(image(annotations=annotations)).encode())

    assert message == "annotations must be an object with string values"


def test_missing_annotations_are_none_at_all() -> None:
    """Null and absent are the same to every client."""
    assert read(image()).annotations == read(image(annotations=None)).annotations == {}


def test_a_subject_is_read_and_never_counted_as_content() -> None:
    """It may come later, or never (distribution-spec, Pushing Manifests with Subject)."""
    subject = descriptor("f", OCI_IMAGE)

    manifest = read(image(subject=subject))

    assert manifest.subject is not None
    assert manifest.subject.digest == Digest.parse(f"sha256:{'f' * 64}")
    assert letters(manifest) == ("abc", "", "")
    assert read(index(subject=subject), OCI_INDEX).subject == manifest.subject
    assert read(image(subject=None)).subject is None


@pytest.mark.parametrize("subject", ["sha256:" + "f" * 64, {}, [], 0, False, {**descriptor("f", "a/b"), "size": True}])
def test_a_subject_is_a_descriptor(subject: object) -> None:
    """A referrer of nothing would be lost to everybody."""
    assert refusal(json.dumps(image(subject=subject)).encode()).startswith("subject")


@pytest.mark.parametrize("field", ["config", "layers"])
@pytest.mark.parametrize("value", [None, 1, "x", {}, True, [1], [None]])
def test_what_is_no_reference_is_named(field: str, value: object) -> None:
    """A reference that cannot be read cannot be held by a foreign key."""
    assert refusal(json.dumps(image(**{field: value})).encode()).startswith(field)


@pytest.mark.parametrize("size", [True, -1, 1.0, "7", None, 2**63])
@pytest.mark.parametrize("field", ["config", "layers", "subject"])
def test_a_size_that_is_none_is_refused_wherever_it_stands(field: str, size: object) -> None:
    """It is compared with the stored size, where a bool would count as one byte."""
    wrong = {**descriptor("a", "a/b"), "size": size}

    message = refusal(json.dumps(image(**{field: [wrong] if field == "layers" else wrong})).encode())

    assert message.startswith(f"{field}[0].size" if field == "layers" else f"{field}.size")


def test_a_list_of_references_has_a_bound() -> None:
    """Each one is a row in one transaction, in which all other pushers wait."""
    layers = [descriptor("b", "a/b")]

    assert len(read(image(layers=layers * MAX_REFERENCES)).blobs) == MAX_REFERENCES + 1
    assert f"at most {MAX_REFERENCES}" in refusal(json.dumps(image(layers=layers * (MAX_REFERENCES + 1))).encode())


# Hostile JSON


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"nothing",
        b"{",
        b'{"a"}',
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b"\xef\xbb\xbf" + json.dumps(image()).encode(),
        json.dumps(image()).encode("utf-16"),
        json.dumps(image()).encode("utf-32-le"),
        json.dumps(image()).encode() + b"{}",
        json.dumps(image()).encode() + b"\x00",
        json.dumps(image()).encode() + b"}",
        with_field(b'"\xff"'),
        with_field(b'"\xc0\xaf"'),
        with_field(b'"\xed\xa0\x80"'),
        with_field(b'"\n"'),
        with_field(b"'single'"),
        with_field(b"01"),
        with_field(b"1,"),
        with_field(b"[1,]"),
        with_field(b"/* comment */ 1"),
        with_field(b"\xc2\xa01"),
    ],
)
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    """What one parser forgives another refuses, and then the registry serves what a client cannot read."""
    refusal(payload)


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_only_python_calls_json_is_refused(constant: bytes) -> None:
    """RFC 8259 has no such numbers; Go's parser stops at them."""
    assert refusal(with_field(constant)) == f"{constant.decode()} is not JSON"


@pytest.mark.parametrize(
    "payload",
    [
        with_field(b"1").replace(b'"x"', b'"schemaVersion"'),
        with_field(b"[]").replace(b'"x"', b'"layers"'),
        with_field(b'{"a": 1, "a": 1}'),
        with_field(b'[[{"a": {}, "b": [], "a": null}]]'),
        with_field(b'{"a": 1, "\\u0061": 2}'),
    ],
)
def test_a_key_that_appears_twice_is_refused(payload: bytes) -> None:
    """Parsers differ in which one wins, so the digest would stand for two manifests."""
    assert "appears twice" in refusal(payload)


@pytest.mark.parametrize("opened", [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_has_a_bound(opened: tuple[bytes, bytes]) -> None:
    """The decoder recurses; deep enough input would exhaust the stack."""
    begin, end = opened
    inner = b"[]" if begin == b"[" else b"{}"

    def nested(depth: int) -> bytes:  # the object around the field is the first level, `inner` the last
        return with_field(begin * (depth - 2) + inner + end * (depth - 2))

    assert parse(nested(MAX_DEPTH), OCI_IMAGE).media_type == OCI_IMAGE
    assert refusal(nested(MAX_DEPTH + 1)) == f"the manifest is nested deeper than {MAX_DEPTH} levels"
    assert refusal(nested(200_000)) == f"the manifest is nested deeper than {MAX_DEPTH} levels"


def test_brackets_in_texts_do_not_count_as_nesting() -> None:
    """Annotations hold whole JSON documents, quoted."""
    text = json.dumps({"a": "[{" * 200 + '\\"' + "[" * 100}) * 50

    manifest = read(image(annotations={"document": text, "[" * 100: "{" * 100}))

    assert manifest.annotations["document"] == text


def test_closing_brackets_do_not_buy_depth() -> None:
    """The depth is what the decoder meets, whatever stands before it."""
    refusal(b"]" * 1000 + b"[" * 1000)
    refusal(with_field(b"]" * 1000 + b"[" * 1000))


def test_objects_and_lists_have_a_bound() -> None:
    """Four megabytes of `{}` would become hundreds of megabytes of Python objects."""
    present = sum(with_field(b"[]").count(mark) for mark in (b"{", b"[", b","))
    most = (MAX_ELEMENTS - present + 1) // 2  # each is an object, and all but one come with a comma

    assert parse(with_field(b"[" + b",".join([b"{}"] * most) + b"]"), OCI_IMAGE).media_type == OCI_IMAGE
    assert f"more than {MAX_ELEMENTS}" in refusal(with_field(b"[" + b",".join([b"{}"] * (most + 1)) + b"]"))


def test_a_bracket_that_closes_nothing_ends_the_reading_at_once() -> None:
    """Megabytes of them would be looked at one by one."""
    assert "closes nothing" in refusal(b"]" * MAX_MANIFEST_BYTES)


@pytest.mark.parametrize(
    "unit",
    [b'"', b'\\"', b'"\\', b'"a', b"\\", b'"\\"', b'{"', b'["', b"[]", b"{}", b"]", b'"",', b"\\u", b'"\xc3\xa9'],
    ids=repr,
)
def test_hostile_repetition_takes_time_in_proportion_to_its_length(unit: bytes) -> None:
    """A pattern that backtracks takes minutes for what this allows a quarter of a second of the processor."""
    for opening in (b"", b'{"a": "'):
        payload = (opening + unit * (MAX_MANIFEST_BYTES // 16 // len(unit)))[: MAX_MANIFEST_BYTES // 16]
        started = time.process_time()

        refusal(payload)

        assert time.process_time() - started < 1.0


@pytest.mark.parametrize("digits", [20, 21, 4300, 5000, 200_000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_huge_integer_is_nobodys_size_and_nobodys_fault(digits: int, sign: str) -> None:
    """Python refuses to convert more than 4300 digits, and needs quadratic time for those it converts."""
    number = f"{sign}1{'0' * (digits - 1)}".encode()

    assert parse(with_field(number), OCI_IMAGE).media_type == OCI_IMAGE
    assert "config.size" in refusal(json.dumps(image()).encode().replace(b'"size": 7', b'"size": ' + number, 1))
    assert "schemaVersion" in refusal(json.dumps(image()).encode().replace(b": 2,", b": " + number + b",", 1))


def test_an_exponent_does_not_make_an_integer() -> None:
    """`2e0` equals 2, and `7e0` is no size."""
    assert "schemaVersion" in refusal(json.dumps(image()).encode().replace(b": 2,", b": 2e0,", 1))
    assert "config.size" in refusal(json.dumps(image()).encode().replace(b'"size": 7', b'"size": 7e0', 1))


@pytest.mark.parametrize("field", ["artifactType", "annotations", "config"])
def test_half_a_surrogate_pair_is_refused_where_it_would_be_stored(field: str) -> None:
    """No database and no UTF-8 reply can hold one, so it would fail further down as a fault of ours."""
    value = {
        "artifactType": "a/\ud800",
        "annotations": {"a": "\udc00"},
        "config": descriptor("a", "a/\ud800"),
    }[field]

    refusal(json.dumps(image(**{"subject": descriptor("f", OCI_IMAGE), field: value})).encode())


@settings(max_examples=200)
@given(st.data())
def test_damage_anywhere_gives_a_manifest_or_the_one_error(data: st.DataObject) -> None:
    """Any other exception would be answered as a fault of ours."""
    payload = bytearray(json.dumps(data.draw(st.sampled_from([image(), index()]))).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(payload) - 1))
        length = data.draw(st.integers(0, 8))
        payload[start : start + length] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"null", b"{}", b"1", b'"'])
        )

    try:
        manifest = parse(bytes(payload), data.draw(st.sampled_from([OCI_IMAGE, OCI_INDEX, ""])))
    except ManifestInvalid:
        return

    assert manifest.payload == payload


@settings(max_examples=200)
@given(st.text('[]{}",:\\ 1a\ud800', max_size=30) | st.binary(max_size=30))
@example("")
def test_any_text_gives_the_one_error(text: str | bytes) -> None:
    """The parser is the first thing that a stranger's bytes meet."""
    payload = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")

    with pytest.raises(ManifestInvalid):
        parse(payload, "")
