"""What holds across routes: headers, errors, limits, proxies, restarts, and a store that lost something."""

import json
import re
import time

import pytest

from tests.capability.content import (
    LARGE_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    SMALL_BYTES,
    descriptor,
    digest_of,
    index_of,
    new_image,
    random_content,
)
from tests.capability.repository import Repository, new_name, with_digest
from tests.capability.server import RegistryProcess, StartRegistry, until
from tests.wire import Reply

ABSENT = digest_of(b"nobody has pushed this")
SESSION = "blobs/uploads/5f0c6d4e-7d0b-4c0e-9a53-3f7f5f6f2a11"
TARGET_BYTES = 8 * 1024
HEADER_BYTES = 32 * 1024
HEADER_FIELDS = 100


def test_every_reply_names_the_version_of_the_api(repository: Repository) -> None:
    """Old docker and many scripts tell a registry from a web site by this header, on errors above all."""
    image = repository.push_image("latest")
    blob = digest_of(image.layers[0])
    tails = ["manifests/latest", "manifests/absent", f"blobs/{blob}", f"blobs/{ABSENT}", "blobs/sha256:abc"]
    tails += [f"referrers/{ABSENT}", SESSION, "blobs/uploads/", "tags/list", "tags/list?n=x"]
    targets = [*map(repository.url, tails), "/v2/", "/v2", "/v2/_catalog", "/v2/A/tags/list", "/v2/nothing"]

    replies = [repository.send(method, target) for target in targets for method in ("GET", "HEAD", "PROPFIND")]
    replies.append(repository.request("POST", "blobs/uploads/", body=b""))
    replies.append(repository.put_manifest("latest", image.manifest))
    replies.append(repository.request("GET", f"blobs/{blob}", headers={"Range": "bytes=0-1"}))
    replies.append(repository.request("GET", f"blobs/{blob}", headers={"If-None-Match": f'"{blob}"'}))

    for reply in replies:
        assert reply.get("Docker-Distribution-Api-Version") == "registry/2.0", str(reply)
        assert reply.get("Content-Encoding") is None, str(reply)
        if reply.status not in {204, 304}:
            assert reply.get("Content-Length") is not None, str(reply)


@pytest.mark.parametrize(
    ("method", "tail", "status", "code"),
    [
        ("GET", f"blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("GET", "blobs/sha256:abc", 400, "DIGEST_INVALID"),
        ("GET", "manifests/absent", 404, "MANIFEST_UNKNOWN"),
        ("PUT", "manifests/latest", 400, "MANIFEST_INVALID"),
        ("PUT", "manifests/.latest", 400, "TAG_INVALID"),
        ("GET", "tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ("PATCH", SESSION, 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PATCH", "tags/list", 405, "UNSUPPORTED"),
    ],
)
def test_an_error_has_the_form_of_the_specification(
    repository: Repository, method: str, tail: str, status: int, code: str
) -> None:
    """Clients show its message to people, and docker reads it only where the type says JSON."""
    repository.push_image("latest")

    reply = repository.request(method, tail, body=b"{" if method in {"PUT", "PATCH"} else None)

    reply.expect_error(status, code)
    assert reply.json()["errors"][0]["message"], str(reply)
    assert set(reply.json()) == {"errors"}, str(reply)


@pytest.mark.case(155)
def test_parameters_of_others_are_ignored(repository: Repository) -> None:
    """Containerd adds the upstream's host to what it asks of a mirror, and no client must be refused for more."""
    image = repository.push_image("latest")
    layer = digest_of(image.layers[0])
    extra = "ns=docker.io&foo=bar&empty=&=x&bad=%ff&plain"

    for tail in ("manifests/latest", f"manifests/{image.digest}", f"blobs/{layer}", "tags/list", f"referrers/{ABSENT}"):
        plain, more = repository.request("GET", tail), repository.request("GET", f"{tail}?{extra}")
        plain.expect(200)
        assert (more.status, more.body) == (plain.status, plain.body), str(more)
    repository.send("GET", f"/v2/?{extra}").expect(200)
    repository.send("GET", f"/v2/_catalog?{extra}").expect(200)
    location = repository.request("POST", f"blobs/uploads/?{extra}", body=b"").expect(202)["Location"]
    content = random_content()
    repository.send("PATCH", f"{location}?{extra}", body=content).expect(202)
    repository.send("PUT", f"{location}?{extra}&digest={digest_of(content)}", body=b"").expect(201)
    repository.put_manifest(f"other?{extra}", image.manifest).expect(201)


@pytest.mark.case(157)
def test_what_a_proxy_claims_never_reaches_a_location(repository: Repository) -> None:
    """A path is right behind every proxy; a host taken from a header is wrong behind some and forged by others."""
    claims = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example:8443",
        "X-Forwarded-Port": "8443",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "for=192.0.2.1;host=evil.example;proto=https",
        "X-Original-URL": "/evil",
        "Host": "registry.example",
    }
    image = repository.push_image("latest")
    content = random_content()
    digest = digest_of(content)

    def ask(method: str, target: str, body: bytes | None = None, **more: str) -> Reply:
        return repository.send(method, target, headers={**claims, **more}, body=body)

    started = ask("POST", repository.url("blobs/uploads/"), b"").expect(202)
    patched = ask("PATCH", started["Location"], content).expect(202)
    asked = ask("GET", patched["Location"]).expect(204)
    closed = ask("PUT", with_digest(patched["Location"], digest), b"").expect(201)
    pushed = ask("PUT", repository.url("manifests/other"), image.manifest).expect(201)
    listed = ask("GET", repository.url("tags/list?n=1")).expect(200)

    for reply in (started, patched, asked):
        assert reply["Location"].startswith(repository.url("blobs/uploads/")), str(reply)
    closed.expect(201, {"Location": repository.url(f"blobs/{digest}")})
    pushed.expect(201, {"Location": repository.url(f"manifests/{image.digest}")})
    assert listed["Link"].startswith(f"<{repository.url('tags/list?')}"), str(listed)
    for reply in (started, patched, asked, closed, pushed, listed):
        assert "evil" not in str(reply.headers), str(reply)


