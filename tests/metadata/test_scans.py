"""Queries cost what their page costs, however much lies around it: by the plan, and counted in steps of the machine."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lading.metadata import blobs, manifests, repositories, tags
from lading.metadata.database import Prepared, create_engine
from lading.oci.digest import Algorithm, Digest
from tests.metadata.statements import statements

FEW, MANY = 1_000, 100_000
PAGE = 50
QUERIES = {name: prepared for name, prepared in statements().items() if isinstance(prepared.statement, sa.Select)}
CHANGES = {name: prepared for name, prepared in statements().items() if name not in QUERIES}
# These sort, or drop duplicates of, no more than one blob's or one manifest's own rows.
SORTS_A_HANDFUL = {"manifests._HOLDING_BLOB"}
# These look for a few examples, whichever they are.
ANY_WILL_DO = {"manifests._HOLDING_BLOB", "blobs._HOLDERS"}
# SQLite adds up the entries of an index's pages without looking at one: ten microseconds for ten thousand.
COUNTS_PAGES = {"uploads._COUNT"}
SUBJECT = Digest.of(b"subject")

Question = Callable[[sa.Connection], object]
# Each asks from the middle, so that a walk from the beginning would be seen.
QUESTIONS: dict[str, tuple[int, Question]] = {
    "a page of tags": (PAGE, lambda tx: tags.page(tx, 1, last="tag-000500", entries=PAGE)),
    "a page of referrers": (PAGE, lambda tx: manifests.referrers(tx, 1, SUBJECT, after=500, entries=PAGE)),
    "a page of the catalog": (PAGE, lambda tx: repositories.catalog(tx, last="repo-000500", entries=PAGE)),
    "a manifest by its tag": (1, lambda tx: one(manifests.by_tag(tx, "repo-000001", "tag-000500"))),
    "a manifest by its digest": (1, lambda tx: one(manifests.by_digest(tx, "repo-000001", digest_of(500)))),
    "a blob": (1, lambda tx: one(blobs.find(tx, "repo-000001", digest_of(500)))),
    "a stored blob": (1, lambda tx: one(blobs.stored(tx, digest_of(500)))),
    "a repository": (1, lambda tx: one(repositories.find(tx, "repo-000500"))),
}


PAGES: dict[str, Callable[[list[Any]], bool]] = {
    "a page of tags": lambda page: page == [f"tag-{number:06}" for number in range(501, 501 + PAGE)],
    "a page of referrers": lambda page: [entry.cursor for entry in page] == list(range(501, 501 + PAGE)),
    "a page of the catalog": lambda page: page == [f"repo-{number:06}" for number in range(501, 501 + 2 * PAGE, 2)],
}


def one(found: object) -> list[object]:
    return [] if found is None else [found]


def digest_of(number: int) -> Digest:
    return Digest(Algorithm.SHA256, f"{number:032}".encode())


def plan(connection: sa.Connection, prepared: Prepared) -> list[str]:
    """Return the steps by which SQLite would run the statement."""
    parameters = tuple(None for _ in range(prepared.text.count("?")))
    return [str(row[3]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {prepared.text}", parameters)]


def fill(connection: sa.Connection, rows: int) -> None:
    """Make so many repositories, and in the first one as many manifests, tags, blobs and referrers of one subject."""
    digest = "CAST(printf('%032d', i) AS BLOB)"
    connection.exec_driver_sql("PRAGMA synchronous=OFF")
    connection.exec_driver_sql("BEGIN")
    connection.exec_driver_sql("INSERT INTO stores VALUES (1, 'disk', 's', 'd', 1, 1, NULL, NULL)")
    for table, columns, values in (
        ("repositories", "id, name, manifest_count, created_us", "i, printf('repo-%06d', i), i % 2, 1"),
        ("blobs", "id, alg, digest, size, created_us", f"i, 1, {digest}, 1, 1"),
        ("blob_extents", "blob_id, store_id, seq, object_key, size", "i, 1, 0, printf('key-%d', i), 1"),
        ("repo_blobs", "repo_id, blob_id, keep_until_us", "1, i, 1"),
        (
            "manifests",
            "id, repo_id, alg, digest, media_type, subject_alg, subject_digest, size, created_us, payload",
            f"i, 1, 1, {digest}, 'a/b', 1, :subject, 2, 1, x'7b7d'",
        ),
        ("tags", "repo_id, name, manifest_id", "1, printf('tag-%06d', i), i"),
    ):
        connection.execute(
            sa.text(
                f"INSERT INTO {table} ({columns}) WITH RECURSIVE numbers(i) AS"
                f" (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < {rows}) SELECT {values} FROM numbers"
            ),
            {"subject": SUBJECT.raw} if ":subject" in values else {},
        )
    connection.exec_driver_sql("COMMIT")


@pytest.fixture
def connection(path: Path) -> Iterator[sa.Connection]:
    """Open a database without a row."""
    with create_engine(path).connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory, migrated: bytes) -> Iterator[tuple[sa.Connection, sa.Connection]]:
    """Open two databases, a small and a big one."""
    folder = tmp_path_factory.mktemp("sizes")
    opened = []
    for rows in (FEW, MANY):
        path = folder / f"{rows}.db"
        path.write_bytes(migrated)
        connection = create_engine(path).connect()
        fill(connection, rows)
        opened.append(connection)
    small, big = opened
    yield small, big
    small.close()
    big.close()


def steps(connection: sa.Connection, question: Question, results: int) -> int:
    """Return how many instructions SQLite's machine runs for the question, which must find so many results."""
    raw: Any = connection.connection.dbapi_connection
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    raw.set_progress_handler(count, 1)
    try:
        found = question(connection)
    finally:
        raw.set_progress_handler(None, 1)

    assert isinstance(found, list)
    assert len(found) == results
    return counted


