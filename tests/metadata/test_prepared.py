"""Prepared statements do what SQLAlchemy does with the same statement."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lading.metadata import schema
from lading.metadata.database import Prepared, create_engine
from tests.metadata.statements import statements

SHA256, SHA512 = 1, 2
A, B, C, ABSENT = (letter * 32 for letter in (b"a", b"b", b"c", b"z"))
Values = Mapping[str, object]

# For each statement values with which it finds something, and, for a query, some with which it does not.
VALUES: Mapping[str, tuple[Values, ...]] = {
    "blobs._LINKED": (
        {"name": "team/app", "alg": SHA256, "digest": A},
        {"name": "team/app", "alg": SHA256, "digest": B},
        {"name": "team/app", "alg": SHA256, "digest": C},
        {"name": "team/app", "alg": SHA512, "digest": A},
        {"name": "absent", "alg": SHA256, "digest": A},
    ),
    "blobs._STORED": ({"alg": SHA256, "digest": A}, {"alg": SHA256, "digest": B}, {"alg": SHA256, "digest": ABSENT}),
    "blobs._PAYLOAD": ({"blob_id": 2}, {"blob_id": 1}),
    "blobs._HOLDERS": ({"alg": SHA256, "digest": A, "entries": 10}, {"alg": SHA256, "digest": C, "entries": 10}),
    "blobs._INSERT": ({"alg": SHA512, "digest": ABSENT, "size": 9, "created_us": 8},),
    "blobs._INSERT_PAYLOAD": ({"blob_id": 1, "data": b"\x00\xff"},),
    "blobs._INSERT_EXTENT": ({"blob_id": 2, "store_id": 1, "seq": 0, "object_key": "cc/new", "size": 5},),
    "blobs._DELETE_EXTENTS": ({"blob_id": 1}, {"blob_id": 2}),
    "blobs._LINK": (
        {"repo_id": 2, "blob_id": 2, "keep_until_us": 77},
        {"repo_id": 1, "blob_id": 3, "keep_until_us": 78},
    ),
    "blobs._IS_LINKED": ({"repo_id": 1, "blob_id": 1}, {"repo_id": 1, "blob_id": 3}, {"repo_id": 2, "blob_id": 1}),
    "blobs._LEASE": (
        {"at_repo": 1, "at_blob": 1, "until_us": 99},
        {"at_repo": 1, "at_blob": 3, "until_us": 99},
        {"at_repo": 2, "at_blob": 2, "until_us": 99},
    ),
    "blobs._HIDE": ({"at_repo": 1, "at_blob": 1, "at_us": 99}, {"at_repo": 9, "at_blob": 1, "at_us": 99}),
    "feed._APPEND": (
        {
            "at_us": 5,
            "kind": "tag.set",
            "repository": "team/app",
            "tag": "v1",
            "alg": SHA256,
            "digest": A,
            "actor": "ann",
            "renamed_from": None,
        },
        {
            "at_us": 5,
            "kind": "repository.created",
            "repository": "team/app",
            "tag": None,
            "alg": None,
            "digest": None,
            "actor": "ann",
            "renamed_from": None,
        },
    ),
    "collection._HISTORY_TO_TRIM": ({"before_us": 9, "entries": 5}, {"before_us": 1, "entries": 5}),
    "collection._DELETE_HISTORY": ({"at_id": 2}, {"at_id": 99}),
    "collection._DUE_MANIFESTS": ({"due_us": 100, "entries": 5}, {"due_us": 99, "entries": 5}),
    "collection._MANIFEST": ({"at_id": 1}, {"at_id": 2}, {"at_id": 3}, {"at_id": 99}),
    "collection._BLOBS_OF_MANIFEST": ({"at_id": 1}, {"at_id": 2}),
    "collection._CHILDREN_OF_MANIFEST": ({"at_id": 4}, {"at_id": 1}),
    "collection._DELETE_MANIFEST": ({"at_id": 3}, {"at_id": 99}),
    "collection._FORGET_MANIFEST": ({"at_id": 2}, {"at_id": 99}),
    "collection._POSTPONE_MANIFEST": ({"at_id": 2, "until_us": 500}, {"at_id": 99, "until_us": 500}),
    "collection._EMPTY_REPOSITORY": ({"at_id": 2}, {"at_id": 1}),
    "collection._DELETE_REPOSITORY": ({"at_id": 2}, {"at_id": 99}),
    "collection._DUE_BLOBS": ({"due_us": 100, "entries": 5}, {"due_us": 99, "entries": 5}),
    "collection._BLOB": ({"at_id": 1}, {"at_id": 3}, {"at_id": 99}),
    "collection._UNUSED_LINKS": (
        {"at_id": 1, "at_us": 13, "entries": 9},
        {"at_id": 1, "at_us": 12, "entries": 9},
        {"at_id": 3, "at_us": 12, "entries": 9},
        {"at_id": 1, "at_us": 13, "entries": 0},
    ),
    "collection._DELETE_LINK": ({"at_repo": 3, "at_blob": 1}, {"at_repo": 2, "at_blob": 1}),
    "collection._EXTENTS": ({"at_id": 1}, {"at_id": 2}),
    "collection._DELETE_EXTENTS": ({"at_id": 1}, {"at_id": 2}),
    "collection._DELETE_BLOB": ({"at_id": 3}, {"at_id": 99}),
    "collection._FORGET_BLOB": ({"at_id": 2}, {"at_id": 99}),
    "collection._POSTPONE_BLOB": ({"at_id": 2, "until_us": 500}, {"at_id": 99, "until_us": 500}),
    "collection._DUE_OBJECTS": (
        {"at_us": 6, "of_store": 1, "entries": 5},
        {"at_us": 5, "of_store": 1, "entries": 5},
        {"at_us": 6, "of_store": 2, "entries": 5},
    ),
    "collection._IS_NAMED": ({"of_store": 1, "at_key": "aa/a"}, {"of_store": 2, "at_key": "aa/a"}),
    "collection._IS_DOOMED": ({"of_store": 1, "at_key": "aa/old"}, {"of_store": 1, "at_key": "aa/a"}),
    "collection._POSTPONE_OBJECT": ({"at_id": 1, "until_us": 99}, {"at_id": 99, "until_us": 99}),
    "collection._FORGET_OBJECT": (
        {"at_id": 1, "at_key": "aa/old"},
        {"at_id": 1, "at_key": "aa/a"},
        {"at_id": 99, "at_key": "aa/old"},
    ),
    "backlog._UNQUEUED_MANIFESTS": (
        {"delete_untagged": 1, "after": 0, "entries": 9},
        {"delete_untagged": 0, "after": 0, "entries": 9},
        {"delete_untagged": 1, "after": 2, "entries": 1},
    ),
    "backlog._UNQUEUED_BLOBS": (
        {"after": 0, "at_us": 13, "entries": 9},
        {"after": 0, "at_us": 1, "entries": 9},
        {"after": 1, "at_us": 13, "entries": 1},
    ),
    "garbage._REVIEW_BLOB": (
        {"item": 1, "review_after_us": 50, "event": "linked"},
        {"item": 2, "review_after_us": 1, "event": "earlier"},
        {"item": 2, "review_after_us": 500, "event": "later"},
    ),
    "garbage._REVIEW_MANIFEST": (
        {"item": 1, "review_after_us": 50, "event": "untagged"},
        {"item": 2, "review_after_us": 1, "event": "earlier"},
        {"item": 2, "review_after_us": 500, "event": "later"},
    ),
    "garbage._DOOM": ({"store_id": 1, "object_key": "aa/old", "not_before_us": 6, "reason": "replaced"},),
    "manifests._BY_TAG": (
        {"name": "team/app", "tag": "v1"},
        {"name": "team/app", "tag": "V1"},
        {"name": "team/app", "tag": "absent"},
        {"name": "absent", "tag": "v1"},
    ),
    "manifests._BY_DIGEST": (
        {"name": "team/app", "alg": SHA256, "digest": A},
        {"name": "team/app", "alg": SHA256, "digest": C},
        {"name": "team/app", "alg": SHA256, "digest": ABSENT},
    ),
    "manifests._FIND": (
        {"repo_id": 1, "alg": SHA256, "digest": A},
        {"repo_id": 1, "alg": SHA256, "digest": C},
        {"repo_id": 2, "alg": SHA256, "digest": A},
    ),
    "manifests._INSERT": (
        {
            "repo_id": 1,
            "alg": SHA512,
            "digest": ABSENT,
            "media_type": "a/b",
            "artifact_type": None,
            "subject_alg": None,
            "subject_digest": None,
            "size": 2,
            "annotations": None,
            "created_us": 1,
            "payload": b"{}",
        },
    ),
    "manifests._REVIVE": ({"at_id": 3, "pushed_type": "c/d"},),
    "manifests._PAYLOAD": ({"at_id": 1}, {"at_id": 99}),
    "manifests._MEND": ({"at_id": 1, "pushed": b"{}", "pushed_bytes": 2},),
    "manifests._UNHIDE": ({"at_id": 3},),
    "manifests._HIDE": ({"at_id": 1, "at_us": 44},),
    "manifests._ADD_BLOB": ({"manifest_id": 1, "position": 7, "blob_id": 2, "repo_id": 1},),
    "manifests._AWAIT_BLOB": (
        {"manifest_id": 1, "position": 9, "awaited_alg": SHA256, "awaited_digest": ABSENT, "repo_id": 1},
        {"manifest_id": 1, "position": 0, "awaited_alg": SHA256, "awaited_digest": ABSENT, "repo_id": 1},
    ),
    "manifests._BLOB_CAME": (
        {"at_alg": SHA256, "at_digest": ABSENT, "at_repo": 1, "new_id": 2},
        {"at_alg": SHA256, "at_digest": ABSENT, "at_repo": 2, "new_id": 2},
    ),
    "manifests._ADD_CHILD": (
        {"parent_id": 1, "position": 7, "child_alg": SHA256, "child_digest": ABSENT, "child_id": None},
        {"parent_id": 1, "position": 8, "child_alg": SHA256, "child_digest": B, "child_id": 2},
    ),
    "manifests._ADOPT": (
        {"at_alg": SHA256, "at_digest": ABSENT, "at_repo": 1, "new_id": 2},
        {"at_alg": SHA256, "at_digest": ABSENT, "at_repo": 2, "new_id": 2},
    ),
    "manifests._HOLDING_BLOB": (
        {"blob_id": 1, "repo_id": 1, "entries": 20},
        {"blob_id": 1, "repo_id": 2, "entries": 20},
    ),
    "manifests._REFERRERS": (
        {"repo_id": 1, "alg": SHA256, "digest": A, "after": 0, "entries": 100},
        {"repo_id": 1, "alg": SHA256, "digest": A, "after": 2, "entries": 100},
        {"repo_id": 2, "alg": SHA256, "digest": A, "after": 0, "entries": 100},
    ),
    "pulls._ADD": (
        {"at_id": 1, "count": 3, "at_us": 50},
        {"at_id": 2, "count": 3, "at_us": 99},
        {"at_id": 2, "count": 3, "at_us": 101},
        {"at_id": 9, "count": 3, "at_us": 50},
    ),
    "repositories._FIND": ({"name": "team/app"}, {"name": "Team/app"}),
    "repositories._CREATE": ({"name": "new", "manifest_count": 0, "created_us": 3},),
    "repositories._COUNT": ({"repo_id": 1, "change": 1}, {"repo_id": 1, "change": -1}),
    "repositories._CATALOG": ({"last": "", "entries": 10}, {"last": "team/app", "entries": 10}),
    "tags._GET": ({"repo_id": 1, "name": "v1"}, {"repo_id": 2, "name": "v1"}),
    "tags._SET": (
        {"repo_id": 1, "name": "v1", "manifest_id": 2},
        {"repo_id": 1, "name": "new", "manifest_id": 2},
    ),
    "tags._DELETE": ({"repo_id": 1, "name": "v1"}, {"repo_id": 1, "name": "absent"}),
    "tags._OF_MANIFEST": ({"manifest_id": 1}, {"manifest_id": 3}),
    "tags._PAGE": (
        {"repo_id": 1, "last": "", "entries": 10},
        {"repo_id": 1, "last": "v1", "entries": 1},
        {"repo_id": 1, "last": "", "entries": 0},
    ),
    "tags._OPEN": ({"repo_id": 1, "name": "new", "manifest_id": 1, "from_us": 2, "actor": "ann"},),
    "tags._CLOSE": ({"at_repo": 1, "at_name": "v1", "at_us": 66}, {"at_repo": 1, "at_name": "absent", "at_us": 66}),
    "uploads._START": (
        {"id": "u3", "repository": "team/app", "alg": SHA512, "actor": "ann", "started_us": 1, "expires_us": 2},
    ),
    "uploads._FIND": (
        {"upload_id": "u1", "of_repository": "team/app", "for_actor": "ann", "at_us": 5},
        {"upload_id": "u2", "of_repository": "team/app", "for_actor": "ann", "at_us": 5},
        {"upload_id": "u1", "of_repository": "team/app", "for_actor": "bob", "at_us": 5},
        {"upload_id": "u2", "of_repository": "team/app", "for_actor": "bob", "at_us": 5},
        {"upload_id": "u1", "of_repository": "team/app", "for_actor": "ann", "at_us": 5000},
        {"upload_id": "u1", "of_repository": "other", "for_actor": "ann", "at_us": 5},
    ),
    "uploads._ADVANCE": (
        {"upload_id": "u1", "new_offset": 7, "new_digest": B, "this_boot": "now"},
        {"upload_id": "u1", "new_offset": None, "new_digest": None, "this_boot": None},
        {"upload_id": "absent", "new_offset": 7, "new_digest": B, "this_boot": "now"},
    ),
    "uploads._FINISH": ({"upload_id": "u1"}, {"upload_id": "absent"}),
    "uploads._EXPIRED": ({"at_us": 3000, "entries": 10}, {"at_us": 1, "entries": 10}),
    "uploads._COUNT": ({},),
    "uploads._COUNT_OF": ({"of_actor": "ann"}, {"of_actor": "bob"}),
    "uploads._EXISTS": ({"upload_id": "u1"}, {"upload_id": "absent"}),
}


def rows() -> Iterator[tuple[sa.Table, list[dict[str, Any]]]]:
    """Yield rows of each table such that every statement has something to find and something to pass over."""
    manifest = {
        "repo_id": 1,
        "alg": SHA256,
        "media_type": "a/b",
        "artifact_type": "t/u",
        "size": 2,
        "created_us": 1,
        "deleted_us": None,
        "subject_alg": None,
        "subject_digest": None,
        "annotations": None,
    }
    yield (
        schema.repositories,
        [
            {"id": 1, "name": "team/app", "manifest_count": 3, "created_us": 1},
            {"id": 2, "name": "empty", "manifest_count": 0, "created_us": 2},
            {"id": 3, "name": "z\u00e9", "manifest_count": 1, "created_us": 3},
        ],
    )
    yield schema.stores, [{"id": 1, "kind": "disk", "store_uid": "s", "database_uid": "d", "created_us": 1}]
    yield (
        schema.blobs,
        [
            {"id": number, "alg": SHA256, "digest": digest, "size": number, "created_us": 1}
            for number, digest in enumerate((A, B, C), 1)
        ],
    )
    yield (
        schema.blob_extents,
        [{"blob_id": 1, "store_id": 1, "seq": 0, "object_key": "aa/a", "size": 1}],
    )
    yield schema.blob_payloads, [{"blob_id": 2, "data": b"\x00\x01"}]
    yield (
        schema.repo_blobs,
        [
            {"repo_id": 1, "blob_id": 1, "keep_until_us": 10, "hidden_us": None},
            {"repo_id": 1, "blob_id": 2, "keep_until_us": 11, "hidden_us": None},
            {"repo_id": 1, "blob_id": 3, "keep_until_us": 12, "hidden_us": 5},
            {"repo_id": 3, "blob_id": 1, "keep_until_us": 13, "hidden_us": None},
        ],
    )
    subject = {"subject_alg": SHA256, "subject_digest": A}
    yield (
        schema.manifests,
        [
            {**manifest, "id": 1, "digest": A, "payload": b"\x00{}"},
            {**manifest, **subject, "id": 2, "digest": B, "annotations": '{"k":"\u00e9"}', "payload": b"{}"},
            {**manifest, **subject, "id": 3, "digest": C, "deleted_us": 4, "payload": b"{}"},
            {**manifest, **subject, "id": 4, "digest": ABSENT[:31] + b"4", "artifact_type": None, "payload": b"{}"},
        ],
    )
    yield (
        schema.manifest_blobs,
        [{"manifest_id": 1, "position": n, "blob_id": n + 1, "repo_id": 1} for n in range(2)],
    )
    yield (
        schema.manifest_children,
        [
            {"parent_id": 1, "position": 0, "child_alg": SHA256, "child_digest": ABSENT, "child_id": None},
            {"parent_id": 4, "position": 0, "child_alg": SHA256, "child_digest": A, "child_id": 1},
        ],
    )
    yield schema.tags, [{"repo_id": 1, "name": name, "manifest_id": 1} for name in ("v1", "V1", "v2")]
    yield (
        schema.tag_history,
        [
            {"id": 1, "repo_id": 1, "name": "v1", "manifest_id": 1, "from_us": 1, "to_us": None, "actor": "ann"},
            {"id": 2, "repo_id": 1, "name": "old", "manifest_id": 2, "from_us": 1, "to_us": 9, "actor": "ann"},
        ],
    )
    yield (
        schema.doomed_objects,
        [{"id": 1, "store_id": 1, "object_key": "aa/old", "not_before_us": 6, "reason": "replaced"}],
    )
    yield schema.manifest_pulls, [{"manifest_id": 2, "pulls": 5, "last_us": 100}]
    yield schema.gc_blob_queue, [{"blob_id": 2, "review_after_us": 100, "event": "linked"}]
    yield schema.gc_manifest_queue, [{"manifest_id": 2, "review_after_us": 100, "event": "untagged"}]
    session = {"repository": "team/app", "alg": SHA256, "started_us": 1}
    yield (
        schema.uploads,
        [
            {
                **session,
                "id": "u1",
                "actor": "ann",
                "expires_us": 1000,
                "digest_offset": 3,
                "digest": A,
                "boot_id": "now",
            },
            {
                **session,
                "id": "u2",
                "actor": "anonymous",
                "expires_us": 2000,
                "digest_offset": None,
                "digest": None,
                "boot_id": None,
            },
        ],
    )


@pytest.fixture
def connection(path: Path) -> Iterator[sa.Connection]:
    """Open a small database in which every table has rows."""
    with create_engine(path).connect() as connection:
        connection.exec_driver_sql("BEGIN")
        for table, values in rows():
            connection.execute(sa.insert(table), values)
        connection.exec_driver_sql("COMMIT")
        yield connection


def content(connection: sa.Connection) -> Mapping[str, list[Any]]:
    """Return all rows of all tables."""
    return {
        name: list(connection.execute(sa.select(table).order_by(*table.primary_key)))
        for name, table in schema.metadata.tables.items()
    }


def makes_ids(prepared: Prepared) -> bool:
    """Tell whether the statement inserts rows that the database numbers."""
    if not isinstance(prepared.statement, sa.Insert):
        return False
    key = list(prepared.statement.table.primary_key)
    return len(key) == 1 and key[0].name in {"id", "seq"} and isinstance(key[0].type, sa.BigInteger)


def test_every_prepared_statement_has_values_to_be_tried_with() -> None:
    """A hot statement that nobody compares skips SQLAlchemy's processors on trust."""
    assert sorted(VALUES) == sorted(statements())


