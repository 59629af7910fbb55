"""Listing repositories: those with content to pull, in one order, in pages that fit together."""

from urllib.parse import quote

import pytest

from tests.capability.content import random_content
from tests.capability.paging import next_target, walk
from tests.capability.repository import Repository, new_name
from tests.capability.server import RegistryProcess, StartRegistry

SHAPES = ["a", "a-b", "a.b", "a/b", "aa"]


@pytest.fixture
def names(registry: RegistryProcess) -> list[str]:
    """Push into repositories whose names differ by separators, and return the names in bytewise order."""
    prefix = new_name()
    for shape in reversed(SHAPES):
        Repository(registry.wire, f"{prefix}/{shape}").push_image()
    return [f"{prefix}/{shape}" for shape in SHAPES]


def before(names: list[str]) -> str:
    """Return a place in the order right before these names, whatever else the catalog holds."""
    return quote(f"{names[0].partition('/')[0]}/", safe="")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_pages_of_the_catalog_fit_together_in_bytewise_order(
    registry: RegistryProcess, names: list[str], size: int
) -> None:
    """`/` sorts between `.` and `0`; stores that sort by path see another order and lose repositories between pages."""
    listed = walk(registry.wire, f"/v2/_catalog?n={size}&last={before(names)}", "repositories")

    assert listed[: len(names)] == names


def test_the_catalog_links_to_its_next_page(registry: RegistryProcess, names: list[str]) -> None:
    """The form of the link is that of the tags' list, which all clients read."""
    first = registry.wire.request("GET", f"/v2/_catalog?n=2&last={before(names)}").expect(200)

    assert first["Content-Type"].partition(";")[0] == "application/json", str(first)
    assert first.json()["repositories"] == names[:2], str(first)
    following = next_target(first)
    assert following is not None, str(first)
    assert following.startswith("/v2/_catalog?"), str(first)


def test_the_whole_catalog_has_each_repository_once(registry: RegistryProcess, names: list[str]) -> None:
    """Whoever mirrors a registry starts here."""
    listed = walk(registry.wire, "/v2/_catalog", "repositories")

    assert listed == sorted(set(listed), key=str.encode)
    assert set(names) <= set(listed)


def test_a_page_of_the_catalog_is_capped_with_a_link(start_registry: StartRegistry) -> None:
    """Asking for more than the cap is no error: the rest is linked."""
    server = start_registry({"LADING_LISTS__MAX_PAGE_ENTRIES": "50"})
    names = sorted(f"r{number:02}" for number in range(55))
    seed = Repository(server.wire, "seed")
    image = seed.push_image()
    for name in names:
        repository = Repository(server.wire, name)
        for content in (image.config, *image.layers):
            repository.push_blob(content)
        repository.put_manifest("latest", image.manifest).expect(201)

    greedy = server.wire.request("GET", "/v2/_catalog?n=1000").expect(200)

    assert greedy.json()["repositories"] == names[:50], str(greedy)
    assert walk(server.wire, "/v2/_catalog?n=1000", "repositories") == [*names, "seed"]


@pytest.mark.parametrize("count", ["-1", "abc", "1.5"])
def test_a_page_size_of_the_catalog_is_a_count(registry: RegistryProcess, count: str) -> None:
    """The same rule as for tags, since the same clients ask."""
    reply = registry.wire.request("GET", f"/v2/_catalog?n={count}")

    reply.expect_error(400, "PAGINATION_NUMBER_INVALID")


def test_a_page_of_none_of_the_catalog_is_empty(registry: RegistryProcess, names: list[str]) -> None:
    """As for tags: nothing asked, nothing sent, no link."""
    assert names

    reply = registry.wire.request("GET", "/v2/_catalog?n=0").expect(200, {"Link": None})

    assert reply.json() == {"repositories": []}, str(reply)


def test_the_catalog_lists_what_can_be_pulled(registry: RegistryProcess) -> None:
    """A repository of loose blobs has nothing to pull yet, and one whose last manifest is deleted no longer."""
    prefix = new_name()
    only_blobs, emptied, filled = (
        Repository(registry.wire, f"{prefix}/{part}") for part in ("blobs", "emptied", "full")
    )
    only_blobs.push_blob(random_content())
    emptied.request("DELETE", f"manifests/{emptied.push_image('latest').digest}").expect(202)
    filled.push_image()

    listed = walk(registry.wire, f"/v2/_catalog?last={quote(prefix)}&n=100", "repositories")

    assert [name for name in listed if name.startswith(prefix)] == [filled.name]


def test_the_catalog_can_only_be_read(registry: RegistryProcess) -> None:
    """It follows from what is pushed; nobody edits it."""
    reply = registry.wire.request("DELETE", "/v2/_catalog")

    reply.expect_error(405, "UNSUPPORTED")
    assert "GET" in reply["Allow"].split(", "), str(reply)
