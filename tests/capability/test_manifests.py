"""Manifests: kept byte by byte, checked before they are accepted, found by digest and by tag."""

import json
import threading
from collections.abc import Callable

import pytest

from tests.capability.content import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    EMPTY_JSON,
    EMPTY_TYPE,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Image,
    Json,
    descriptor,
    digest_of,
    encode,
    index_of,
    manifest_of,
    new_image,
    random_content,
)
from tests.capability.repository import Repository, new_name
from tests.capability.server import StartRegistry
from tests.wire import Reply

LIMIT_BYTES = 4_194_304
both_framings = pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
INVALID_TAGS = [".x", "-x", "a%20b", "a+b", "a%2Bb", "x" * 129, "%C3%A9"]


@pytest.fixture
def image(repository: Repository) -> Image:
    """Push the blobs of an image, but not its manifest."""
    image = new_image()
    repository.push_blobs(image)
    return image


def get(repository: Repository, tag_or_digest: str, method: str = "GET") -> Reply:
    return repository.request(method, f"manifests/{tag_or_digest}")


def padded(document: Json, size_bytes: int) -> bytes:
    """Encode the document with an annotation that makes it exactly that long."""
    empty = len(encode({**document, "annotations": {"padding": ""}}))
    return encode({**document, "annotations": {"padding": "x" * (size_bytes - empty)}})


def nested(document: Json, depth: int) -> bytes:
    """Encode the document with a field whose arrays make the whole `depth` levels deep."""
    return encode(document)[:-1] + b', "custom": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.case(82)
@both_framings
def test_a_manifest_comes_back_byte_by_byte(repository: Repository, image: Image, *, chunked: bool) -> None:
    """Its digest is the name that everything else relies on, so not even a space may change."""
    body = json.dumps(dict(reversed(image.document().items())), indent=3, ensure_ascii=False).encode() + b"\n \n"
    digest = digest_of(body)

    put = repository.request(
        "PUT", "manifests/latest", headers={"Content-Type": OCI_MANIFEST}, body=body, chunked=chunked
    )

    put.expect(
        201,
        {
            "Location": repository.url(f"manifests/{digest}"),
            "Docker-Content-Digest": digest,
            "Content-Length": "0",
            "OCI-Subject": None,
        },
    )
    for target in (put["Location"], repository.url("manifests/latest")):
        pulled = repository.send("GET", target)
        pulled.expect(200, {"Docker-Content-Digest": digest, "Content-Length": str(len(body)), "ETag": f'"{digest}"'})
        assert pulled.body == body, str(pulled)


@pytest.mark.case(83)
@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_LIST])
def test_a_manifest_keeps_its_type(repository: Repository, image: Image, media_type: str) -> None:
    """Clients choose their parser by the type of the reply; a guessed one breaks pulls of what was pushed well."""
    child = image.document()
    if media_type in {OCI_MANIFEST, DOCKER_MANIFEST}:
        document = {**child, "mediaType": media_type}
    else:
        repository.put_manifest(image.digest, image.manifest).expect(201)
        document = index_of([descriptor(image.manifest, OCI_MANIFEST)], mediaType=media_type)

    digest = repository.put_manifest("latest", document, media_type).expect(201)["Docker-Content-Digest"]

    for method in ("GET", "HEAD"):
        for name in ("latest", digest):
            get(repository, name, method).expect(200, {"Content-Type": media_type, "Docker-Content-Digest": digest})


@pytest.mark.case(84)
def test_a_parameter_of_the_type_is_dropped(repository: Repository, image: Image) -> None:
    """Some HTTP libraries add a charset by themselves, and other clients compare the type exactly."""
    put = repository.put_manifest("latest", image.manifest, f"{OCI_MANIFEST}; charset=utf-8")

    put.expect(201)
    get(repository, "latest").expect(200, {"Content-Type": OCI_MANIFEST})


