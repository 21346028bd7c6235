"""Alembic environment: runs the revisions on the one connection that `infra.postgres.migrate` hands over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import context

if TYPE_CHECKING:
    from sqlalchemy import Connection


def run() -> None:
    """Apply the pending revisions in the transaction of the given connection.

    Raises:
        RuntimeError: started by the alembic command line, which holds neither the lock nor the connection.

    """
    connection: Connection | None = context.config.attributes.get("connection")
    if connection is None:
        raise RuntimeError("no connection was handed over; run `python -m infra.postgres.migrate` instead of alembic")
    context.configure(connection=connection, transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


run()
