"""A digest that was remembered counts in the boot that saw its bytes, and in no other."""

import pytest

from tests.capability.content import digest_of, random_content
from tests.capability.operated import OperatedRegistry
from tests.capability.repository import Repository, new_name, with_digest

# More than what is simply read again (256 KiB).
CONTENT_BYTES = 1_000_000


def interrupted_upload(operated: OperatedRegistry) -> tuple[Repository, str, bytes]:
    """Send all of a blob but its closing PUT; then its bytes are others, as after a power cut. Return the upload."""
    repository = Repository(operated.wire, new_name())
    content = random_content(CONTENT_BYTES)
    location = repository.start_upload()
    repository.send("PATCH", location, body=content).expect(202)
    assert operated.sql("SELECT digest_offset FROM uploads WHERE repository = ?", repository.name) == [
        (CONTENT_BYTES,)
    ], "no digest was remembered, so nothing is proved"
    (staging,) = [path for path in operated.staging_files() if path.name == location.rpartition("/")[2]]
    with staging.open("r+b") as file:
        file.seek(CONTENT_BYTES // 2)
        file.write(b"\0" * 4096)
    return repository, location, content


def another_boot(operated: OperatedRegistry) -> None:
    """Let the rows be of a boot before this one."""
    operated.sql("UPDATE uploads SET boot_id = '6e0c9d8e-0000-4000-8000-000000000000'")


def assert_refused(repository: Repository, location: str, content: bytes) -> None:
    """Assert that the closing PUT looks at the bytes, refuses them, and that the blob can be pushed again."""
    digest = digest_of(content)
    repository.send("PUT", with_digest(location, digest), body=b"").expect_error(400, "DIGEST_INVALID")
    repository.request("HEAD", f"blobs/{digest}").expect(404)
    repository.push_blob(content)
    assert repository.request("GET", f"blobs/{digest}").expect(200).body == content


def test_a_digest_of_another_boot_is_not_believed(operated: OperatedRegistry) -> None:
    """After a power cut the row can be there and the bytes not: a 201 for them would be a lie for ever."""
    operated.start()

    for _ in range(6):  # a connection each: PATCH and PUT meet the same worker, and different ones
        repository, location, content = interrupted_upload(operated)
        another_boot(operated)

        assert_refused(repository, location, content)
    operated.stop()


@pytest.mark.slow
def test_a_digest_of_another_boot_is_not_believed_by_a_server_that_was_restarted(operated: OperatedRegistry) -> None:
    """The ordinary case: the machine came up again, and the client goes on."""
    operated.start()
    repository, location, content = interrupted_upload(operated)
    operated.kill()
    another_boot(operated)

    operated.start()

    assert_refused(repository, location, content)
    operated.stop()


@pytest.mark.slow
def test_a_digest_of_this_boot_is_believed_by_every_worker(operated: OperatedRegistry) -> None:
    """Within a boot the page cache keeps what was written: reading gigabytes again at each PUT would prove nothing."""
    operated.start()

    for _ in range(6):
        repository, location, content = interrupted_upload(operated)

        repository.send("PUT", with_digest(location, digest_of(content)), body=b"").expect(201)
    operated.stop()
    operated.start()
    operated.stop()


@pytest.mark.slow
def test_a_session_of_another_boot_that_goes_on_is_hashed_whole(operated: OperatedRegistry) -> None:
    """A PATCH after the power cut must not give the old digest a new life."""
    operated.start()

    for _ in range(6):
        repository, location, content = interrupted_upload(operated)
        another_boot(operated)
        more = random_content(CONTENT_BYTES)
        repository.send("PATCH", location, body=more).expect(202)

        assert_refused(repository, location, content + more)
    operated.stop()