@pytest.mark.case(85)
@pytest.mark.parametrize("media_type", [DOCKER_MANIFEST, OCI_INDEX])
def test_a_type_that_contradicts_the_body_is_refused(repository: Repository, image: Image, media_type: str) -> None:
    """Two clients would see two different things under one digest."""
    put = repository.put_manifest("latest", image.manifest, media_type)

    put.expect_error(400, "MANIFEST_INVALID")
    get(repository, "latest").expect(404)


@pytest.mark.case(86)
@pytest.mark.parametrize("media_type", [None, "application/json", "application/octet-stream"])
def test_the_body_tells_its_type_where_the_header_does_not(
    repository: Repository, image: Image, media_type: str | None
) -> None:
    """Scripts forget the header or send a generic one, and the body's own word is as good."""
    put = repository.put_manifest("latest", image.manifest, media_type)

    put.expect(201)
    get(repository, "latest").expect(200, {"Content-Type": OCI_MANIFEST})


@pytest.mark.case(87)
@pytest.mark.parametrize("header", [OCI_MANIFEST, None])
def test_an_oci_manifest_needs_no_type_in_its_body(repository: Repository, image: Image, header: str | None) -> None:
    """Helm and older buildah leave it out, as the specification allows."""
    document = image.document()
    del document["mediaType"]

    put = repository.put_manifest("latest", document, header)

    put.expect(201)
    pulled = get(repository, "latest").expect(200, {"Content-Type": OCI_MANIFEST})
    assert pulled.body == encode(document)


def test_a_docker_manifest_needs_its_type_in_its_body(repository: Repository, image: Image) -> None:
    """Docker's format demands it, and docker itself fails on one without."""
    document = image.document()
    del document["mediaType"]

    put = repository.put_manifest("latest", document, DOCKER_MANIFEST)

    put.expect_error(400, "MANIFEST_INVALID")


@pytest.mark.case(88)
def test_a_manifest_under_another_digest_is_refused(repository: Repository, image: Image) -> None:
    """Whoever pulls by digest trusts that it was checked here."""
    other = digest_of(b"other")

    put = repository.put_manifest(other, image.manifest)

    put.expect_error(400, "DIGEST_INVALID")
    get(repository, other).expect_error(404, "MANIFEST_UNKNOWN")
    get(repository, image.digest).expect(404)


@pytest.mark.case(89)
def test_tags_follow_the_grammar(repository: Repository, image: Image) -> None:
    """What could never be asked for again must not be accepted."""
    longest, shortest = "_" + "x" * 127, "0"

    accepted = [repository.put_manifest(tag, image.manifest) for tag in (longest, shortest, "A.b-c_D")]
    refused = [repository.put_manifest(tag, image.manifest) for tag in INVALID_TAGS]

    for reply in accepted:
        reply.expect(201)
    for reply in refused:
        reply.expect_error(400, "TAG_INVALID")
    assert sorted(repository.tags()) == sorted([longest, shortest, "A.b-c_D"])


@pytest.mark.case(90)
@pytest.mark.parametrize("tag", [".INVALID_MANIFEST_NAME", *INVALID_TAGS])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_reading_an_invalid_tag_finds_nothing(repository: Repository, image: Image, method: str, tag: str) -> None:
    """The conformance suite demands 404: no such tag can exist, whatever the reason."""
    repository.put_manifest("latest", image.manifest).expect(201)

    reply = get(repository, tag, method)

    reply.expect_error(404, "MANIFEST_UNKNOWN")


@pytest.mark.case(91)
@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_a_manifest_that_names_absent_blobs_is_refused(repository: Repository, media_type: str) -> None:
    """An accepted manifest is complete, and the refusal lists what is missing so that it can be sent."""
    config, present, absent = random_content(), random_content(), random_content()
    repository.push_blob(present)
    document = manifest_of(
        descriptor(config, OCI_CONFIG), [descriptor(present), descriptor(absent)], mediaType=media_type
    )

    put = repository.put_manifest("latest", document, media_type)

    put.expect_error(400, "MANIFEST_BLOB_UNKNOWN")
    listed = json.dumps([error["detail"] for error in put.json()["errors"]])
    assert digest_of(config) in listed, str(put)
    assert digest_of(absent) in listed, str(put)
    assert digest_of(present) not in listed, str(put)
    get(repository, "latest").expect(404)