@pytest.mark.parametrize(("name", "prepared"), [(name, p) for name, p in statements().items() if p.statement.is_select])
def test_a_prepared_query_returns_what_core_returns(connection: sa.Connection, name: str, prepared: Prepared) -> None:
    """It runs on the driver's own cursor, where nothing converts what goes in or comes out."""
    for number, values in enumerate(VALUES[name]):
        by_core = [tuple(row) for row in connection.execute(prepared.statement, values)]

        assert prepared.all(connection, **values) == by_core
        assert prepared.one(connection, **values) == (by_core[0] if by_core else None)
        assert [list(map(type, row)) for row in prepared.all(connection, **values)] == [
            list(map(type, row)) for row in by_core
        ]
        assert by_core or number, "the first values must find something, or nothing is compared"


@pytest.mark.parametrize(
    ("name", "prepared"), [(name, p) for name, p in statements().items() if not p.statement.is_select]
)
def test_a_prepared_change_does_what_core_does(connection: sa.Connection, name: str, prepared: Prepared) -> None:
    """The same statement on the same rows leaves the same database, and tells the same number of rows."""
    before = content(connection)
    for values in VALUES[name]:
        outcomes = []
        for way in ("core", "prepared"):
            connection.exec_driver_sql("BEGIN")
            count = (
                connection.execute(prepared.statement, values).rowcount
                if way == "core"
                else prepared.run(connection, **values)
            )
            outcomes.append((count, content(connection)))
            connection.exec_driver_sql("ROLLBACK")

        assert outcomes[0] == outcomes[1]
        assert (outcomes[0][1] != before) == (outcomes[0][0] > 0)
    assert content(connection) == before


