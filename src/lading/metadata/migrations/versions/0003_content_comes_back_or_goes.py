"""Content that is dead is found by an index, and content that was deleted can be brought back."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add columns, indexes and tables; what is stored stays as it is."""
    op.add_column("repositories", sa.Column("deleted_us", sa.BigInteger))
    op.add_column("uploads", sa.Column("actor", sa.Text, nullable=False, server_default=sa.text("'anonymous'")))
    op.create_index("ix_uploads_actor", "uploads", ["actor"])
    op.add_column("feed", sa.Column("renamed_from", sa.Text))
    _tell_references_their_repository()
    op.create_index("ix_tag_history_repo_id_name", "tag_history", ["repo_id", "name"])
    op.create_index("ix_tag_history_manifest_id", "tag_history", ["manifest_id"])
    op.create_index("ix_tag_history_to_us", "tag_history", ["to_us"], sqlite_where=sa.text("to_us IS NOT NULL"))
    op.create_index("ix_doomed_objects_not_before_us", "doomed_objects", ["not_before_us"])
    op.create_index("ix_doomed_objects_object_key", "doomed_objects", ["object_key"])
    op.create_index("ix_gc_blob_queue_review_after_us", "gc_blob_queue", ["review_after_us"])
    op.create_index("ix_gc_manifest_queue_review_after_us", "gc_manifest_queue", ["review_after_us"])
    op.create_table(
        "passes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=False),
        sa.Column("finished_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_passes")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "manifest_pulls",
        sa.Column("manifest_id", _Id, nullable=False),
        sa.Column("pulls", sa.BigInteger(), nullable=False),
        sa.Column("last_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["manifest_id"], ["manifests.id"], name=op.f("fk_manifest_pulls_manifest_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("manifest_id", name=op.f("pk_manifest_pulls")),
    )


def _tell_references_their_repository() -> None:
    op.add_column("manifest_blobs", sa.Column("repo_id", _Id, nullable=False, server_default=sa.text("0")))
    op.execute(
        "UPDATE manifest_blobs SET repo_id = (SELECT repo_id FROM manifests WHERE id = manifest_blobs.manifest_id)"
    )
    op.drop_index("ix_manifest_blobs_blob_id", "manifest_blobs")
    op.create_index("ix_manifest_blobs_blob_id_repo_id", "manifest_blobs", ["blob_id", "repo_id"])