@pytest.mark.case(92)
def test_a_blob_of_another_repository_does_not_count(repository: Repository, image: Image) -> None:
    """Else a guessed digest would pull another team's layer into one's own image."""
    other = Repository(repository.wire, new_name())
    other.push_blob(image.config)

    put = other.put_manifest("latest", image.manifest)

    put.expect_error(400, "MANIFEST_BLOB_UNKNOWN")
    assert digest_of(image.layers[0]) in put.body.decode(), str(put)
    assert digest_of(image.config) not in put.body.decode(), str(put)


@pytest.mark.case(93)
@pytest.mark.parametrize(("setting", "status"), [(None, 400), ("false", 400), ("true", 201)])
def test_an_index_with_absent_children_is_a_setting(
    start_registry: StartRegistry, setting: str | None, status: int
) -> None:
    """Mirrors that copy one platform need sparse indexes; everybody else wants to know that a child is missing."""
    server = start_registry({"LADING_MANIFESTS__SPARSE_INDEXES": setting} if setting else {})
    repository = Repository(server.wire, new_name())
    there, absent = repository.push_image(), new_image()
    index = index_of([descriptor(there.manifest, OCI_MANIFEST), descriptor(absent.manifest, OCI_MANIFEST)])

    put = repository.put_manifest("latest", index, OCI_INDEX)

    if status == 400:
        put.expect_error(400, "MANIFEST_BLOB_UNKNOWN")
        assert absent.digest in put.body.decode(), str(put)
        assert there.digest not in put.body.decode(), str(put)
    else:
        put.expect(201)
        assert get(repository, "latest").expect(200).body == encode(index)


def test_a_child_of_an_index_may_be_a_blob(repository: Repository) -> None:
    """Buildkit's cache is an index that lists layer blobs."""
    layer = random_content()
    repository.push_blob(layer)

    body = repository.push_index(index_of([descriptor(layer)]), "cache")

    assert get(repository, "cache").expect(200).body == body


@pytest.mark.case(94)
@pytest.mark.parametrize(
    "layer",
    [
        descriptor(b"elsewhere", urls=["https://example.org/layer"]),
        descriptor(b"elsewhere", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
        descriptor(b"elsewhere", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    ],
    ids=["urls", "non-distributable", "foreign"],
)
def test_a_layer_that_lives_elsewhere_may_be_absent(repository: Repository, image: Image, layer: Json) -> None:
    """Windows base layers may not be pushed, and images on top of them must be."""
    document = {**image.document(), "layers": [layer, *image.document()["layers"]]}

    put = repository.put_manifest("latest", document)

    put.expect(201)
    assert get(repository, "latest").expect(200).body == encode(document)


@pytest.mark.case(95)
@pytest.mark.parametrize("is_index", [False, True])
def test_a_subject_may_be_absent(repository: Repository, image: Image, *, is_index: bool) -> None:
    """Signatures may arrive before what they sign, and the header tells that the registry lists referrers."""
    subject = descriptor(b"not pushed yet", OCI_MANIFEST)
    document = index_of([], subject=subject) if is_index else {**image.document(), "subject": subject}

    put = repository.put_manifest("latest", document, OCI_INDEX if is_index else OCI_MANIFEST)

    put.expect(201, {"OCI-Subject": subject["digest"]})


@pytest.mark.case(96)
def test_an_artifact_needs_nothing_but_the_empty_blob(repository: Repository) -> None:
    """The image specification's guidance for artifacts without content or configuration."""
    repository.push_blob(EMPTY_JSON)
    empty = descriptor(EMPTY_JSON, EMPTY_TYPE)
    document = manifest_of(empty, [empty], artifactType="application/vnd.example.thing")

    put = repository.put_manifest("latest", document)

    put.expect(201)
    assert get(repository, "latest").expect(200).body == encode(document)


@pytest.mark.case(97)
@pytest.mark.parametrize("layers", [0, 1])
def test_unknown_types_of_content_are_accepted(repository: Repository, image: Image, layers: int) -> None:
    """A registry stores charts, models and signatures that were invented after it."""
    document = manifest_of(
        descriptor(image.config, "application/vnd.example.config+json"),
        [descriptor(image.layers[0], "text/x-anything", custom=[1, 2])][:layers],
        artifactType="application/vnd.example.thing",
        invented={"later": True},
    )

    put = repository.put_manifest("latest", document)

    put.expect(201)
    assert get(repository, "latest").expect(200).body == encode(document)


@pytest.mark.case(98)
@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.example.manifest.v9+json",
        "text/plain",
    ],
)
def test_another_type_of_manifest_is_refused(repository: Repository, image: Image, media_type: str) -> None:
    """What we cannot check we cannot promise; podman converts its manifest upon exactly this code."""
    document = {**image.document(), "mediaType": media_type}

    put = repository.put_manifest("latest", document, media_type)

    put.expect_error(400, "MANIFEST_INVALID")
    get(repository, "latest").expect(404)