@pytest.mark.parametrize("name", sorted(QUERIES.keys() - COUNTS_PAGES))
def test_a_query_goes_by_an_index_and_in_its_order(connection: sa.Connection, name: str) -> None:
    """A scan or a sort reads all there is for a page of a hundred, on the loop that all others wait for."""
    found = plan(connection, QUERIES[name])

    assert found
    assert not [step for step in found if re.search(r"\bSCAN\b", step)], found
    if name not in SORTS_A_HANDFUL:
        assert not [step for step in found if "TEMP B-TREE" in step], found


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_finds_its_rows_by_an_index(connection: sa.Connection, name: str) -> None:
    """The writer is one for all; what it scans for one, everybody waits for."""
    found = plan(connection, CHANGES[name])

    assert not [step for step in found if re.search(r"\bSCAN\b", step)], found


def test_counting_sessions_counts_pages(connection: sa.Connection) -> None:
    """Each start of an upload counts them, in the one transaction that all writers wait for."""
    text = f"EXPLAIN {QUERIES['uploads._COUNT'].text}"

    operations = [row[1] for row in connection.exec_driver_sql(text)]

    assert "Count" in operations
    assert "Next" not in operations


def test_the_catalog_walks_only_repositories_that_have_something(connection: sa.Connection) -> None:
    """A thousand emptied repositories before the first full one would be read for every page."""
    (step,) = plan(connection, QUERIES["repositories._CATALOG"])

    assert "ix_repositories_catalog" in step


def test_referrers_walk_only_the_subjects_own(connection: sa.Connection) -> None:
    """All columns up to the id have to be found by the index, or the page is sorted."""
    (step,) = plan(connection, QUERIES["manifests._REFERRERS"])

    assert "ix_manifests_referrers (repo_id=? AND subject_alg=? AND subject_digest=? AND id>?)" in step


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_in_order_because_it_asks_for_it(sizes: tuple[sa.Connection, sa.Connection], name: str) -> None:
    """An index gives its order by chance; SQLite can be asked to turn round whatever nobody ordered."""
    small, _ = sizes
    (results, question), in_order = QUESTIONS[name], PAGES[name]

    small.exec_driver_sql("PRAGMA reverse_unordered_selects=ON")
    try:
        page = question(small)
    finally:
        small.exec_driver_sql("PRAGMA reverse_unordered_selects=OFF")

    assert isinstance(page, list)
    assert len(page) == results
    assert in_order(page)


@pytest.mark.parametrize("name", [name for name, prepared in QUERIES.items() if "LIMIT" in prepared.text])
def test_a_query_that_stops_early_says_where(name: str) -> None:
    """Without an order, the next page may repeat or miss what this one had."""
    assert "ORDER BY" in QUERIES[name].text or name in ANY_WILL_DO


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_costs_the_same_among_a_hundred_times_the_rows(
    sizes: tuple[sa.Connection, sa.Connection], name: str
) -> None:
    """The plan is what SQLite means to do; the steps are what it did."""
    results, question = QUESTIONS[name]
    small, big = sizes

    few, many = steps(small, question, results), steps(big, question, results)

    assert few > 0
    assert abs(many - few) <= 0.2 * few
