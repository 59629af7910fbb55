"""Reading blobs: whole, in ranges, conditionally, and not at all."""

from dataclasses import dataclass
from http import HTTPStatus

import pytest

from tests.capability.content import LARGE_BYTES, SMALL_BYTES, digest_of, random_content
from tests.capability.repository import Repository, new_name
from tests.capability.server import RegistryProcess, until
from tests.wire import Reply

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that is there, with its content to compare."""

    repository: Repository
    content: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.content)

    def get(self, **headers: str) -> Reply:
        """GET it, with headers whose underscores stand for dashes."""
        return self.read("GET", **headers)

    def read(self, method: str, **headers: str) -> Reply:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.repository.request(method, f"blobs/{self.digest}", headers=fields)


@pytest.fixture(params=[SMALL_BYTES, LARGE_BYTES], ids=["in the database", "as a file"])
def blob(repository: Repository, request: pytest.FixtureRequest) -> Blob:
    """Push one blob, kept in each of the two ways."""
    content = random_content(request.param)
    repository.push_blob(content)
    return Blob(repository, content)


def assert_part(reply: Reply, blob: Blob, first: int, last: int) -> None:
    """Assert that the reply is exactly the bytes from `first` to `last` of the blob."""
    reply.expect(
        206,
        {
            "Content-Range": f"bytes {first}-{last}/{len(blob.content)}",
            "Content-Length": str(last - first + 1),
            "Docker-Content-Digest": blob.digest,
            "Content-Encoding": None,
        },
    )
    assert reply.body == blob.content[first : last + 1], str(reply)


@pytest.mark.case(16)
def test_a_blob_is_served_whole_with_what_clients_need(blob: Blob) -> None:
    """Clients verify length and digest, and some resume only where Accept-Ranges says that they can."""
    reply = blob.get()

    reply.expect(
        200,
        {
            "Content-Length": str(len(blob.content)),
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": blob.digest,
            "Accept-Ranges": "bytes",
            "ETag": f'"{blob.digest}"',
            "Content-Encoding": None,
        },
    )
    assert reply.body == blob.content, str(reply)


@pytest.mark.case(17)
def test_head_of_a_blob_is_its_get_without_the_body(blob: Blob) -> None:
    """Docker checks the length of each layer by HEAD after its push and fails without it."""
    target = blob.repository.url(f"blobs/{blob.digest}")
    with blob.repository.wire.connect() as connection:
        head = connection.request("HEAD", target).expect(200)
        get = connection.request("GET", target).expect(200)

    for name in ("Content-Length", "Content-Type", "Docker-Content-Digest", "Accept-Ranges", "ETag"):
        assert head[name] == get[name], f"{head}\n{get}"
    assert head["Content-Length"] == str(len(blob.content)), str(head)


@pytest.mark.case(18)
def test_head_of_an_absent_blob_leaves_the_connection_usable(repository: Repository) -> None:
    """Every push begins with such HEADs; a body sent by mistake would be read as the next reply."""
    absent = repository.url(f"blobs/{digest_of(random_content())}")
    with repository.wire.connect() as connection:
        first = connection.request("HEAD", absent)
        second = connection.request("HEAD", absent)
        third = connection.request("GET", "/v2/")

    first.expect(404)
    second.expect(404)
    third.expect(200)


@pytest.mark.case(19)
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_a_short_digest_is_refused(repository: Repository, method: str) -> None:
    """A digest that could never match is the client's mistake, not an absent blob."""
    reply = repository.request(method, "blobs/sha256:abc")

    reply.expect_error(400, "DIGEST_INVALID")


@pytest.mark.case(20)
def test_an_upper_case_digest_is_refused(repository: Repository) -> None:
    """Hex is lower case in the specification; folding it would give one blob several names."""
    digest = repository.push_blob(random_content())
    shouted = f"sha256:{digest.partition(':')[2].upper()}"

    reply = repository.request("GET", f"blobs/{shouted}")

    reply.expect_error(400, "DIGEST_INVALID")


@pytest.mark.case(21)
@pytest.mark.parametrize(
    "digest", ["md5:d41d8cd98f00b204e9800998ecf8427e", "sha256+b64u:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564"]
)
def test_a_digest_of_another_algorithm_is_refused(repository: Repository, digest: str) -> None:
    """What is never stored is better called invalid than absent: the client would push in vain."""
    reply = repository.request("GET", f"blobs/{digest}")

    reply.expect_error(400, "DIGEST_INVALID")