def spoiled(**fields: object) -> Callable[[Json], object]:
    """Make a function that puts `fields` into a document, or takes out those that are None."""
    return lambda document: {name: value for name, value in {**document, **fields}.items() if value is not None}


@pytest.mark.case(99)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"not JSON",
        lambda _: b"",
        lambda document: [document],
        lambda _: "text",
        lambda _: None,
        spoiled(manifests=[]),
        spoiled(schemaVersion=1),
        spoiled(schemaVersion=3),
        spoiled(schemaVersion="2"),
        spoiled(schemaVersion=None),
        spoiled(config=None),
        spoiled(layers=None),
        spoiled(layers={}),
        spoiled(config="sha256:abc"),
        spoiled(layers=["sha256:abc"]),
        spoiled(layers=[{}]),
        spoiled(mediaType=7),
    ],
)
def test_a_body_of_another_shape_is_refused(
    repository: Repository, image: Image, spoil: Callable[[Json], object]
) -> None:
    """What is both image and index, or neither, means one thing to one client and another to the next."""
    put = repository.put_manifest("latest", spoil(image.document()))

    put.expect_error(400, "MANIFEST_INVALID")
    get(repository, "latest").expect(404)


@pytest.mark.case(100)
@both_framings
def test_a_manifest_may_have_four_mebibytes_and_no_more(repository: Repository, image: Image, *, chunked: bool) -> None:
    """Clients refuse to pull larger ones, so the limit is exact, and too much is never cut down to size."""
    fits, over = padded(image.document(), LIMIT_BYTES), padded(image.document(), LIMIT_BYTES + 1)
    headers = {"Content-Type": OCI_MANIFEST}

    accepted = repository.request("PUT", "manifests/fits", headers=headers, body=fits, chunked=chunked)
    refused = repository.request("PUT", "manifests/over", headers=headers, body=over, chunked=chunked)

    accepted.expect(201)
    assert get(repository, "fits").expect(200).body == fits
    refused.expect_error(413, "SIZE_INVALID")
    get(repository, "over").expect(404)


@pytest.mark.case(101)
@pytest.mark.parametrize("depth", [70, 1_000, 100_000, 2_000_000])
def test_deep_nesting_is_refused(repository: Repository, image: Image, depth: int) -> None:
    """A parser that follows it runs out of stack; no manifest needs it."""
    put = repository.put_manifest("latest", nested(image.document(), depth))

    put.expect_error(400, "MANIFEST_INVALID")


def test_ordinary_nesting_is_accepted(repository: Repository, image: Image) -> None:
    """Annotations and custom fields of real artifacts nest a few levels, and the limit is far above them."""
    body = nested(image.document(), 60)

    repository.put_manifest("latest", body).expect(201)

    assert get(repository, "latest").expect(200).body == body


