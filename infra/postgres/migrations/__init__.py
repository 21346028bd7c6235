"""Alembic environment and revisions; run through `infra.postgres.migrate`."""