@pytest.mark.case(22)
@pytest.mark.parametrize(
    ("digits", "status", "code"),
    [(128, 404, "BLOB_UNKNOWN"), (64, 400, "DIGEST_INVALID"), (129, 400, "DIGEST_INVALID")],
)
def test_a_sha512_digest_has_128_digits(repository: Repository, digits: int, status: int, code: str) -> None:
    """The second registered algorithm is looked up like the first, and its length is checked like the first."""
    repository.push_blob(random_content())

    reply = repository.request("GET", f"blobs/sha512:{'a' * digits}")

    reply.expect_error(status, code)


@pytest.mark.case(23)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_blob_of_another_repository_is_unknown(repository: Repository, blob: Blob, method: str) -> None:
    """A repository sees only what is linked to it, however much the store holds."""
    other = Repository(repository.wire, new_name())
    other.push_blob(random_content())
    never_pushed_to = Repository(repository.wire, new_name())

    from_existing = other.request(method, f"blobs/{blob.digest}")
    from_unknown = never_pushed_to.request(method, f"blobs/{blob.digest}")

    from_existing.expect_error(404, "BLOB_UNKNOWN")
    from_unknown.expect_error(404, "BLOB_UNKNOWN")


@pytest.mark.case(24)
def test_the_first_byte_can_be_asked_for(blob: Blob) -> None:
    """The smallest range is where an off-by-one shows."""
    reply = blob.get(Range="bytes=0-0")

    assert_part(reply, blob, 0, 0)


def test_ranges_from_the_middle_are_exact(blob: Blob) -> None:
    """Clients resume a broken download at any byte, and lazy pullers read any stretch."""
    last = len(blob.content) - 1

    assert_part(blob.get(Range="bytes=500-599"), blob, 500, 599)
    assert_part(blob.get(Range="bytes=500-"), blob, 500, last)
    assert_part(blob.get(Range="bytes=0-"), blob, 0, last)
    assert_part(blob.get(Range=f"bytes={last}-"), blob, last, last)


@pytest.mark.case(25)
def test_a_range_that_begins_at_the_end_is_refused(blob: Blob) -> None:
    """A client that resumes a download which was already whole learns the size from the refusal."""
    reply = blob.get(Range=f"bytes={len(blob.content)}-")

    reply.expect_error(416, "RANGE_INVALID")
    reply.expect(416, {"Content-Range": f"bytes */{len(blob.content)}"})


@pytest.mark.case(26)
def test_a_range_past_the_end_is_clamped(blob: Blob) -> None:
    """Some clients ask for one byte more than there is."""
    one_past = blob.get(Range=f"bytes=10-{len(blob.content)}")
    far_past = blob.get(Range="bytes=0-99999999")

    assert_part(one_past, blob, 10, len(blob.content) - 1)
    assert_part(far_past, blob, 0, len(blob.content) - 1)


@pytest.mark.case(27)
def test_a_suffix_range_counts_from_the_end(blob: Blob) -> None:
    """Readers of zip and zstd archives begin with the table at the end."""
    last = len(blob.content) - 1

    assert_part(blob.get(Range="bytes=-5"), blob, last - 4, last)
    assert_part(blob.get(Range="bytes=-999999"), blob, 0, last)


@pytest.mark.case(28)
@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=500-0"])
def test_a_range_that_ends_before_it_begins_is_refused(blob: Blob, asked: str) -> None:
    """We decided for 416: the conformance suite skips where the whole blob comes back."""
    reply = blob.get(Range=asked)

    reply.expect_error(416, "RANGE_INVALID")
    reply.expect(416, {"Content-Range": f"bytes */{len(blob.content)}"})


@pytest.mark.case(29)
def test_several_ranges_come_as_several_parts(blob: Blob) -> None:
    """Podman pulls zstd:chunked layers by several ranges at once; a single part would corrupt what it builds."""
    size = len(blob.content)

    reply = blob.get(Range="bytes=0-1,4-5,-3")

    reply.expect(206, {"Content-Range": None, "Docker-Content-Digest": blob.digest})
    assert reply["Content-Length"] == str(len(reply.body)), str(reply)
    kind, _, boundary = reply["Content-Type"].partition("; boundary=")
    assert kind == "multipart/byteranges", str(reply)
    delimiter = b"\r\n--" + boundary.strip('"').encode()
    before, *parts, after = (b"\r\n" + reply.body).split(delimiter)
    assert (before.strip(), after.strip()) == (b"", b"--"), str(reply)
    for part, (first, last) in zip(parts, [(0, 1), (4, 5), (size - 3, size - 1)], strict=True):
        head, _, content = part.partition(b"\r\n\r\n")
        assert content == blob.content[first : last + 1], str(reply)
        fields = dict(line.split(": ", 1) for line in head.decode().strip().lower().split("\r\n"))
        assert fields["content-range"] == f"bytes {first}-{last}/{size}", str(reply)
        assert fields["content-type"] == "application/octet-stream", str(reply)


