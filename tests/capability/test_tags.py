"""Listing tags: complete, in one order, in pages that fit together."""

import pytest

from tests.capability.content import random_content
from tests.capability.paging import next_target, walk
from tests.capability.repository import Repository, new_name
from tests.capability.server import StartRegistry
from tests.wire import Reply

MIXED = ["1.0", "1.0-alpine", "1.0.1", "A", "a", "_z", "B2", "b"]


def tagged(repository: Repository, tags: list[str]) -> Repository:
    image = repository.push_image()
    repository.set_tags(image.digest, image.manifest, tags)
    return repository


def list_tags(repository: Repository, query: str = "") -> Reply:
    return repository.request("GET", f"tags/list{query}")


def assert_page(reply: Reply, tags: list[str]) -> None:
    """Assert a page of exactly these tags."""
    reply.expect(200)
    assert reply["Content-Type"].partition(";")[0] == "application/json", str(reply)
    assert reply.json()["tags"] == tags, str(reply)


@pytest.mark.case(114)
def test_all_tags_come_in_bytewise_order_up_to_a_cap(start_registry: StartRegistry) -> None:
    """One order makes `last` well defined, and a cap bounds what one request costs; the rest is linked, never lost."""
    server = start_registry({"LADING_LISTS__MAX_PAGE_ENTRIES": "50"})
    few = tagged(Repository(server.wire, new_name()), MIXED)
    names = [f"v{number:03}" for number in range(120)]
    many = tagged(Repository(server.wire, new_name()), names)

    all_of_few, first_of_many, greedy = list_tags(few), list_tags(many), list_tags(many, "?n=100")

    assert_page(all_of_few, ["1.0", "1.0-alpine", "1.0.1", "A", "B2", "_z", "a", "b"])
    assert all_of_few.json()["name"] == few.name
    assert all_of_few.get("Link") is None, str(all_of_few)
    for reply in (first_of_many, greedy):
        assert_page(reply, names[:50])
        assert next_target(reply) is not None, str(reply)
    for start in ("", "?n=100", "?n=50", "?n=49"):
        assert walk(many.wire, many.url(f"tags/list{start}"), "tags") == names


@pytest.mark.case(115)
def test_a_page_of_none_is_empty(repository: Repository) -> None:
    """A client that asks for nothing gets nothing, and no link that leads nowhere."""
    tagged(repository, MIXED)

    reply = list_tags(repository, "?n=0")

    assert_page(reply, [])
    assert reply.get("Link") is None, str(reply)


@pytest.mark.case(116)
def test_pages_fit_together(repository: Repository) -> None:
    """Clients mirror by following links, and a tag that falls between two pages is never copied."""
    tagged(repository, ["a", "b", "c", "d", "e"])

    first = list_tags(repository, "?n=2")

    assert_page(first, ["a", "b"])
    assert first["Link"].startswith(f"<{repository.url('tags/list?')}"), str(first)
    assert first["Link"].endswith('>; rel="next"'), str(first)
    assert walk(repository.wire, repository.url("tags/list?n=2"), "tags") == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_keep_the_bytewise_order(repository: Repository, size: int) -> None:
    """Stores that sort by path put `1.0-alpine` before `1.0` and lose one of them between pages."""
    tagged(repository, MIXED)

    names = walk(repository.wire, repository.url(f"tags/list?n={size}"), "tags")

    assert names == sorted(MIXED, key=str.encode)


@pytest.mark.case(117)
@pytest.mark.parametrize("count", [5, 6])
def test_a_page_that_holds_all_has_no_link(repository: Repository, count: int) -> None:
    """A link means that there is more; an empty page after it has confused clients."""
    tagged(repository, ["a", "b", "c", "d", "e"])

    reply = list_tags(repository, f"?n={count}")

    assert_page(reply, ["a", "b", "c", "d", "e"])
    assert reply.get("Link") is None, str(reply)


@pytest.mark.case(118)
@pytest.mark.parametrize("count", ["-1", "abc", "1.5", "%2B1", "1_0", "%D9%A3", "0x10", "%201"])
def test_a_page_size_that_is_no_count_is_refused(repository: Repository, count: str) -> None:
    """Guessing a size would look like the end of the list."""
    tagged(repository, ["a"])

    reply = list_tags(repository, f"?n={count}")

    reply.expect_error(400, "PAGINATION_NUMBER_INVALID")


@pytest.mark.case(119)
@pytest.mark.parametrize("count", ["99999999999999999999", "9" * 300, "9" * 5000])
def test_a_huge_page_size_means_as_many_as_there_are(repository: Repository, count: str) -> None:
    """Scripts write some large number and mean all."""
    tagged(repository, MIXED)

    reply = list_tags(repository, f"?n={count}")

    assert_page(reply, sorted(MIXED, key=str.encode))


@pytest.mark.case(120)
def test_last_need_not_exist(repository: Repository) -> None:
    """It is a place in the order, and the tag there may have been deleted, or never been."""
    tagged(repository, ["a", "c", "e"])

    assert_page(list_tags(repository, "?last=b"), ["c", "e"])
    assert_page(list_tags(repository, "?last=0"), ["a", "c", "e"])
    assert_page(list_tags(repository, "?last=b&n=1"), ["c"])


@pytest.mark.case(121)
def test_nothing_follows_the_final_tag(repository: Repository) -> None:
    """`last` itself is never repeated, so the end is an empty list."""
    tagged(repository, ["a", "c"])

    for query in ("?last=c", "?last=z", "?last=c&n=5"):
        reply = list_tags(repository, query)
        assert_page(reply, [])
        assert reply.get("Link") is None, str(reply)


@pytest.mark.case(122)
def test_pages_go_on_over_a_deleted_tag(repository: Repository) -> None:
    """Cleaning up while another client lists must neither repeat nor skip what stays."""
    tagged(repository, ["a", "b", "c", "d", "e"])
    first = list_tags(repository, "?n=2")
    following = next_target(first)
    assert following is not None, str(first)

    for gone in ("b", "c"):
        repository.request("DELETE", f"manifests/{gone}").expect(202)

    assert walk(repository.wire, following, "tags") == ["d", "e"]


@pytest.mark.case(123)
def test_a_repository_without_tags_is_not_an_unknown_one(repository: Repository) -> None:
    """Clients loop over `tags`, so it is a list even when empty, and an error only where there is no repository."""
    with_manifest = Repository(repository.wire, new_name())
    with_manifest.push_image()
    with_blob = Repository(repository.wire, new_name())
    with_blob.push_blob(random_content())

    unknown = list_tags(repository)
    untagged = [list_tags(with_manifest), list_tags(with_blob)]

    unknown.expect_error(404, "NAME_UNKNOWN")
    for reply in untagged:
        assert_page(reply, [])
        assert b'"tags":[]' in reply.body.replace(b" ", b""), str(reply)