@pytest.mark.case(102)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body.replace(b"created", b"\xff\xfe"),
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: body.decode().encode("utf-16"),
        lambda body: body[:-1] + b', "schemaVersion": 2}',
        lambda body: body[:-1] + b', "annotations": {"a": "1", "a": "2"}}',
        lambda body: body[:-1] + b', "custom": NaN}',
        lambda body: body[:-1] + b', "custom": -Infinity}',
        lambda body: body + body,
        lambda body: body + b"x",
        lambda body: body + b"\0",
        lambda body: body[:-1],
        lambda body: body[:-1] + b",}",
    ],
    ids=["UTF-8", "BOM", "UTF-16", "twice", "twice inside", "NaN", "Infinity", "two", "tail", "NUL", "cut", "comma"],
)
def test_what_parsers_read_differently_is_refused(
    repository: Repository, image: Image, spoil: Callable[[bytes], bytes]
) -> None:
    """Two clients that read one body in two ways run two images; and nothing that was there is rewritten."""
    good = encode({**image.document(), "annotations": {"note": "created"}})
    repository.put_manifest("latest", good).expect(201)

    put = repository.put_manifest("latest", spoil(good))

    put.expect_error(400, "MANIFEST_INVALID")
    assert get(repository, "latest").expect(200).body == good


@pytest.mark.case(103)
@pytest.mark.parametrize(
    "accept",
    [
        [],
        [DOCKER_MANIFEST],
        ["text/html"],
        [OCI_INDEX, f"{DOCKER_MANIFEST}, {DOCKER_LIST};q=0.9", "application/vnd.example+json"],
    ],
    ids=["absent", "schema 2 only", "foreign", "several lines"],
)
def test_what_the_client_accepts_does_not_matter(repository: Repository, image: Image, accept: list[str]) -> None:
    """Under one digest there is one content; a converted one would have another digest, and 404 would be a lie."""
    repository.put_manifest("latest", image.manifest).expect(201)

    reply = repository.request("GET", "manifests/latest", headers=[("Accept", value) for value in accept])

    reply.expect(200, {"Content-Type": OCI_MANIFEST, "Content-Encoding": None})
    assert reply.body == image.manifest, str(reply)


@pytest.mark.case(104)
def test_head_of_a_tag_is_its_get_without_the_body(repository: Repository, image: Image) -> None:
    """Clients resolve a tag by HEAD and build the descriptor from its headers."""
    repository.put_manifest("latest", image.manifest).expect(201)
    target = repository.url("manifests/latest")
    with repository.wire.connect() as connection:
        head = connection.request("HEAD", target).expect(200)
        get_reply = connection.request("GET", target).expect(200)

    for name in ("Content-Type", "Content-Length", "Docker-Content-Digest", "ETag"):
        assert head[name] == get_reply[name], f"{head}\n{get_reply}"
    assert head["Content-Length"] == str(len(image.manifest)), str(head)


def test_a_manifest_answers_conditions_by_its_digest(repository: Repository, image: Image) -> None:
    """A controller that polls a tag every minute need not be sent what it has."""
    repository.put_manifest("latest", image.manifest).expect(201)
    own = f'"{image.digest}"'

    same = [
        repository.request(method, "manifests/latest", headers={"If-None-Match": own}) for method in ("GET", "HEAD")
    ]
    changed = repository.request("GET", "manifests/latest", headers={"If-None-Match": f'"{digest_of(b"other")}"'})

    for reply in same:
        reply.expect(304, {"ETag": own, "Docker-Content-Digest": image.digest})
    assert changed.expect(200, {"ETag": own}).body == image.manifest


def announced_tags(reply: Reply) -> list[str]:
    """Return the tags that OCI-Tag names, in one header or in several."""
    return [tag.strip() for value in reply.all("OCI-Tag") for tag in value.split(",")]