@pytest.mark.case(30)
@pytest.mark.parametrize("asked", ["items=0-1", "bytes=abc", "bytes=1-x", "bytes=", "bytes=-", "0-1"])
def test_a_range_that_is_none_is_ignored(blob: Blob, asked: str) -> None:
    """HTTP lets a server ignore what it does not understand, and the whole blob is always right."""
    reply = blob.get(Range=asked)

    reply.expect(200, {"Content-Range": None, "Content-Length": str(len(blob.content))})
    assert reply.body == blob.content, str(reply)


@pytest.mark.case(31)
def test_head_ignores_a_range(blob: Blob) -> None:
    """HEAD asks for the size of the blob, whatever part is wanted later."""
    reply = blob.read("HEAD", Range="bytes=0-1")

    reply.expect(200, {"Content-Length": str(len(blob.content)), "Content-Range": None})


@pytest.mark.case(32)
def test_conditions_compare_the_digest(blob: Blob) -> None:
    """The digest is the perfect validator: equal means nothing to send, other means that a part would not fit."""
    own, other = f'"{blob.digest}"', f'"{digest_of(b"other")}"'

    for method in ("GET", "HEAD"):
        for matching in (own, f"W/{own}", f"{other}, {own}", "*"):
            blob.read(method, If_None_Match=matching).expect(304, {"ETag": own})
        blob.read(method, If_None_Match=other).expect(200)
    whole = blob.get(Range="bytes=0-1", If_Range=other).expect(200, {"Content-Range": None})
    part = blob.get(Range="bytes=0-1", If_Range=own)

    assert whole.body == blob.content, str(whole)
    assert_part(part, blob, 0, 1)


@pytest.mark.case(33)
def test_an_empty_blob_is_served(repository: Repository) -> None:
    """Empty layers exist, and a reply of no bytes still says so by its length."""
    digest = repository.push_blob(b"")

    whole = repository.request("GET", f"blobs/{digest}")
    ranges = [
        repository.request("GET", f"blobs/{digest}", headers={"Range": asked}) for asked in ("bytes=0-", "bytes=-1")
    ]

    whole.expect(200, {"Content-Length": "0", "Docker-Content-Digest": digest})
    for reply in ranges:
        assert reply.status in {HTTPStatus.OK, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}, str(reply)


@pytest.mark.case(34)
def test_a_blob_is_never_compressed_on_the_way(blob: Blob) -> None:
    """Clients ask for gzip by themselves, unpack what the header names, and then miss the digest."""
    reply = blob.get(Accept_Encoding="zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")

    reply.expect(200, {"Content-Encoding": None, "Content-Length": str(len(blob.content))})
    assert reply.body == blob.content, str(reply)


@pytest.mark.case(35)
def test_a_reader_that_leaves_is_an_ordinary_event(registry: RegistryProcess, repository: Repository) -> None:
    """Parallel pullers open streams and drop them; each must cost nothing afterwards, nor look like a fault."""
    digest = repository.push_blob(random_content(16 * MIB))
    target = repository.url(f"blobs/{digest}")

    for _ in range(10):
        with registry.wire.connect() as connection:
            connection.send(f"GET {target} HTTP/1.1\r\nHost: {registry.wire.host}\r\n\r\n".encode())
            connection.read(100_000)
            connection.abort()

    object_name = registry.objects_of(digest)[0].name
    assert until(lambda: not any(object_name in name for name in registry.open_files())), "the blob is still open"
    assert repository.request("HEAD", f"blobs/{digest}").expect(200)["Content-Length"] == str(16 * MIB)
    statuses = {entry["status"] for entry in registry.access_log() if entry["repository"] == repository.name}
    assert max(statuses) < 500, f"logged as faults: {statuses}"