@pytest.mark.parametrize(("name", "prepared"), [(name, p) for name, p in statements().items() if makes_ids(p)])
def test_a_prepared_insert_returns_the_id_that_core_returns(
    connection: sa.Connection, name: str, prepared: Prepared
) -> None:
    """References to the new row are written with it."""
    for values in VALUES[name]:
        connection.exec_driver_sql("BEGIN")
        by_core = connection.execute(prepared.statement, values).inserted_primary_key
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("BEGIN")
        assert by_core is not None
        assert (prepared.insert(connection, **values),) == tuple(by_core)
        connection.exec_driver_sql("ROLLBACK")


def test_a_statement_that_needs_processors_cannot_be_prepared() -> None:
    """Its values would arrive at the driver, or at us, unconverted."""
    table = sa.Table("t", sa.MetaData(), sa.Column("at", sa.DateTime), sa.Column("flag", sa.Boolean))

    with pytest.raises(TypeError, match="needs processors"):
        Prepared(sa.select(table.c.at))
    with pytest.raises(TypeError, match="needs processors"):
        Prepared(sa.insert(table).values(at=sa.bindparam("at")))


def test_a_missing_value_is_an_error_of_ours(connection: sa.Connection) -> None:
    """Bound as NULL it would quietly find nothing."""
    with pytest.raises(KeyError, match="last"):
        statements()["tags._PAGE"].all(connection, repo_id=1, entries=10)
