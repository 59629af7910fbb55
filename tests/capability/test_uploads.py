"""Upload sessions: started, appended to, asked about, closed, cancelled, cut, raced, expired and taken up again."""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest

from tests.capability.content import LARGE_BYTES, SMALL_BYTES, digest_of, random_content
from tests.capability.racing import race
from tests.capability.repository import Repository, new_name, with_digest
from tests.capability.server import HOST, ClosedRegistry, RegistryProcess, StartRegistry, until
from tests.wire import Reply

MIB = 1024 * 1024
GIB = 1024 * MIB
CLOSING_SECONDS = 30.0
MEMORY_GROWTH_BYTES = 64 * MIB
EMPTY_DIGEST = digest_of(b"")
both_framings = pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
both_sizes = pytest.mark.parametrize("size_bytes", [SMALL_BYTES, LARGE_BYTES], ids=["in the database", "as a file"])


def append(
    repository: Repository, location: str, content: bytes, span: str | None = None, *, chunked: bool = True
) -> Reply:
    """PATCH the session, as a stream or, with `span`, as the chunk of that Content-Range."""
    headers = {"Content-Type": "application/octet-stream", **({"Content-Range": span} if span is not None else {})}
    return repository.send("PATCH", location, headers=headers, body=content, chunked=chunked)


def close(
    repository: Repository,
    location: str,
    digest: str,
    content: bytes = b"",
    span: str | None = None,
    *,
    chunked: bool = False,
) -> Reply:
    """PUT the end of the session, with the last of its content."""
    headers = {"Content-Range": span} if span is not None else {}
    return repository.send("PUT", with_digest(location, digest), headers=headers, body=content, chunked=chunked)


def assert_stored(repository: Repository, content: bytes, algorithm: str = "sha256") -> None:
    digest = digest_of(content, algorithm)
    reply = repository.request("GET", f"blobs/{digest}").expect(200, {"Docker-Content-Digest": digest})
    assert reply.body == content, str(reply)


def assert_absent(repository: Repository, digest: str) -> None:
    repository.request("HEAD", f"blobs/{digest}").expect(404)


@pytest.mark.case(36)
def test_a_start_tells_where_the_session_is(repository: Repository) -> None:
    """A path-absolute location is the one form that every client follows to the same place."""
    reply = repository.request("POST", "blobs/uploads/", body=b"")

    reply.expect(202, {"Range": "0-0", "Content-Length": "0"})
    assert reply["Docker-Upload-UUID"] in reply["Location"], str(reply)
    assert reply["Location"].startswith(repository.url("blobs/uploads/")), str(reply)


@pytest.mark.case(37)
@both_framings
def test_a_stream_reports_the_last_byte_it_holds(repository: Repository, *, chunked: bool) -> None:
    """Docker computes the layer's size from this Range and breaks on a unit or an off-by-one."""
    location = repository.start_upload()

    reply = append(repository, location, b"12345", chunked=chunked)

    reply.expect(202, {"Range": "0-4", "Content-Length": "0"})
    assert reply["Docker-Upload-UUID"] in reply["Location"], str(reply)


@pytest.mark.case(38)
@both_framings
def test_a_second_stream_appends(repository: Repository, *, chunked: bool) -> None:
    """Without a Content-Range each PATCH goes on where the last one ended."""
    location = append(repository, repository.start_upload(), b"12345", chunked=chunked).expect(202)["Location"]

    reply = append(repository, location, b"678", chunked=chunked)

    reply.expect(202, {"Range": "0-7"})
    close(repository, location, digest_of(b"12345678")).expect(201)


@pytest.mark.case(39)
@both_sizes
def test_a_session_is_closed_into_a_blob(repository: Repository, size_bytes: int) -> None:
    """This is docker's whole push of a layer: POST, one PATCH, an empty PUT, and then the blob is there."""
    content = random_content(size_bytes)
    digest = digest_of(content)
    location = append(repository, repository.start_upload(), content).expect(202)["Location"]

    reply = close(repository, location, digest)

    reply.expect(
        201,
        {"Location": repository.url(f"blobs/{digest}"), "Docker-Content-Digest": digest, "Content-Length": "0"},
    )
    assert repository.send("GET", reply["Location"]).expect(200).body == content