@pytest.mark.case(105)
def test_one_put_by_digest_may_set_several_tags(repository: Repository, image: Image) -> None:
    """A release gets its three tags at once or not at all."""
    put = repository.put_manifest(f"{image.digest}?tag=a&tag=b", image.manifest)

    put.expect(201, {"Docker-Content-Digest": image.digest})
    assert sorted(announced_tags(put)) == ["a", "b"], str(put)
    assert repository.tags() == ["a", "b"]
    for tag in ("a", "b"):
        get(repository, tag, "HEAD").expect(200, {"Docker-Content-Digest": image.digest})


@pytest.mark.case(106)
def test_several_tags_are_set_together_or_not_at_all(repository: Repository, image: Image) -> None:
    """Ten must work by the specification, and half a release is worse than none."""
    ten = [f"v{number}" for number in range(10)]
    query = "&".join(f"tag={tag}" for tag in ten)

    refused = repository.put_manifest(f"{image.digest}?{query}&tag=.bad", image.manifest)
    after_refusal = repository.request("GET", "tags/list")
    accepted = repository.put_manifest(f"{image.digest}?{query}", image.manifest)

    refused.expect_error(400, "TAG_INVALID")
    assert after_refusal.expect(200).json()["tags"] == [], str(after_refusal)
    accepted.expect(201)
    assert sorted(announced_tags(accepted)) == ten, str(accepted)
    assert repository.tags() == ten


@pytest.mark.case(107)
@pytest.mark.parametrize("path", ["manifests/{digest}?tag=latest", "manifests/latest?digest={digest}"])
def test_a_tag_reports_the_digest_it_was_pushed_under(repository: Repository, image: Image, path: str) -> None:
    """Whoever pushed sha512 verifies sha512; a silent change to sha256 looks like tampering."""
    digest = digest_of(image.manifest, "sha512")
    target = path.format(digest=digest)

    put = repository.request("PUT", target, headers={"Content-Type": OCI_MANIFEST}, body=image.manifest)

    put.expect(201, {"Docker-Content-Digest": digest, "Location": repository.url(f"manifests/{digest}")})
    for name in ("latest", digest):
        get(repository, name, "HEAD").expect(200, {"Docker-Content-Digest": digest})
        assert get(repository, name).expect(200).body == image.manifest


@pytest.mark.case(108)
def test_a_manifest_may_be_pushed_again(repository: Repository, image: Image) -> None:
    """A repeated build step repeats its push, and nothing has changed."""
    first = repository.put_manifest("latest", image.manifest).expect(201)

    again = repository.put_manifest("latest", image.manifest)

    again.expect(201, {"Docker-Content-Digest": first["Docker-Content-Digest"], "Location": first["Location"]})
    assert repository.tags() == ["latest"]


@pytest.mark.case(109)
def test_a_tag_never_vanishes_while_it_moves(repository: Repository) -> None:
    """Deployments pull `latest` at the moment of its push, and must get the old image or the new one."""
    images = [repository.push_image("latest"), repository.push_image()]
    bodies = {image.digest: image.manifest for image in images}
    replies: list[Reply] = []
    written: list[Reply] = []
    done = threading.Event()

    def write(image: Image) -> None:
        with repository.wire.connect() as connection:
            for _ in range(100):
                headers = {"Content-Type": OCI_MANIFEST}
                written.append(
                    connection.request("PUT", repository.url("manifests/latest"), headers=headers, body=image.manifest)
                )

    def read() -> None:
        with repository.wire.connect() as connection:
            while not done.is_set():
                replies.append(connection.request("GET", repository.url("manifests/latest")))

    writers = [threading.Thread(target=write, args=(image,)) for image in images]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join(timeout=60)
    done.set()
    for thread in readers:
        thread.join(timeout=60)

    assert len(written) == 200
    for reply in written:
        reply.expect(201)
    assert len(replies) > 10
    for reply in replies:
        reply.expect(200)
        assert reply.body == bodies.get(reply["Docker-Content-Digest"]), str(reply)


