"""Manifests: what a registry must understand of one (image-spec "Image Manifest" and "Image Index").

The bytes are stored and served verbatim; this is the reading beside them.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from lading.oci import media_types
from lading.oci.descriptor import Descriptor
from lading.oci.errors import ManifestInvalid

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
MAX_REFERENCES = 10_000
_MAX_INTEGER_DIGITS = 20
MAX_ELEMENTS = 250_000
MAX_TOKENS = 4 * MAX_ELEMENTS
# A string is one token, whole or unterminated, and possessive: the scan is linear whatever is sent.
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One accepted manifest or index, with the exact bytes that were pushed.

    `blobs` must exist in the repository, in the order config, layers; `optional_blobs` are foreign layers that may;
    `children` are an index's manifests. `artifact_type` is what referrers list: the manifest's own, else the config's.
    """

    payload: bytes
    media_type: str
    artifact_type: str | None
    subject: Descriptor | None
    blobs: tuple[Descriptor, ...] = ()
    optional_blobs: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


def parse(payload: bytes, content_type: str) -> Manifest:
    """Read a pushed manifest; `content_type` is the request's header, or empty.

    Raises:
        ManifestInvalid: it is not JSON as RFC 8259 and this registry's bounds have it, not a type that a registry
            stores, or breaks a rule of its type.

    """
    document = _decode(payload)
    media_type = _media_type(document, media_types.without_parameters(content_type))
    if document.get("schemaVersion") != 2 or type(document.get("schemaVersion")) is not int:
        raise ManifestInvalid("schemaVersion must be 2")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise ManifestInvalid("a manifest has config and layers, an index has manifests; this one has both")
    subject = document.get("subject")
    is_index = media_type in media_types.INDEXES
    blobs, optional_blobs = ((), ()) if is_index else _blobs(document)
    return Manifest(
        payload=payload,
        media_type=media_type,
        artifact_type=_artifact_type(document) or (blobs[0].media_type if blobs else None),
        subject=None if subject is None else Descriptor.parse(subject, "subject"),
        blobs=blobs,
        optional_blobs=optional_blobs,
        children=_descriptors(document, "manifests") if is_index else (),
        annotations=_annotations(document),
    )


def _blobs(document: Mapping[str, object]) -> tuple[tuple[Descriptor, ...], tuple[Descriptor, ...]]:
    """Return config and layers, and apart from them the layers that may be absent: they are fetched from elsewhere."""
    required: list[Descriptor] = [Descriptor.parse(document.get("config"), "config")]
    optional: list[Descriptor] = []
    for layer in _descriptors(document, "layers"):
        may_be_absent = layer.has_urls or media_types.is_foreign_layer(layer.media_type)
        (optional if may_be_absent else required).append(layer)
    return tuple(required), tuple(optional)


def _descriptors(document: Mapping[str, object], key: str) -> tuple[Descriptor, ...]:
    values = document.get(key)
    if not isinstance(values, list):
        raise ManifestInvalid(f"{key} must be a list of descriptors")
    if len(values) > MAX_REFERENCES:
        raise ManifestInvalid(f"{key} has {len(values)} entries; at most {MAX_REFERENCES} are supported")
    return tuple(Descriptor.parse(value, f"{key}[{position}]") for position, value in enumerate(values))


def _annotations(document: Mapping[str, object]) -> Mapping[str, str]:
    annotations = document.get("annotations")
    if annotations is None:
        return {}
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise ManifestInvalid("annotations must be an object with string values")
    return annotations


def _artifact_type(document: Mapping[str, object]) -> str | None:
    artifact_type = document.get("artifactType")
    if artifact_type is not None and not isinstance(artifact_type, str):
        raise ManifestInvalid("artifactType must be a string")
    return artifact_type or None


def _media_type(document: Mapping[str, object], content_type: str) -> str:
    """Decide the type: the header and the body must agree; a generic or missing header leaves it to the body."""
    in_body = document.get("mediaType")
    if in_body is not None and not isinstance(in_body, str):
        raise ManifestInvalid("mediaType must be a string")
    if content_type in media_types.GENERIC:
        media_type = in_body or _type_by_shape(document)
    else:
        media_type = content_type
        if in_body and in_body != content_type:
            raise ManifestInvalid(f"Content-Type is {content_type}, but the manifest's mediaType is {in_body}")
    if media_type in media_types.SCHEMA1:
        raise ManifestInvalid("Docker schema 1 manifests are not supported; push schema 2 or OCI manifests")
    if media_type not in media_types.MANIFESTS:
        raise ManifestInvalid(f"{media_type} is not a manifest type that a registry stores")
    if media_type in media_types.DOCKER_TYPES and not in_body:
        raise ManifestInvalid(f"a {media_type} manifest must carry its mediaType")
    return media_type


def _type_by_shape(document: Mapping[str, object]) -> str:
    if "manifests" in document:
        return media_types.OCI_INDEX
    if "config" in document and "layers" in document:
        return media_types.OCI_MANIFEST
    raise ManifestInvalid("neither Content-Type nor mediaType says what this is, and it looks like no manifest")


def _decode(payload: bytes) -> Mapping[str, object]:
    """Decode strictly: UTF-8 without BOM, no duplicate keys, no NaN, nothing after the value, bounded depth."""
    try:
        text = payload.decode("utf-8", errors="strict")
        _refuse_excess(text)
        document = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_int=_bounded_integer
        )
        if _SURROGATE.search(text):  # half a pair is text that neither UTF-8 nor a database can hold
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"the manifest is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ManifestInvalid("the manifest must be a JSON object")
    return document


def _refuse_excess(text: str) -> None:
    """Refuse deep nesting and floods of objects before the decoder meets them; text in strings is passed over."""
    depth = elements = 0
    for tokens, match in enumerate(_STRUCTURE.finditer(text)):
        found = match.group()
        if found in "[{":
            depth += 1
            elements += 1
            if depth > MAX_DEPTH:
                raise ManifestInvalid(f"the manifest is nested deeper than {MAX_DEPTH} levels")
        elif found in "]}":
            depth -= 1
        elif found == ",":
            elements += 1
        if depth < 0:
            raise ManifestInvalid("the manifest is not valid JSON: a bracket closes nothing")
        if elements > MAX_ELEMENTS or tokens > MAX_TOKENS:
            raise ManifestInvalid(f"the manifest has more than {MAX_ELEMENTS} elements")


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ManifestInvalid(f"the key {twice!r} appears twice in one object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ManifestInvalid(f"{name} is not JSON")


def _bounded_integer(digits: str) -> int | float:
    """Read an integer; one too long for any size becomes a float, so that no later check takes it for one."""
    return int(digits) if len(digits) <= _MAX_INTEGER_DIGITS else float(digits)