@pytest.mark.case(40)
def test_the_digest_may_be_escaped(repository: Repository) -> None:
    """Docker and skopeo escape the colon, in the query and some in the path."""
    content = random_content()
    digest = digest_of(content)
    escaped = digest.replace(":", "%3A")
    location = append(repository, repository.start_upload(), content).expect(202)["Location"]

    reply = close(repository, location, escaped)

    reply.expect(201, {"Location": repository.url(f"blobs/{digest}"), "Docker-Content-Digest": digest})
    assert repository.request("GET", f"blobs/{escaped}").expect(200).body == content


@pytest.mark.case(41)
@both_framings
@both_sizes
def test_a_whole_blob_may_come_with_the_closing_put(repository: Repository, size_bytes: int, *, chunked: bool) -> None:
    """Containerd and oras push every blob in this way."""
    content = random_content(size_bytes)
    digest = digest_of(content)

    reply = close(repository, repository.start_upload(), digest, content, chunked=chunked)

    reply.expect(201, {"Docker-Content-Digest": digest, "Content-Length": "0"})
    assert_stored(repository, content)


@pytest.mark.case(42)
@both_framings
def test_chunks_in_order_make_a_blob(repository: Repository, *, chunked: bool) -> None:
    """Chunked clients name the place of each chunk, and the last one may come with the PUT."""
    content = b"0123456789abc"
    location = repository.start_upload()

    first = append(repository, location, content[:5], "0-4", chunked=chunked).expect(202, {"Range": "0-4"})
    second = append(repository, first["Location"], content[5:10], "5-9", chunked=chunked).expect(202, {"Range": "0-9"})
    close(repository, second["Location"], digest_of(content), content[10:], "10-12", chunked=chunked).expect(201)

    assert_stored(repository, content)


@pytest.mark.case(43)
@both_framings
def test_a_first_chunk_from_the_middle_is_refused(repository: Repository, *, chunked: bool) -> None:
    """Clients recover from the headers of the refusal, so the session must live on unchanged."""
    location = repository.start_upload()

    reply = append(repository, location, b"56789", "5-9", chunked=chunked)

    reply.expect_error(416, "RANGE_INVALID")
    reply.expect(416, {"Range": "0-0"})
    assert reply["Docker-Upload-UUID"] in reply["Location"], str(reply)
    append(repository, reply["Location"], b"01234", "0-4").expect(202, {"Range": "0-4"})


@pytest.mark.case(44)
def test_a_repeated_chunk_is_refused(repository: Repository) -> None:
    """A client that missed the reply sends the chunk again and must not have it twice."""
    location = repository.start_upload()
    append(repository, location, b"01234", "0-4", chunked=False).expect(202)

    reply = append(repository, location, b"01234", "0-4", chunked=False)

    reply.expect_error(416, "RANGE_INVALID")
    reply.expect(416, {"Range": "0-4"})
    close(repository, reply["Location"], digest_of(b"01234")).expect(201)


@pytest.mark.case(45)
def test_a_closing_put_out_of_order_is_refused(repository: Repository) -> None:
    """The last chunk is checked like any other, and the session waits for the right one."""
    location = repository.start_upload()
    append(repository, location, b"01234", "0-4").expect(202)
    digest = digest_of(b"0123456789")

    refused = close(repository, location, digest, b"56789", "7-11")
    accepted = close(repository, location, digest, b"56789", "5-9")

    refused.expect_error(416, "RANGE_INVALID")
    refused.expect(416, {"Range": "0-4"})
    accepted.expect(201, {"Docker-Content-Digest": digest})


@pytest.mark.case(46)
@both_framings
@pytest.mark.parametrize("body", [b"012", b"0123456"], ids=["shorter", "longer"])
def test_a_chunk_of_another_length_than_it_says_is_refused(
    repository: Repository, body: bytes, *, chunked: bool
) -> None:
    """One of the two numbers is wrong and we cannot know which, so nothing is appended."""
    location = repository.start_upload()

    reply = append(repository, location, body, "0-4", chunked=chunked)

    reply.expect_error(400, "SIZE_INVALID")
    assert repository.upload_range(location) == "0-0"
    append(repository, location, b"01234", "0-4").expect(202, {"Range": "0-4"})


@pytest.mark.case(47)
@pytest.mark.parametrize("span", ["abc", "0-", "-4", "4", "4-0", "0-4-5"])
def test_a_content_range_that_is_none_is_refused(repository: Repository, span: str) -> None:
    """A chunk whose place is not understood cannot be appended."""
    location = repository.start_upload()

    reply = append(repository, location, b"01234", span)

    reply.expect_error(416, "RANGE_INVALID")
    assert repository.upload_range(location) == "0-0"