@pytest.mark.case(110)
@pytest.mark.parametrize("part", ["config", "layer", "child"])
def test_a_descriptor_with_a_wrong_size_is_refused(repository: Repository, image: Image, part: str) -> None:
    """Clients stop reading at the size that the manifest names, so the image could never be pulled."""
    repository.put_manifest(image.digest, image.manifest).expect(201)
    config, layer = descriptor(image.config, OCI_CONFIG), descriptor(image.layers[0])
    documents = {
        "config": manifest_of({**config, "size": len(image.config) + 1}, [layer]),
        "layer": manifest_of(config, [{**layer, "size": 0}]),
        "child": index_of([{**descriptor(image.manifest, OCI_MANIFEST), "size": 5}]),
    }

    put = repository.put_manifest("latest", documents[part], OCI_INDEX if part == "child" else OCI_MANIFEST)

    put.expect_error(400, "MANIFEST_INVALID")


@pytest.mark.case(111)
def test_manifests_without_a_tag_are_not_listed(repository: Repository) -> None:
    """The platforms of a multi-platform image are found through its index; the list is of what people named."""
    children = [repository.push_image() for _ in range(2)]

    body = repository.push_index(index_of([descriptor(child.manifest, OCI_MANIFEST) for child in children]), "v1")

    assert repository.tags() == ["v1"]
    for child in children:
        assert get(repository, child.digest).expect(200).body == child.manifest
    assert get(repository, digest_of(body)).expect(200).body == body


@pytest.mark.case(112)
@pytest.mark.parametrize(
    ("tail", "code"),
    [
        ("manifests/latest", "NAME_UNKNOWN"),
        (f"manifests/{digest_of(b'x')}", "NAME_UNKNOWN"),
        ("tags/list", "NAME_UNKNOWN"),
        (f"blobs/{digest_of(b'x')}", "BLOB_UNKNOWN"),
    ],
)
def test_an_unknown_repository_says_so(repository: Repository, tail: str, code: str) -> None:
    """A mistyped name is easier to find when the error does not speak of the tag."""
    reply = repository.request("GET", tail)

    reply.expect_error(404, code)


def test_an_absent_manifest_of_a_known_repository_says_so(repository: Repository) -> None:
    """The counterpart: here the name is right, and the tag or digest is not."""
    repository.push_image("latest")

    by_tag = get(repository, "other")
    by_digest = get(repository, digest_of(b"other"))

    by_tag.expect_error(404, "MANIFEST_UNKNOWN")
    by_digest.expect_error(404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_a_malformed_digest_of_a_manifest_is_refused(repository: Repository, image: Image, method: str) -> None:
    """What has a colon is meant as a digest, and this one could never match."""
    repository.put_manifest("latest", image.manifest).expect(201)
    body = image.manifest if method == "PUT" else None

    reply = repository.request(method, "manifests/sha256:totallywrong", body=body)

    reply.expect_error(400, "DIGEST_INVALID")


@pytest.mark.case(113)
@pytest.mark.parametrize("size", ["-1", "1.5", "1e3", '"1000"', "true", "null", "9223372036854775808", "1" + "0" * 400])
@pytest.mark.parametrize("part", ["config", "layers"])
def test_a_size_that_is_no_count_is_refused(repository: Repository, image: Image, part: str, size: str) -> None:
    """Sizes are whole numbers of 63 bits; what a client would make of others is anyone's guess."""
    document = image.document()
    parts = [document["config"]] if part == "config" else document["layers"]
    parts[0]["size"] = "SIZE"

    put = repository.put_manifest("latest", encode(document).replace(b'"SIZE"', size.encode()))

    put.expect_error(400, "MANIFEST_INVALID")


def test_layers_are_described_by_what_was_pushed(repository: Repository) -> None:
    """A manifest of many layers is the ordinary one, and each counts."""
    config = random_content()
    layers = [random_content() for _ in range(40)]
    for content in (config, *layers):
        repository.push_blob(content)
    document = manifest_of(descriptor(config, OCI_CONFIG), [descriptor(layer, OCI_LAYER) for layer in layers])

    put = repository.put_manifest("latest", document)

    put.expect(201)
    assert get(repository, "latest").expect(200).body == encode(document)
