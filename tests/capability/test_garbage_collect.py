"""`lading garbage-collect` beside a running server, and the server's own collection."""

import fcntl
import subprocess
from typing import Any

import pytest

from tests.capability.content import digest_of, new_image
from tests.capability.operated import OperatedRegistry
from tests.capability.repository import Repository
from tests.capability.server import LADING, until


@pytest.fixture
def app(operated: OperatedRegistry) -> Repository:
    """Return a repository of a running server that keeps every blob as a file."""
    operated.set("LADING_BLOBS__INLINE_MAX_BYTES", "0")
    operated.start()
    return Repository(operated.wire, "team/app")


def counts(document: dict[str, Any]) -> dict[str, int]:
    """Return how many of each noun went."""
    return {row["what"]: row["count"] for row in document["removed"]}


def files(operated: OperatedRegistry) -> int:
    """Return how many objects are on disk."""
    return sum(path.is_file() for path in (operated.data / "objects").glob("??/*"))


def end_leases(operated: OperatedRegistry) -> None:
    """Let a day pass for what was pushed."""
    operated.sql("UPDATE repo_blobs SET keep_until_us = 0")
    operated.sql("UPDATE gc_blob_queue SET review_after_us = 0")


def test_what_was_deleted_goes_now_when_asked_and_the_dry_run_says_so_before(
    operated: OperatedRegistry, app: Repository
) -> None:
    """An operator with a full disk, beside the running server: what it says, what it does, and what stays."""
    kept, gone = app.push_image("v1"), app.push_image("v2")
    app.request("DELETE", f"manifests/{gone.digest}").expect(202)
    leased = operated.do("garbage-collect", "--dry-run", "--now")
    end_leases(operated)

    waiting = operated.do("garbage-collect", "--json").json()
    foretold = operated.do("garbage-collect", "--dry-run", "--now", "--json").json()
    assert app.request("GET", f"manifests/{kept.digest}").status == 200
    before = files(operated)
    question = operated.refused("garbage-collect", "--now")
    done = operated.do("garbage-collect", "--now", "--yes", "--json").json()
    again = operated.do("garbage-collect")

    assert (
        f"{len(gone.layers) + 1} blobs without a manifest were pushed or asked for lately, and are kept"
        in leased.output
    )
    assert (counts(waiting), waiting["freed_bytes"]) == ({}, 0)
    assert "1 deleted manifests and 1 past moves of tags could be brought back" in question
    layers = len(gone.layers) + 1
    assert counts(done) == {"tag move": 1, "manifest": 1, "blob": layers, "object": layers}
    assert counts(foretold) == counts(done)
    assert foretold["freed_bytes"] == done["freed_bytes"] == sum(map(len, (gone.config, *gone.layers)))
    assert {item["digest"] for item in done["items"] if item["what"] == "manifest"} == {gone.digest}
    assert before - files(operated) == layers
    assert "nothing to collect" in again.output
    assert app.request("GET", "manifests/v1").expect(200).body == kept.manifest
    for content in (kept.config, *kept.layers):
        assert app.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content
    assert operated.do("verify", "--json").json()["found"] == {}


def test_the_server_collects_by_itself(operated: OperatedRegistry) -> None:
    """Always on: nobody has to remember a nightly job."""
    for name in ("UNDO", "DELAY"):
        operated.set(f"LADING_COLLECTION__{name}_SECONDS", "0")
    operated.set("LADING_COLLECTION__EVERY_SECONDS", "0.05")
    operated.set("LADING_BLOBS__INLINE_MAX_BYTES", "0")
    operated.start()
    app = Repository(operated.wire, "team/app")
    image = app.push_image("v1", new_image())
    assert files(operated) == len(image.layers) + 1

    app.request("DELETE", f"manifests/{image.digest}").expect(202)
    end_leases(operated)

    assert until(lambda: files(operated) == 0)
    assert until(lambda: app.request("GET", "tags/list").status == 404)
    count = f'lading_collected_total{{what="object"}} {len(image.layers) + 1}'
    assert until(lambda: count in operated.wire.request("GET", "/metrics").expect(200).body.decode())
    assert until(lambda: operated.events("collected") != [])


@pytest.mark.usefixtures("app")
def test_only_one_collects_at_a_time(operated: OperatedRegistry) -> None:
    """A second one waits for its turn, and says so."""
    with (operated.data / "collection.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(
            [*LADING, "garbage-collect", "--data", str(operated.data)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stderr is not None
        assert second.stderr.readline() == "a collection is under way; waiting for its end\n"
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "nothing to collect" in output


def test_nothing_is_collected_from_a_store_that_may_hold_more_than_the_database_knows(
    operated: OperatedRegistry, app: Repository
) -> None:
    """After a restore of an older database, what it does not know may be what somebody pushed since."""
    app.push_image("v1")
    operated.stop()
    operated.change_marker(seq=1_000_000)

    assert "lading store status" in operated.refused("garbage-collect")

    operated.start()
    refusal = operated.refused("garbage-collect", "--now", "--yes")
    assert "lading store acknowledge" in refusal