def test_a_content_range_with_its_unit_is_understood(repository: Repository) -> None:
    """HTTP's own form of the header is what a reader of RFC 9110 would send."""
    location = repository.start_upload()

    append(repository, location, b"01234", "bytes 0-4/*").expect(202, {"Range": "0-4"})

    close(repository, location, digest_of(b"01234")).expect(201)


@pytest.mark.case(48)
def test_a_fresh_session_reports_that_it_is_empty(repository: Repository) -> None:
    """`0--1` has broken docker's parser; `0-0` is what all read."""
    location = repository.start_upload()

    reply = repository.send("GET", location)

    reply.expect(204, {"Range": "0-0", "Content-Length": None})
    assert reply["Docker-Upload-UUID"] in reply["Location"], str(reply)


@pytest.mark.case(49)
def test_the_first_location_stays_good(repository: Repository) -> None:
    """A client that lost later replies asks where it last knew the session."""
    location = repository.start_upload()
    second = append(repository, location, b"01234").expect(202)["Location"]
    append(repository, second, b"567").expect(202)

    reply = repository.send("GET", location)

    reply.expect(204, {"Range": "0-7"})


@pytest.mark.case(50)
def test_a_status_request_may_carry_a_digest(repository: Repository) -> None:
    """The conformance suite and regclient ask with the query of the PUT that was refused."""
    location = repository.start_upload()
    append(repository, location, b"01234").expect(202)

    reply = repository.send("GET", with_digest(location, digest_of(b"01234")))

    reply.expect(204, {"Range": "0-4"})


