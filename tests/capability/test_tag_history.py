"""The history of a tag over HTTP, in the shape of the draft for the distribution specification."""

from urllib.parse import quote

from tests.capability.content import OCI_INDEX, OCI_MANIFEST, Json
from tests.capability.repository import Repository, new_name

TIMESTAMP = "org.opencontainers.distribution.tag.timestamp"
EVENT = "org.opencontainers.distribution.tag.event"


def history(repository: Repository, query: str = "") -> list[Json]:
    reply = repository.request("GET", f"_oci/tag-history/v1{query}").expect(200, {"Content-Type": OCI_INDEX})
    manifests: list[Json] = reply.json()["manifests"]
    return manifests


def told(events: list[Json]) -> list[tuple[str, str]]:
    return [(event["annotations"][EVENT], event["digest"]) for event in events]


def test_each_event_of_a_tag_is_told_the_newest_first(repository: Repository) -> None:
    """Who asks what ran last Friday need not be the operator."""
    first = repository.push_image("v1")
    second = repository.push_image("v1")
    repository.request("DELETE", "manifests/v1").expect(202)
    repository.put_manifest("v1", first.manifest).expect(201)
    repository.request("DELETE", f"manifests/{first.digest}").expect(202)

    events = history(repository)

    assert told(events) == [
        ("deleted", first.digest),
        ("created", first.digest),
        ("deleted", second.digest),
        ("created", second.digest),
        ("created", first.digest),
    ]
    assert all((event["mediaType"], event["size"]) == (OCI_MANIFEST, len(first.manifest)) for event in events)
    times = [event["annotations"][TIMESTAMP] for event in events]
    assert times == sorted(times, reverse=True)
    assert history(repository, f"?before={quote(times[2])}") == events[3:]
    assert history(repository, f"?since={quote(times[2])}&before={quote(times[0])}") == events[1:2]
    assert history(repository, f"?digest={second.digest}") == events[2:4]
    assert history(repository, "?n=0") == []


def test_a_long_history_comes_in_pages(repository: Repository) -> None:
    """A tag that every build moves has thousands of rows."""
    images = [repository.push_image("v1") for _ in range(3)]
    repository.request("DELETE", "manifests/v1").expect(202)

    events: list[Json] = []
    target: str | None = repository.url("_oci/tag-history/v1?n=3")
    while target is not None:
        reply = repository.send("GET", target).expect(200)
        events += reply.json()["manifests"]
        link = reply.get("Link")
        target = None if link is None else link.removeprefix("<").partition(">")[0]

    assert told(events) == [
        ("deleted", images[2].digest),
        *(("created", image.digest) for image in reversed(images)),
    ]


def test_what_has_no_history_has_no_events(repository: Repository) -> None:
    """The draft keeps 404 for registries that do not have this at all."""
    assert history(Repository(repository.wire, new_name())) == []
    repository.push_image("other")
    assert history(repository) == []
    for query in ("before=yesterday", "since=2026-13-01T00:00:00Z", "before="):
        repository.request("GET", f"_oci/tag-history/v1?{query}").expect_error(400, "UNSUPPORTED")
    repository.request("GET", "_oci/tag-history/v1?n=x").expect_error(400, "PAGINATION_NUMBER_INVALID")
    repository.request("POST", "_oci/tag-history/v1", body=b"").expect_error(405, "UNSUPPORTED")
