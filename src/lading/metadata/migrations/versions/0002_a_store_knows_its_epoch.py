"""A store knows its epoch, and whether removals are held."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; a store of before is in its first epoch, and nothing is held."""
    op.add_column("stores", sa.Column("epoch", sa.BigInteger, nullable=False, server_default=sa.text("1")))
    op.add_column("stores", sa.Column("held_us", sa.BigInteger))
    op.add_column("stores", sa.Column("held_reason", sa.Text))
