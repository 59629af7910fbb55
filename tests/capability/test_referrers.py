"""Referrers: what was attached to a manifest, such as its signatures and its bills of materials."""

from urllib.parse import quote

import pytest

from tests.capability.content import (
    EMPTY_JSON,
    EMPTY_TYPE,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
    Json,
    descriptor,
    digest_of,
    encode,
    index_of,
    manifest_of,
    random_content,
)
from tests.capability.paging import pages
from tests.capability.repository import Repository, new_name
from tests.wire import Reply

SIGNATURE = "application/vnd.example.signature"
SBOM = "application/vnd.example.sbom+json"
PAGE_BYTES = 4 * 1024 * 1024


def list_referrers(repository: Repository, digest: str, query: str = "") -> Reply:
    return repository.request("GET", f"referrers/{digest}{query}")


def entries(reply: Reply) -> list[Json]:
    """Assert the form that every client compares exactly, and return the entries."""
    reply.expect(200, {"Content-Type": OCI_INDEX, "Content-Encoding": None})
    document = reply.json()
    assert document["schemaVersion"] == 2, str(reply)
    assert document["mediaType"] == OCI_INDEX, str(reply)
    listed: list[Json] = document["manifests"]
    return listed


def digests(reply: Reply) -> list[str]:
    return sorted(entry["digest"] for entry in entries(reply))


def attach(repository: Repository, subject: Json, artifact_type: str | None = SIGNATURE, **fields: object) -> bytes:
    """Push an artifact that refers to `subject`, by digest only, and return its manifest."""
    repository.push_blob(EMPTY_JSON)
    kind = {"artifactType": artifact_type} if artifact_type else {}
    layer = random_content(16)
    repository.push_blob(layer)
    document = manifest_of(
        descriptor(EMPTY_JSON, EMPTY_TYPE), [descriptor(layer)], **{**kind, "subject": subject, **fields}
    )
    body = encode(document)
    repository.put_manifest(digest_of(body), body).expect(201, {"OCI-Subject": subject["digest"]})
    return body


@pytest.fixture
def image(repository: Repository) -> Image:
    """Push an image to attach something to."""
    return repository.push_image("latest")


@pytest.fixture
def subject(image: Image) -> Json:
    """Describe that image."""
    return descriptor(image.manifest, OCI_MANIFEST)


@pytest.mark.case(124)
def test_nothing_attached_is_an_empty_index(repository: Repository) -> None:
    """A 404 would make clients fall back to tags for good, so even an unknown repository answers."""
    known = Repository(repository.wire, new_name())
    image = known.push_image("latest")

    unknown_subject = list_referrers(known, digest_of(b"unknown"))
    no_referrers = list_referrers(known, image.digest)
    unknown_repository = list_referrers(repository, digest_of(b"unknown"))
    zeros = list_referrers(repository, f"sha256:{'0' * 64}")

    for reply in (unknown_subject, no_referrers, unknown_repository, zeros):
        assert entries(reply) == [], str(reply)
        assert reply.get("Link") is None, str(reply)


@pytest.mark.case(125)
@pytest.mark.parametrize("digest", ["sha256:abc", "latest", "md5:d41d8cd98f00b204e9800998ecf8427e"])
def test_referrers_of_a_malformed_digest_are_refused(repository: Repository, image: Image, digest: str) -> None:
    """An empty list would say that nothing is attached, where nothing was understood."""
    assert image.digest

    reply = list_referrers(repository, digest)

    reply.expect_error(400, "DIGEST_INVALID")


@pytest.mark.case(126)
def test_a_referrer_may_come_before_its_subject(repository: Repository) -> None:
    """Copying tools push the attached things first, so that no one sees the image without its signature."""
    other = Repository(repository.wire, new_name())
    image = other.push_image()
    body = attach(repository, descriptor(image.manifest, OCI_MANIFEST))

    before = list_referrers(repository, image.digest)
    repository.push_image("latest", image)
    after = list_referrers(repository, image.digest)

    assert digests(before) == digests(after) == [digest_of(body)]


@pytest.mark.case(127)
def test_the_type_of_a_referrer_is_told(repository: Repository, image: Image, subject: Json) -> None:
    """Clients pick what to fetch by it: the manifest's own word, else its config's type, else none."""
    own = attach(repository, subject, SIGNATURE)
    by_config = encode({**image.document(), "subject": subject})
    repository.put_manifest(digest_of(by_config), by_config).expect(201)
    typed_index = repository.push_index(index_of([], subject=subject, artifactType=SBOM))
    plain_index = repository.push_index(index_of([], subject=subject))

    listed = {entry["digest"]: entry for entry in entries(list_referrers(repository, image.digest))}

    assert listed == {
        digest_of(body): {
            "mediaType": media_type,
            "digest": digest_of(body),
            "size": len(body),
            **({"artifactType": artifact_type} if artifact_type else {}),
        }
        for body, media_type, artifact_type in [
            (own, OCI_MANIFEST, SIGNATURE),
            (by_config, OCI_MANIFEST, OCI_CONFIG),
            (typed_index, OCI_INDEX, SBOM),
            (plain_index, OCI_INDEX, None),
        ]
    }


