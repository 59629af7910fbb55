"""The tables. The migrations make them; a test compares what they made with this page.

Digests are kept as (algorithm number, raw bytes), times as microseconds UTC, names in bytewise order.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

__all__ = ["insert"]

REVISION = "0003"
"""The newest migration: what a database must be at before a worker opens it."""


class Octets(sa.LargeBinary):
    """Bytes as the driver takes and gives them, so that hot statements may skip SQLAlchemy's processors."""

    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> None:
        """Need none."""

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        """Need none."""


_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


def _references(column: str, *, ondelete: str) -> sa.ForeignKey:
    return sa.ForeignKey(column, ondelete=ondelete)


repositories = sa.Table(
    "repositories",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    # The live manifests, counted: the catalog lists repositories that have one, by a range scan of a partial index.
    sa.Column("manifest_count", sa.BigInteger, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    # A deleted repository keeps its row while its content can be brought back; a push to the name revives it, empty.
    sa.Column("deleted_us", sa.BigInteger),
)
sa.Index("ix_repositories_catalog", repositories.c.name, sqlite_where=repositories.c.manifest_count > 0)

manifests = sa.Table(
    "manifests",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("repo_id", _Id, _references("repositories.id", ondelete="RESTRICT"), nullable=False),
    sa.Column("alg", sa.SmallInteger, nullable=False),
    sa.Column("digest", Octets, nullable=False),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("artifact_type", sa.Text),
    sa.Column("subject_alg", sa.SmallInteger),
    sa.Column("subject_digest", Octets),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("annotations", sa.Text),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("deleted_us", sa.BigInteger),
    # Last, so that reading the other columns of a big manifest does not walk its overflow pages.
    sa.Column("payload", Octets, nullable=False),
    sa.UniqueConstraint("repo_id", "alg", "digest"),
)
# No foreign key: a subject may come later, or never (distribution-spec "Pushing Manifests with Subject").
sa.Index(
    "ix_manifests_referrers",
    manifests.c.repo_id,
    manifests.c.subject_alg,
    manifests.c.subject_digest,
    manifests.c.id,
    sqlite_where=sa.and_(manifests.c.subject_digest.is_not(None), manifests.c.deleted_us.is_(None)),
)

manifest_blobs = sa.Table(
    "manifest_blobs",
    metadata,
    sa.Column("manifest_id", _Id, _references("manifests.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    # Null while a blob that may be absent is: then the digest says what is awaited.
    sa.Column("blob_id", _Id, _references("blobs.id", ondelete="RESTRICT")),
    sa.Column("awaited_alg", sa.SmallInteger),
    sa.Column("awaited_digest", Octets),
    # The manifest's repository once more: whether a repository still needs a blob is one look into the index.
    sa.Column("repo_id", _Id, nullable=False, server_default=sa.text("0")),
    sqlite_with_rowid=False,
)
sa.Index("ix_manifest_blobs_blob_id_repo_id", manifest_blobs.c.blob_id, manifest_blobs.c.repo_id)
sa.Index(
    "ix_manifest_blobs_awaited",
    manifest_blobs.c.awaited_alg,
    manifest_blobs.c.awaited_digest,
    sqlite_where=manifest_blobs.c.blob_id.is_(None),
)

manifest_children = sa.Table(
    "manifest_children",
    metadata,
    sa.Column("parent_id", _Id, _references("manifests.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("child_alg", sa.SmallInteger, nullable=False),
    sa.Column("child_digest", Octets, nullable=False),
    # Null in a sparse index, until the child is pushed.
    sa.Column("child_id", _Id, _references("manifests.id", ondelete="RESTRICT")),
    sqlite_with_rowid=False,
)
sa.Index("ix_manifest_children_child_id", manifest_children.c.child_id)
sa.Index(
    "ix_manifest_children_awaited",
    manifest_children.c.child_alg,
    manifest_children.c.child_digest,
    sqlite_where=manifest_children.c.child_id.is_(None),
)

tags = sa.Table(
    "tags",
    metadata,
    sa.Column("repo_id", _Id, _references("repositories.id", ondelete="RESTRICT"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("manifest_id", _Id, _references("manifests.id", ondelete="RESTRICT"), nullable=False),
    sqlite_with_rowid=False,
)
sa.Index("ix_tags_manifest_id", tags.c.manifest_id)

tag_history = sa.Table(
    "tag_history",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("repo_id", _Id, _references("repositories.id", ondelete="RESTRICT"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("manifest_id", _Id, _references("manifests.id", ondelete="RESTRICT"), nullable=False),
    sa.Column("from_us", sa.BigInteger, nullable=False),
    sa.Column("to_us", sa.BigInteger),
    sa.Column("actor", sa.Text, nullable=False),
)
sa.Index(
    "ux_tag_history_open",
    tag_history.c.repo_id,
    tag_history.c.name,
    unique=True,
    sqlite_where=tag_history.c.to_us.is_(None),
)
sa.Index("ix_tag_history_repo_id_name", tag_history.c.repo_id, tag_history.c.name)
sa.Index("ix_tag_history_manifest_id", tag_history.c.manifest_id)
sa.Index("ix_tag_history_to_us", tag_history.c.to_us, sqlite_where=tag_history.c.to_us.is_not(None))

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("alg", sa.SmallInteger, nullable=False),
    sa.Column("digest", Octets, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("alg", "digest"),
    # An id must never come back: queues and caches may outlive the row.
    sqlite_autoincrement=True,
)

blob_payloads = sa.Table(
    "blob_payloads",
    metadata,
    sa.Column("blob_id", _Id, _references("blobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("data", Octets, nullable=False),
)

stores = sa.Table(
    "stores",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("store_uid", sa.Text, nullable=False, unique=True),
    sa.Column("database_uid", sa.Text, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    # Counts the times that another state of the database took over the store; the store's marker knows the newest.
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    # Since when, and why, nothing is removed from the store: it may hold what this database does not know.
    sa.Column("held_us", sa.BigInteger),
    sa.Column("held_reason", sa.Text),
)

blob_extents = sa.Table(
    "blob_extents",
    metadata,
    sa.Column("blob_id", _Id, _references("blobs.id", ondelete="RESTRICT"), primary_key=True),
    sa.Column("store_id", _Id, _references("stores.id", ondelete="RESTRICT"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("object_key", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("store_id", "object_key"),
    sqlite_with_rowid=False,
)

repo_blobs = sa.Table(
    "repo_blobs",
    metadata,
    sa.Column("repo_id", _Id, _references("repositories.id", ondelete="RESTRICT"), primary_key=True),
    sa.Column("blob_id", _Id, _references("blobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("keep_until_us", sa.BigInteger, nullable=False),
    sa.Column("hidden_us", sa.BigInteger),
    sqlite_with_rowid=False,
)
sa.Index("ix_repo_blobs_blob_id", repo_blobs.c.blob_id)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    # The name, not an id: a repository comes into being with its first content, not with a session.
    sa.Column("repository", sa.Text, nullable=False),
    sa.Column("alg", sa.SmallInteger, nullable=False),
    # The digest of the first `digest_offset` bytes; believed only in the boot that wrote it.
    sa.Column("digest_offset", sa.BigInteger),
    sa.Column("digest", Octets),
    sa.Column("boot_id", sa.Text),
    sa.Column("actor", sa.Text, nullable=False, server_default=sa.text("'anonymous'")),
    sa.Column("started_us", sa.BigInteger, nullable=False),
    sa.Column("expires_us", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
sa.Index("ix_uploads_expires_us", uploads.c.expires_us)
sa.Index("ix_uploads_actor", uploads.c.actor)

doomed_objects = sa.Table(
    "doomed_objects",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("store_id", _Id, _references("stores.id", ondelete="RESTRICT"), nullable=False),
    sa.Column("object_key", sa.Text, nullable=False),
    sa.Column("not_before_us", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
sa.Index("ix_doomed_objects_not_before_us", doomed_objects.c.not_before_us)
sa.Index("ix_doomed_objects_object_key", doomed_objects.c.object_key)

gc_blob_queue = sa.Table(
    "gc_blob_queue",
    metadata,
    sa.Column("blob_id", _Id, _references("blobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("review_after_us", sa.BigInteger, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
)
sa.Index("ix_gc_blob_queue_review_after_us", gc_blob_queue.c.review_after_us)

gc_manifest_queue = sa.Table(
    "gc_manifest_queue",
    metadata,
    sa.Column("manifest_id", _Id, _references("manifests.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("review_after_us", sa.BigInteger, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
)
sa.Index("ix_gc_manifest_queue_review_after_us", gc_manifest_queue.c.review_after_us)

passes = sa.Table(
    "passes",
    metadata,
    # A job that goes through everything in small pieces, and over the years again and again.
    sa.Column("name", sa.Text, primary_key=True),
    # How far it is: an id, or a moment.
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("started_us", sa.BigInteger, nullable=False),
    # When it last came to the end.
    sa.Column("finished_us", sa.BigInteger),
    sqlite_with_rowid=False,
)

manifest_pulls = sa.Table(
    "manifest_pulls",
    metadata,
    sa.Column("manifest_id", _Id, _references("manifests.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("pulls", sa.BigInteger, nullable=False),
    sa.Column("last_us", sa.BigInteger, nullable=False),
)

feed = sa.Table(
    "feed",
    metadata,
    sa.Column("seq", _Id, primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("repository", sa.Text, nullable=False),
    sa.Column("tag", sa.Text),
    sa.Column("alg", sa.SmallInteger),
    sa.Column("digest", Octets),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("renamed_from", sa.Text),
    # Gapless in one transaction at a time, and never reused after the oldest rows are dropped.
    sqlite_autoincrement=True,
)