@pytest.mark.case(51)
@both_sizes
def test_a_digest_that_does_not_match_ends_the_session(repository: Repository, size_bytes: int) -> None:
    """What arrived is not what was meant, so no later PUT may turn it into a blob."""
    content = random_content(size_bytes)
    location = append(repository, repository.start_upload(), content).expect(202)["Location"]
    other = digest_of(random_content())

    reply = close(repository, location, other)

    reply.expect_error(400, "DIGEST_INVALID")
    assert_absent(repository, other)
    assert_absent(repository, digest_of(content))
    repository.send("GET", location).expect_error(404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.case(52)
def test_a_closing_put_without_a_digest_changes_nothing(repository: Repository) -> None:
    """The mistake is in the request, not in the content; nothing is appended and nothing lost."""
    location = repository.start_upload()
    append(repository, location, b"01234").expect(202)

    reply = repository.send("PUT", location, body=b"56789")

    reply.expect_error(400, "DIGEST_INVALID")
    assert repository.upload_range(location) == "0-4"
    close(repository, location, digest_of(b"0123456789"), b"56789").expect(201)


@pytest.mark.case(53)
@pytest.mark.parametrize("digest", ["md5:d41d8cd98f00b204e9800998ecf8427e", "garbage", "sha256:abc", "sha256:", ""])
def test_a_closing_put_with_a_malformed_digest_changes_nothing(repository: Repository, digest: str) -> None:
    """As without one: the client may close the session with a digest that can be checked."""
    location = repository.start_upload()
    append(repository, location, b"01234").expect(202)

    reply = close(repository, location, digest, b"56789")

    reply.expect_error(400, "DIGEST_INVALID")
    assert repository.upload_range(location) == "0-4"
    close(repository, location, digest_of(b"0123456789"), b"56789").expect(201)


@pytest.mark.case(54)
@both_sizes
def test_a_session_may_be_closed_with_sha512(repository: Repository, size_bytes: int) -> None:
    """Nobody announces the algorithm at the start, and containerd fails if the reply names another digest."""
    content = random_content(size_bytes)
    digest = digest_of(content, "sha512")
    location = append(repository, repository.start_upload(), content).expect(202)["Location"]

    reply = close(repository, location, digest)

    reply.expect(201, {"Docker-Content-Digest": digest, "Location": repository.url(f"blobs/{digest}")})
    assert_stored(repository, content, "sha512")


@pytest.mark.case(55)
def test_a_start_may_announce_the_algorithm(repository: Repository) -> None:
    """The development specification's hint saves a second pass, and one we lack is refused before the bytes come."""
    content = random_content()

    hinted = repository.request("POST", "blobs/uploads/?digest-algorithm=sha512", body=b"")
    unknown = repository.request("POST", "blobs/uploads/?digest-algorithm=md5", body=b"")

    unknown.expect_error(400, "DIGEST_INVALID")
    close(repository, hinted.expect(202)["Location"], digest_of(content, "sha512"), content).expect(201)
    assert_stored(repository, content, "sha512")


@pytest.mark.case(56)
@both_framings
@both_sizes
def test_a_blob_may_be_pushed_in_one_request(repository: Repository, size_bytes: int, *, chunked: bool) -> None:
    """One round trip, for clients that know the digest beforehand; the content is checked as ever."""
    content, other = random_content(size_bytes), random_content(size_bytes)
    digest = digest_of(content)

    accepted = repository.request("POST", f"blobs/uploads/?digest={digest}", body=content, chunked=chunked)
    refused = repository.request("POST", f"blobs/uploads/?digest={digest_of(other)}", body=content, chunked=chunked)
    malformed = repository.request("POST", "blobs/uploads/?digest=sha256:abc", body=content, chunked=chunked)

    accepted.expect(
        201, {"Location": repository.url(f"blobs/{digest}"), "Docker-Content-Digest": digest, "Content-Length": "0"}
    )
    assert_stored(repository, content)
    refused.expect_error(400, "DIGEST_INVALID")
    malformed.expect_error(400, "DIGEST_INVALID")
    assert_absent(repository, digest_of(other))


@both_framings
def test_a_push_in_one_request_without_a_body_starts_a_session(repository: Repository, *, chunked: bool) -> None:
    """Some clients name the digest at the start and send the content later; an empty blob is the exception."""
    content = random_content()
    digest = digest_of(content)

    session = repository.request("POST", f"blobs/uploads/?digest={digest}", body=b"", chunked=chunked)
    empty = repository.request("POST", f"blobs/uploads/?digest={EMPTY_DIGEST}", body=b"", chunked=chunked)

    session.expect(202, {"Range": "0-0"})
    assert_absent(repository, digest)
    close(repository, session["Location"], digest, content).expect(201)
    empty.expect(201, {"Docker-Content-Digest": EMPTY_DIGEST})


@pytest.mark.case(57)
@pytest.mark.parametrize("media_type", ["application/json", "application/x-www-form-urlencoded", None])
def test_the_type_of_a_blobs_body_does_not_matter(repository: Repository, media_type: str | None) -> None:
    """Clients of ggcr's family call it JSON, curl calls it a form, and some call it nothing."""
    content = random_content()
    headers = {"Content-Type": media_type} if media_type else {}

    reply = repository.request("POST", f"blobs/uploads/?digest={digest_of(content)}", headers=headers, body=content)

    reply.expect(201)
    assert_stored(repository, content)


@pytest.mark.case(58)
@pytest.mark.parametrize("session", [str(uuid.UUID(int=7)), "nonsense", "a.b", "%2e%2e", "x" * 300])
@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_an_unknown_session_is_not_found(repository: Repository, method: str, session: str) -> None:
    """Whatever the id looks like, the client learns the one thing that helps: start anew."""
    repository.push_blob(random_content())
    body = b"01234" if method in {"PATCH", "PUT"} else None

    reply = repository.request(method, f"blobs/uploads/{session}?digest={digest_of(b'01234')}", body=body)

    reply.expect_error(404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.case(59)
@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_a_session_belongs_to_its_repository(repository: Repository, method: str) -> None:
    """Otherwise the right to push to one repository would reach into another's upload."""
    location = repository.start_upload()
    append(repository, location, b"01234").expect(202)
    other = Repository(repository.wire, new_name())
    other.push_blob(random_content())
    stolen = location.replace(repository.name, other.name)
    body = b"56789" if method in {"PATCH", "PUT"} else None

    reply = other.send(method, with_digest(stolen, digest_of(b"0123456789")), body=body)

    reply.expect_error(404, "BLOB_UPLOAD_UNKNOWN")
    assert repository.upload_range(location) == "0-4"


@pytest.mark.case(60)
def test_a_session_can_be_cancelled_once(registry: RegistryProcess, repository: Repository) -> None:
    """Docker cancels what a mount made needless; the staged bytes go with the session."""
    location = repository.start_upload()
    reply = append(repository, location, random_content(LARGE_BYTES)).expect(202)

    first = repository.send("DELETE", location)
    second = repository.send("DELETE", location)

    first.expect(204, {"Content-Length": None})
    second.expect_error(404, "BLOB_UPLOAD_UNKNOWN")
    repository.send("GET", location).expect_error(404, "BLOB_UPLOAD_UNKNOWN")
    session = reply["Docker-Upload-UUID"]
    assert until(lambda: not any(session in path.name for path in registry.staging_files())), "its bytes stay"


@pytest.mark.case(61)
def test_a_forgotten_session_expires(start_registry: StartRegistry) -> None:
    """Kaniko alone leaves a session with every build; nobody else would ever tidy up behind it."""
    server = start_registry({"LADING_UPLOADS__TTL_SECONDS": "2"})
    repository = Repository(server.wire, new_name())
    location = repository.start_upload()
    append(repository, location, random_content(LARGE_BYTES)).expect(202)
    assert server.staging_files(), "no staging file to watch"

    time.sleep(3)  # no question meanwhile: it could count as a sign of life

    repository.send("GET", location).expect_error(404, "BLOB_UPLOAD_UNKNOWN")
    append(repository, location, b"more").expect_error(404, "BLOB_UPLOAD_UNKNOWN")
    close(repository, location, digest_of(b"more")).expect_error(404, "BLOB_UPLOAD_UNKNOWN")
    assert until(lambda: not server.staging_files()), f"left behind: {server.staging_files()}"


def settled_range(repository: Repository, location: str) -> str:
    """Return the session's Range once two questions in a row have the same answer."""
    seen: list[str] = []

    def settled() -> bool:
        seen.append(repository.upload_range(location))
        time.sleep(0.05)
        return len(seen) > 1 and seen[-1] == seen[-2]

    assert until(settled), f"the Range does not settle: {seen}"
    return seen[-1]


@pytest.mark.case(62)
def test_a_cut_chunk_keeps_what_is_true(repository: Repository) -> None:
    """A broken line is daily life; the client goes on from the offset that we report, so it must be the real one."""
    content = random_content(100)
    location = repository.start_upload()
    with repository.wire.connect() as connection:
        head = f"PATCH {location} HTTP/1.1\r\nHost: {repository.wire.host}\r\nContent-Length: 100\r\n\r\n"
        connection.send(head.encode() + content[:40])
        time.sleep(0.2)
        connection.abort()

    held = int(settled_range(repository, location).removeprefix("0-")) + 1

    assert held <= 40
    rest = append(repository, location, content[held:], f"{held}-99", chunked=False)
    if held == 1 and rest.status == 416:  # `0-0` also says that nothing was kept
        rest = append(repository, location, content, "0-99", chunked=False)
    rest.expect(202, {"Range": "0-99"})
    close(repository, location, digest_of(content)).expect(201)
    assert_stored(repository, content)


@pytest.mark.case(63)
def test_a_cut_closing_put_leaves_no_blob(registry: RegistryProcess, repository: Repository) -> None:
    """A client that dies while it closes has not pushed, and no half of its content may be found under the digest."""
    content = random_content(LARGE_BYTES)
    digest = digest_of(content)
    target = with_digest(repository.start_upload(), digest)
    with repository.wire.connect() as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: {repository.wire.host}\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.send(head.encode() + content[:60_000])
        time.sleep(0.2)
        connection.abort()
    time.sleep(0.2)

    assert_absent(repository, digest)
    assert not registry.objects_of(digest), "half a file has the digest's name"
    assert not registry.objects_of(digest_of(content[:60_000])), "half a blob was stored"
    repository.push_blob(content)
    assert_stored(repository, content)


@pytest.mark.case(64)
def test_a_second_writer_is_turned_away_at_once(repository: Repository) -> None:
    """Waiting for the first writer could take hours, and two at once would mix their bytes."""
    mine, other = random_content(LARGE_BYTES), random_content(LARGE_BYTES)
    location = repository.start_upload()
    with repository.wire.connect() as connection:
        head = f"PATCH {location} HTTP/1.1\r\nHost: {repository.wire.host}\r\nContent-Length: {len(mine)}\r\n\r\n"
        connection.send(head.encode() + mine[:50_000])
        time.sleep(0.3)

        began = time.monotonic()
        loser = append(repository, location, other, chunked=False)
        waited_seconds = time.monotonic() - began
        connection.send(mine[50_000:])
        winner = connection.read_reply(head)

    loser.expect_error(416, "RANGE_INVALID")
    assert waited_seconds < 5, f"turned away after {waited_seconds:.1f} s"
    winner.expect(202, {"Range": f"0-{len(mine) - 1}"})
    close(repository, location, digest_of(mine)).expect(201)
    assert_stored(repository, mine)


def test_of_two_equal_chunks_exactly_one_is_taken(repository: Repository) -> None:
    """Whichever comes first, the other's place is taken, and the content is one writer's alone."""
    for _ in range(15):
        parts = [random_content(LARGE_BYTES), random_content(LARGE_BYTES)]
        location = repository.start_upload()

        replies = race(*(partial(append, repository, location, part, f"0-{LARGE_BYTES - 1}") for part in parts))

        assert sorted(reply.status for reply in replies) == [202, 416], "\n".join(map(str, replies))
        winner = parts[[reply.status for reply in replies].index(202)]
        close(repository, location, digest_of(winner)).expect(201)
        assert_stored(repository, winner)


@pytest.mark.case(65)
def test_twenty_uploads_of_one_blob_store_it_once(registry: RegistryProcess, repository: Repository) -> None:
    """A build farm pushes the same base layer from everywhere; all succeed, and the disk holds it once."""
    content = random_content(LARGE_BYTES)
    digest = digest_of(content)
    locations = [repository.start_upload() for _ in range(20)]

    replies = race(*(partial(close, repository, location, digest, content) for location in locations))

    for reply in replies:
        reply.expect(201, {"Docker-Content-Digest": digest})
    assert until(lambda: len(registry.objects_of(digest)) == 1), f"stored as {registry.objects_of(digest)}"
    assert registry.objects_of(digest)[0].read_bytes() == content
    assert_stored(repository, content)


@pytest.mark.case(66)
@both_sizes
def test_a_blob_that_is_there_may_be_pushed_again(repository: Repository, size_bytes: int) -> None:
    """Not every client asks first."""
    content = random_content(size_bytes)
    digest = repository.push_blob(content)

    again = close(repository, repository.start_upload(), digest, content)
    at_once = repository.request("POST", f"blobs/uploads/?digest={digest}", body=content)

    again.expect(201, {"Docker-Content-Digest": digest})
    at_once.expect(201, {"Docker-Content-Digest": digest})
    assert_stored(repository, content)


@pytest.mark.case(67)
@both_framings
def test_an_empty_blob_can_be_pushed(repository: Repository, *, chunked: bool) -> None:
    """Zero bytes are content like any other, though `0-0` has to stand for them."""
    with_put, with_patch = repository.start_upload(), repository.start_upload()

    put_alone = close(repository, with_put, EMPTY_DIGEST, chunked=chunked)
    patched = append(repository, with_patch, b"", chunked=chunked)
    put_after = close(repository, with_patch, EMPTY_DIGEST, chunked=chunked)

    put_alone.expect(201, {"Docker-Content-Digest": EMPTY_DIGEST})
    patched.expect(202, {"Range": "0-0"})
    put_after.expect(201, {"Docker-Content-Digest": EMPTY_DIGEST})
    assert_stored(repository, b"")


def assert_streams_in_bounded_memory(server: RegistryProcess, size_bytes: int) -> None:
    """Push one blob of that size and assert that neither memory nor the closing PUT grows with it."""
    repository = Repository(replace(server.wire, timeout_seconds=300.0), new_name())
    repository.push_blob(random_content(4 * MIB))
    before_bytes = server.peak_memory_bytes()
    block = random_content(MIB)
    running = hashlib.sha256()

    def content() -> Iterator[bytes]:
        for number in range(size_bytes // MIB):
            piece = number.to_bytes(8, "big") + block[8:]
            running.update(piece)
            yield piece

    location = repository.start_upload()
    repository.send("PATCH", location, body=content(), chunked=True).expect(202, {"Range": f"0-{size_bytes - 1}"})
    digest = f"sha256:{running.hexdigest()}"
    began = time.monotonic()
    close(repository, location, digest).expect(201)
    closing_seconds = time.monotonic() - began
    grown_bytes = server.peak_memory_bytes() - before_bytes

    assert closing_seconds < CLOSING_SECONDS, f"the closing PUT took {closing_seconds:.1f} s"
    assert grown_bytes < MEMORY_GROWTH_BYTES, f"memory grew by {grown_bytes / MIB:.0f} MiB"
    repository.request("HEAD", f"blobs/{digest}").expect(200, {"Content-Length": str(size_bytes)})
    last = repository.request("GET", f"blobs/{digest}", headers={"Range": f"bytes=-{MIB}"}).expect(206)
    assert last.body == (size_bytes // MIB - 1).to_bytes(8, "big") + block[8:], "the last MiB differs"


@pytest.mark.case(68)
def test_a_large_stream_keeps_memory_flat(start_registry: StartRegistry) -> None:
    """Layers of machine-learning images have tens of gigabytes, and containerd waits 30 s for an answer."""
    assert_streams_in_bounded_memory(start_registry(), 600 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_largest_stream_keeps_memory_flat(start_registry: StartRegistry) -> None:
    """What grows slowly shows only at full size, ten gibibytes; it takes minutes, so LADING_FULL=1 asks for it."""
    full = os.environ.get("LADING_FULL") == "1"

    assert_streams_in_bounded_memory(start_registry(), 10 * GIB if full else GIB)


@pytest.mark.case(69)
@both_framings
def test_a_blob_over_the_limit_is_refused(start_registry: StartRegistry, *, chunked: bool) -> None:
    """One mistaken push must not fill the disk; the limit counts the blob, however it is cut into requests."""
    server = start_registry({"LADING_BLOBS__MAX_BYTES": "1000000"})
    repository = Repository(server.wire, new_name())
    fits, over = random_content(1_000_000), random_content(1_000_001)
    half_full = repository.start_upload()
    append(repository, half_full, fits[:600_000], chunked=chunked).expect(202)

    patched = append(repository, repository.start_upload(), over, chunked=chunked)
    added = append(repository, half_full, over[600_000:], chunked=chunked)
    put = close(repository, repository.start_upload(), digest_of(over), over, chunked=chunked)
    at_once = repository.request("POST", f"blobs/uploads/?digest={digest_of(over)}", body=over, chunked=chunked)
    accepted = close(repository, repository.start_upload(), digest_of(fits), fits, chunked=chunked)

    for refused in (patched, added, put, at_once):
        refused.expect_error(413, "SIZE_INVALID")
    assert_absent(repository, digest_of(over))
    accepted.expect(201)
    assert_stored(repository, fits)


@pytest.mark.case(70)
def test_a_client_may_wait_for_the_go_ahead(repository: Repository) -> None:
    """Curl sends this expectation with bodies over a megabyte and waits a second where it is not met."""
    content = random_content(LARGE_BYTES)
    location = repository.start_upload()
    with repository.wire.connect() as connection:
        head = (
            f"PATCH {location} HTTP/1.1\r\nHost: {repository.wire.host}\r\n"
            f"Content-Length: {len(content)}\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.send(head.encode())
        interim = connection.read_reply(head)
        connection.send(content)
        final = connection.read_reply(head)

    interim.expect(100)
    final.expect(202, {"Range": f"0-{len(content) - 1}"})
    close(repository, location, digest_of(content)).expect(201)


@pytest.mark.case(71)
@pytest.mark.parametrize("end", [RegistryProcess.stop, RegistryProcess.kill], ids=["stopped", "killed"])
@both_sizes
def test_a_session_survives_a_restart(
    start_registry: StartRegistry, end: Callable[[RegistryProcess], None], size_bytes: int
) -> None:
    """Upgrades and crashes happen in the middle of long pushes, and nothing that was acknowledged is sent twice."""
    server = start_registry()
    repository = Repository(server.wire, new_name())
    content = random_content(2 * size_bytes)
    location = repository.start_upload()
    append(repository, location, content[:size_bytes]).expect(202)

    end(server)
    server.start()

    assert repository.upload_range(location) == f"0-{size_bytes - 1}"
    append(repository, location, content[size_bytes:], f"{size_bytes}-{2 * size_bytes - 1}").expect(202)
    close(repository, location, digest_of(content)).expect(201)
    assert_stored(repository, content)


@pytest.mark.case(72)
def test_a_token_that_expires_during_a_transfer_is_good_to_its_end(closed_registry: ClosedRegistry) -> None:
    """Tokens live minutes and layers take hours; what was allowed at its start is not undone in its middle."""
    name, content = new_name(), random_content(LARGE_BYTES)
    lasting = Repository(closed_registry.wire, name, closed_registry.allow({name: ["pull", "push"]}))
    target = with_digest(lasting.start_upload(), digest_of(content))
    ((field, value),) = closed_registry.allow({name: ["pull", "push"]}, seconds=1.0)
    with closed_registry.wire.connect() as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: {HOST}\r\n{field}: {value}\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.send(head.encode() + content[:50_000])
        time.sleep(1.5)

        connection.send(content[50_000:])
        reply = connection.read_reply(head)

    reply.expect(201, {"Docker-Content-Digest": digest_of(content)})
    assert_stored(lasting, content)
    expired = Repository(closed_registry.wire, name, ((field, value),))
    expired.request("GET", f"blobs/{digest_of(content)}").expect_error(401, "UNAUTHORIZED")


@pytest.mark.case(73)
def test_a_repeated_digest_must_be_the_same(repository: Repository) -> None:
    """Regclient adds the digest to a location that has it already; two different ones have no meaning."""
    content = random_content()
    digest, other = digest_of(content), digest_of(random_content())
    location = repository.start_upload()
    append(repository, location, content).expect(202)

    different = repository.send("PUT", f"{location}?digest={digest}&digest={other}", body=b"")
    equal = repository.send("PUT", f"{location}?digest={digest}&digest={digest.replace(':', '%3A')}", body=b"")

    different.expect_error(400, "DIGEST_INVALID")
    equal.expect(201, {"Docker-Content-Digest": digest})


@pytest.mark.case(74)
def test_a_finished_session_is_gone(repository: Repository) -> None:
    """Its content has become a blob, which a late repetition of the PUT cannot touch."""
    content = random_content()
    digest = digest_of(content)
    location = repository.start_upload()
    close(repository, location, digest, content).expect(201)

    again = close(repository, location, digest, content)

    again.expect_error(404, "BLOB_UPLOAD_UNKNOWN")
    repository.send("GET", location).expect_error(404, "BLOB_UPLOAD_UNKNOWN")
    assert_stored(repository, content)


def test_reading_the_place_of_uploads_is_not_offered(repository: Repository) -> None:
    """A digest that reads `uploads` does not exist, so the path can only be a mistaken method."""
    replies = [repository.request(method, f"blobs/uploads{slash}") for method in ("GET", "HEAD") for slash in ("", "/")]

    for reply in replies:
        reply.expect_error(405, "UNSUPPORTED")
        assert reply["Allow"] == "POST", str(reply)


def test_a_session_alone_makes_no_repository(repository: Repository) -> None:
    """Mistyped names and permission checks start sessions; none of them may show up as a repository."""
    repository.start_upload()

    repository.request("GET", "tags/list").expect_error(404, "NAME_UNKNOWN")


@pytest.mark.parametrize("size_bytes", [5, 300_000])
def test_what_was_refused_counts_for_nothing(repository: Repository, size_bytes: int) -> None:
    """A digest that had seen the refused chunk would let the content without it pass for the content with it."""
    content = random_content(size_bytes)
    refused = random_content(size_bytes)
    location = repository.start_upload()
    repository.send("PATCH", location, body=content).expect(202)
    span = {"Content-Range": f"{size_bytes}-{3 * size_bytes}"}

    repository.send("PATCH", location, headers=span, body=refused, chunked=True).expect_error(400, "SIZE_INVALID")

    both = digest_of(content + refused)
    repository.send("PUT", with_digest(location, both), body=b"").expect_error(400, "DIGEST_INVALID")
    repository.request("GET", f"blobs/{both}").expect(404)


def test_after_a_refused_chunk_the_session_goes_on(repository: Repository) -> None:
    """The client learns that its chunk was wrong, sends the right one, and has its blob."""
    content = random_content(LARGE_BYTES)
    location = repository.start_upload()
    repository.send("PATCH", location, body=content[:50_000]).expect(202)
    repository.send(
        "PATCH", location, headers={"Content-Range": "50000-50001"}, body=b"not two", chunked=True
    ).expect_error(400, "SIZE_INVALID")

    repository.send("PATCH", location, body=content[50_000:]).expect(202)

    digest = digest_of(content)
    repository.send("PUT", with_digest(location, digest), body=b"").expect(201)
    assert repository.request("GET", f"blobs/{digest}").expect(200).body == content
