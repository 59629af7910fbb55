"""Run by Alembic: hands it the connection that `metadata.upgrade` has opened, and the tables to compare with."""

from alembic import context

from lading.metadata.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