@pytest.mark.case(158)
@pytest.mark.parametrize(
    ("tail", "allowed"),
    [
        ("/v2/", {"GET", "HEAD"}),
        ("/v2/_catalog", {"GET"}),
        ("tags/list", {"GET"}),
        ("manifests/latest", {"GET", "HEAD", "PUT", "DELETE"}),
        (f"manifests/{ABSENT}", {"GET", "HEAD", "PUT", "DELETE"}),
        (f"blobs/{ABSENT}", {"GET", "HEAD", "DELETE"}),
        ("blobs/uploads/", {"POST"}),
        ("blobs/uploads", {"POST"}),
        (SESSION, {"GET", "PATCH", "PUT", "DELETE"}),
        (f"referrers/{ABSENT}", {"GET"}),
    ],
)
def test_a_method_that_a_route_lacks_is_refused(repository: Repository, tail: str, allowed: set[str]) -> None:
    """The refusal says what would work, and an unknown method is no way around a rule."""
    target = tail if tail.startswith("/") else repository.url(tail)
    methods = {"GET", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"} - allowed

    for method in sorted(methods):
        reply = repository.send(method, target, body=b"" if method in {"POST", "PUT", "PATCH"} else None)
        reply.expect_error(405, "UNSUPPORTED")
        assert set(reply["Allow"].split(", ")) >= allowed, str(reply)
        assert method not in reply["Allow"].split(", "), str(reply)


@pytest.mark.case(159)
def test_what_is_overlong_is_refused_and_what_is_just_below_works(registry: RegistryProcess) -> None:
    """Unbounded heads are memory for whoever asks; long queries and many cookies of honest clients must pass."""
    path = "/v2/?x="
    longest = path + "a" * (TARGET_BYTES - len(path))
    many = [(f"X-Field-{number}", "a") for number in range(HEADER_FIELDS - 1)]  # Host is one more

    target_fits = registry.wire.request("GET", longest)
    target_over = registry.wire.request("GET", f"{longest}a")
    target_far_over = registry.wire.request(
        "GET", longest + "a" * 50_000
    )  # past 64 KiB the parser answers 400 by itself
    headers_fit = registry.wire.request("GET", "/v2/", headers={"X-Large": "a" * (HEADER_BYTES - 1024)})
    header_over = registry.wire.request("GET", "/v2/", headers={"X-Large": "a" * (HEADER_BYTES + 1)})
    headers_over = registry.wire.request(
        "GET", "/v2/", headers=[(f"X-Part-{number}", "a" * 2000) for number in range(17)]
    )
    headers_far_over = registry.wire.request("GET", "/v2/", headers={"X-Large": "a" * 1_000_000})
    fields_fit = registry.wire.request("GET", "/v2/", headers=many)
    fields_over = registry.wire.request("GET", "/v2/", headers=[*many, ("X-One-More", "a")])

    for reply in (target_fits, headers_fit, fields_fit):
        reply.expect(200)
    for reply in (target_over, target_far_over):
        reply.expect(414)
    for reply in (header_over, headers_over, headers_far_over, fields_over):
        reply.expect(431)
    registry.wire.request("GET", "/v2/").expect(200)


def test_an_image_for_two_platforms_is_pushed_and_pulled(repository: Repository) -> None:
    """The everyday flow of a builder and a cluster: blobs, children by digest, the index by tag, and back again."""
    platforms = ["amd64", "arm64"]
    images = {platform: repository.push_image() for platform in platforms}
    children = [
        descriptor(images[platform].manifest, OCI_MANIFEST, platform={"os": "linux", "architecture": platform})
        for platform in platforms
    ]

    index = repository.push_index(index_of(children), "v1")

    head = repository.request("HEAD", "manifests/v1").expect(200, {"Content-Type": OCI_INDEX})
    pulled = repository.request("GET", f"manifests/{head['Docker-Content-Digest']}").expect(200)
    assert pulled.body == index
    for child in pulled.json()["manifests"]:
        image = images[child["platform"]["architecture"]]
        manifest = repository.request("GET", f"manifests/{child['digest']}").expect(200, {"Content-Type": OCI_MANIFEST})
        assert manifest.body == image.manifest
        for part in (manifest.json()["config"], *manifest.json()["layers"]):
            blob = repository.request("GET", f"blobs/{part['digest']}").expect(200)
            assert digest_of(blob.body) == part["digest"]
            assert len(blob.body) == part["size"]


def test_a_lost_file_heals_by_a_push(registry: RegistryProcess, repository: Repository) -> None:
    """A registry that claims a layer it has lost makes the loss permanent: the one who has it is told to skip it."""
    image = new_image(LARGE_BYTES)
    repository.push_image("latest", image)
    layer = digest_of(image.layers[0])
    (lost,) = registry.objects_of(layer)

    lost.unlink()
    repository.request("HEAD", f"blobs/{layer}").expect(404)
    repository.request("GET", f"blobs/{layer}").expect_error(404, "BLOB_UNKNOWN")
    repository.put_manifest("again", image.manifest).expect_error(400, "MANIFEST_BLOB_UNKNOWN")
    pushed = repository.request("POST", f"blobs/uploads/?digest={layer}", body=image.layers[0])

    pushed.expect(201, {"Docker-Content-Digest": layer})
    repository.request("HEAD", f"blobs/{layer}").expect(200, {"Content-Length": str(LARGE_BYTES)})
    assert repository.request("GET", f"blobs/{layer}").expect(200).body == image.layers[0]
    repository.put_manifest("again", image.manifest).expect(201)


@pytest.mark.parametrize("size_bytes", [SMALL_BYTES, LARGE_BYTES])
def test_a_session_may_hop_between_workers(repository: Repository, size_bytes: int) -> None:
    """Docker opens a connection for each request, so the pieces of one upload meet any process."""
    pieces = [random_content(size_bytes) for _ in range(20)]
    content = b"".join(pieces)
    location = repository.start_upload()

    held = 0
    for piece in pieces:
        held += len(piece)
        reply = repository.send("PATCH", location, body=piece, chunked=True).expect(202, {"Range": f"0-{held - 1}"})
        location = reply["Location"]
        assert repository.upload_range(location) == f"0-{held - 1}"
    repository.send("PUT", with_digest(location, digest_of(content)), body=b"").expect(201)

    for _ in range(10):
        assert repository.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content


def test_what_one_worker_wrote_every_worker_shows(repository: Repository) -> None:
    """A push is over with its 201: whoever asks next, of whichever process, sees it, and sees a delete as soon."""
    for number in range(15):
        image = repository.push_image("latest")
        for _ in range(6):
            repository.request("HEAD", "manifests/latest").expect(200, {"Docker-Content-Digest": image.digest})

        repository.request("DELETE", "manifests/latest").expect(202)
        for _ in range(6):
            repository.request("HEAD", "manifests/latest").expect(404)
        assert repository.tags() == [], f"round {number}"


def test_everything_survives_a_restart(start_registry: StartRegistry) -> None:
    """What was acknowledged is on disk, whether the server was asked to stop or died."""
    server = start_registry()
    repository = Repository(server.wire, new_name())
    image = repository.push_image("latest", new_image(LARGE_BYTES))

    for end in (RegistryProcess.stop, RegistryProcess.kill):
        end(server)
        server.start()

        assert repository.tags() == ["latest"]
        assert repository.request("GET", "manifests/latest").expect(200).body == image.manifest
        for content in (image.config, *image.layers):
            assert repository.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content


def test_each_request_is_one_line_of_the_access_log(registry: RegistryProcess, repository: Repository) -> None:
    """Whoever looks into a failed pull searches by repository, digest and status."""
    content = random_content(LARGE_BYTES)
    digest = repository.push_blob(content)
    repository.request("GET", f"blobs/{digest}").expect(200)
    repository.request("GET", f"blobs/{ABSENT}").expect(404)

    def lines(asked: str) -> list[dict[str, object]]:
        return [
            entry
            for entry in registry.access_log()
            if (entry["repository"], entry["digest"], entry["method"]) == (repository.name, asked, "GET")
        ]

    assert until(lambda: bool(lines(digest) and lines(ABSENT))), json.dumps(registry.access_log()[-5:])
    (found,), (missed,) = lines(digest), lines(ABSENT)
    assert (found["status"], found["bytes"]) == (200, LARGE_BYTES), found
    assert missed["status"] == 404, missed
    for line in (found, missed):
        assert {"event", "request_id", "method", "route", "status", "bytes", "duration_us", "client"} <= set(line), line
        assert re.match(r"127\.0\.0\.1\b", str(line["client"])), line
    assert found["request_id"] != missed["request_id"]


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
@pytest.mark.parametrize("size_bytes", [1, 1_000, 1_000_000])
def test_a_body_that_nobody_reads_spoils_nothing(repository: Repository, size_bytes: int, *, chunked: bool) -> None:
    """The conformance suite sends a body with a GET; it must not be taken for the next request of the connection."""
    image = repository.push_image("latest")
    target = repository.url("manifests/latest")
    body = b"GET /v2/nonsense HTTP/1.1\r\n\r\n".ljust(size_bytes, b"x")[:size_bytes]
    with repository.wire.connect() as connection:
        first = connection.request("GET", target, body=body, chunked=chunked)
        second = None if first.get("Connection") == "close" else connection.request("GET", target)
        rest = connection.read_to_end() if second is None else b""

    for reply in filter(None, (first, second)):
        assert reply.expect(200).body == image.manifest
    assert rest == b"", "more than one reply to one request"


@pytest.mark.own_wire
def test_a_head_without_an_end_is_refused_in_bounded_memory(start_registry: StartRegistry) -> None:
    """Header lines cost a sender nothing, so a server that gathers them all can be filled by one connection."""
    registry = start_registry()
    before = registry.peak_memory_bytes()
    with registry.wire.connect() as connection:
        connection.send(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n")
        try:
            for number in range(400):
                connection.send(b"X-Field-%d: %s\r\n" % (number, b"a" * 100_000))
        except OSError:  # it has ended the connection, as it should
            pass

    registry.wire.request("GET", "/v2/").expect(200)
    assert registry.peak_memory_bytes() - before < 20_000_000


@pytest.mark.slow
@pytest.mark.own_wire
@pytest.mark.parametrize("sent", [b"", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "half a head"])
def test_who_does_not_finish_a_head_is_disconnected(registry: RegistryProcess, sent: bytes) -> None:
    """Silent connections cost a descriptor each; clients send their head at once."""
    with registry.wire.connect() as connection:
        connection.send(sent)
        started = time.monotonic()

        left = connection.read_to_end()

    assert left == b""
    assert 8 < time.monotonic() - started < 15


def test_a_body_that_breaks_off_its_framing_is_refused_and_ended(repository: Repository) -> None:
    """What follows a broken chunk could be anything, a second request among it, so nothing after it is read."""
    location = repository.start_upload()
    with repository.wire.connect() as connection:
        connection.send(f"PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        connection.send(b"5\r\nhello\r\nzz\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")

        connection.read_reply().expect(400)
        left = connection.read_to_end()

    assert left == b""
    assert repository.upload_range(location) in {"0-0", "0-4"}


@pytest.mark.own_wire
def test_a_bad_request_behind_a_good_one_does_not_spoil_its_reply(repository: Repository) -> None:
    """A reply in the middle of another would be taken for content."""
    content = random_content(3_000_000)
    digest = repository.push_blob(content)
    with repository.wire.connect() as connection:
        connection.send(f"GET {repository.url(f'blobs/{digest}')} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.send(b"nonsense\r\n\r\n")

        reply = connection.read_reply()

    assert reply.expect(200).body == content