@pytest.mark.case(128)
def test_annotations_of_a_referrer_are_copied(repository: Repository, image: Image, subject: Json) -> None:
    """Clients filter by annotations without fetching each referrer, and compare them exactly."""
    annotations = {"org.example.b": 'quoted "x" \\ / \u20ac \U0001f40b', "org.example.a": ""}
    with_some = attach(repository, subject, annotations=annotations)
    without = attach(repository, subject)

    listed = {entry["digest"]: entry for entry in entries(list_referrers(repository, image.digest))}

    assert listed[digest_of(with_some)]["annotations"] == annotations
    assert "annotations" not in listed[digest_of(without)]


@pytest.mark.case(129)
def test_referrers_are_filtered_by_type(repository: Repository, image: Image, subject: Json) -> None:
    """The header tells the client that it need not filter itself, so it must not come without the filter."""
    signature, sbom = attach(repository, subject, SIGNATURE), attach(repository, subject, SBOM)

    matching = list_referrers(repository, image.digest, f"?artifactType={SIGNATURE}")
    escaped = list_referrers(repository, image.digest, f"?artifactType={quote(SBOM, safe='')}")
    none = list_referrers(repository, image.digest, "?artifactType=application/vnd.example.other")
    everything = list_referrers(repository, image.digest)

    assert digests(matching) == [digest_of(signature)]
    assert digests(escaped) == [digest_of(sbom)]
    assert digests(none) == []
    assert digests(everything) == sorted([digest_of(signature), digest_of(sbom)])
    for reply in (matching, escaped, none):
        reply.expect(200, {"OCI-Filters-Applied": "artifactType"})
    everything.expect(200, {"OCI-Filters-Applied": None})


@pytest.mark.case(130)
def test_several_types_are_a_union(repository: Repository, image: Image, subject: Json) -> None:
    """Containerd repeats the parameter and means any of them."""
    signature, sbom = attach(repository, subject, SIGNATURE), attach(repository, subject, SBOM)
    attach(repository, subject, "application/vnd.example.other")

    reply = list_referrers(repository, image.digest, f"?artifactType={SIGNATURE}&artifactType={quote(SBOM, safe='')}")

    assert digests(reply) == sorted([digest_of(signature), digest_of(sbom)])
    reply.expect(200, {"OCI-Filters-Applied": "artifactType"})


@pytest.mark.case(131)
def test_deleting_follows_the_referrer_not_the_subject(repository: Repository, image: Image, subject: Json) -> None:
    """A withdrawn signature must vanish at once; one whose image is gone is still there to be found and cleaned up."""
    stays, goes = attach(repository, subject), attach(repository, subject)

    repository.request("DELETE", f"manifests/{digest_of(goes)}").expect(202)
    after_referrer = list_referrers(repository, image.digest)
    repository.request("DELETE", f"manifests/{image.digest}").expect(202)
    after_subject = list_referrers(repository, image.digest)

    assert digests(after_referrer) == [digest_of(stays)]
    assert digests(after_subject) == [digest_of(stays)]


@pytest.mark.case(132)
def test_a_referrer_is_listed_once(repository: Repository, image: Image, subject: Json) -> None:
    """It is one manifest however often it was pushed and whatever its tags."""
    body = attach(repository, subject)
    repository.put_manifest(digest_of(body), body).expect(201)
    for tag in ("signature", "other"):
        repository.put_manifest(tag, body).expect(201, {"OCI-Subject": image.digest})

    assert digests(list_referrers(repository, image.digest)) == [digest_of(body)]


@pytest.mark.case(133)
def test_a_long_list_of_referrers_is_paged(repository: Repository, image: Image, subject: Json) -> None:
    """Most clients read one page only, so pages are large; but no client reads an index without bounds."""
    bodies = [attach(repository, subject, annotations={"fat": f"{number}" * 600_000}) for number in range(9)]
    thin = attach(repository, subject, SBOM)

    everything = pages(repository.wire, repository.url(f"referrers/{image.digest}"))
    filtered = pages(repository.wire, repository.url(f"referrers/{image.digest}?artifactType={SIGNATURE}"))

    for replies, expected in ((everything, [*bodies, thin]), (filtered, bodies)):
        listed = [entry["digest"] for reply in replies for entry in entries(reply)]
        assert sorted(listed) == sorted(map(digest_of, expected))
        assert len(replies) > 1, "one page of more than 5 MB"
        sizes = [len(reply.body) for reply in replies]
        assert max(sizes) <= PAGE_BYTES + 1_000_000, sizes
    for reply in filtered:
        reply.expect(200, {"OCI-Filters-Applied": "artifactType"})


@pytest.mark.case(134)
def test_a_subject_is_matched_by_the_digest_it_was_named_by(repository: Repository, image: Image) -> None:
    """A digest is compared as it stands; nobody vouched that two of them are of the same content."""
    longer = descriptor(image.manifest, OCI_MANIFEST, "sha512")
    body = attach(repository, longer)

    by_sha512 = list_referrers(repository, longer["digest"])
    by_sha256 = list_referrers(repository, image.digest)

    assert digests(by_sha512) == [digest_of(body)]
    assert digests(by_sha256) == []


def test_referrers_belong_to_one_repository(repository: Repository, image: Image, subject: Json) -> None:
    """A signature in another repository says nothing about this one, and may not be ours to see."""
    other = Repository(repository.wire, new_name())
    other.push_image("latest", image)
    body = attach(other, subject)

    assert digests(list_referrers(repository, image.digest)) == []
    assert digests(list_referrers(other, image.digest)) == [digest_of(body)]
