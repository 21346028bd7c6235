"""Who may do what in the database, as data: one login role a service, with the least that its statements need.

    python -m infra.postgres.roles      DATABASE_URL of the owner, REMIT_<APPROVAL|EXECUTOR|AUDIT|DASHBOARD>_DB_PASSWORD

The ledger is insert-only for everybody. The executor passes the claim without any right on stop rows: `control.claim` runs
with its owner's rights, because a row lock alone would need the right to update, and so to lift, a kill switch.
Source: design, bus section 8 (tamper evidence); README section 3.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url

from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCRAM_ITERATIONS = 4_096
"""PostgreSQL's own default (`scram_iterations`); the passwords are random, so more would only slow every connection."""
ATTEMPTS = 5
"""Roles belong to the whole cluster: two databases prepared at once meet in the same catalogue rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One login: table or view to privileges, functions it may call, session settings."""

    tables: Mapping[str, str]
    functions: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    settings: Mapping[str, str] | None = None


APPEND = "SELECT, INSERT"
KEEP = "SELECT, INSERT, UPDATE"
FULL = "SELECT, INSERT, UPDATE, DELETE"

ROLES: dict[str, Role] = {
    "remit_approval": Role(
        tables={
            "control.stop": KEEP,
            "control.remit": KEEP,
            "control.budget": KEEP,
            "control.execution": KEEP,
            "control.outbox": FULL,
            "control.pending": FULL,
            "control.block": FULL,
            "control.heartbeat": "SELECT",
        },
        sequences=("control.outbox_id_seq",),
    ),
    "remit_executor": Role(
        tables={
            "control.stop": "SELECT",
            "control.remit": "SELECT",
            "control.budget": "SELECT",
            "control.execution": KEEP,
            "control.outbox": FULL,
            "control.heartbeat": "SELECT",
        },
        functions=("claim", "take_over"),
        sequences=("control.outbox_id_seq",),
    ),
    "remit_audit": Role(
        tables={
            "audit.audit_event": APPEND,
            "audit.checkpoint": APPEND,
            "audit.rejected": APPEND,
            "audit.advisory": APPEND,
            "audit.progress": "SELECT, UPDATE",
            "audit.actions_all": KEEP,
            "audit.actions": "SELECT",
            "audit.remits": KEEP,
            "audit.grants": KEEP,
            "audit.agents": KEEP,
            "audit.tools": FULL,
            "audit.grant_width": FULL,
            "audit.events": "SELECT",
            "audit.cursor": "SELECT",
            "control.heartbeat": KEEP,
        },
    ),
    "remit_dashboard": Role(
        tables={
            **dict.fromkeys(
                (
                    "audit.actions_all",
                    "audit.actions",
                    "audit.events",
                    "audit.remits",
                    "audit.grants",
                    "audit.grant_width",
                    "audit.tools",
                    "audit.agents",
                    "audit.switches",
                    "audit.cursor",
                    "audit.progress",
                    "audit.checkpoint",
                    "audit.advisory",
                ),
                "SELECT",
            ),
            # Dead letters hold bodies; people see only what was wrong with them.
            "audit.rejected": "SELECT (seq, at, service, code, detail, source_stream, source_seq, source_subject, agent)",
        },
        settings={"default_transaction_read_only": "on", "statement_timeout": "3s"},
    ),
}


def role_url(database_url: str, role: str, password: str) -> str:
    """Return the URL by which a role reaches the same database."""
    return make_url(database_url).set(username=role, password=password).render_as_string(hide_password=False)


def scram_verifier(password: str) -> str:
    """Return what Postgres stores for a password, so that the password itself never reaches a statement log.

    Raises:
        ConfigurationError: the password is empty or not plain ASCII, which would need SASLprep (RFC 4013).

    """
    if not password or not password.isascii() or not password.isprintable():
        raise ConfigurationError("a database password must be printable ASCII; generate one")
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(raw).decode() for raw in (salt, stored, server))
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{salt64}${stored64}:{server64}"


async def apply_roles(database_url: str, passwords: Mapping[str, str]) -> None:
    """Make the roles and give them exactly their privileges in this migrated database; safe to repeat.

    `passwords` maps each role of `ROLES` to its password; `database_url` is the owner's.

    Raises:
        ConfigurationError: a role has no password.

    """
    missing = ROLES.keys() - passwords.keys()
    if missing:
        raise ConfigurationError(f"no password for {', '.join(sorted(missing))}")
    connection = await asyncpg.connect(database_url)
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with connection.transaction():
                    await _apply(connection, passwords)
            except (asyncpg.InternalServerError, asyncpg.UniqueViolationError, asyncpg.DuplicateObjectError):
                # "tuple concurrently updated": another database of the cluster is doing the same.
                if attempt == ATTEMPTS:
                    raise
                await asyncio.sleep(0.1 * attempt)
            else:
                return
    finally:
        await connection.close()


async def _apply(connection: asyncpg.Connection[asyncpg.Record], passwords: Mapping[str, str]) -> None:
    await _close_to_public(connection)
    for name, role in ROLES.items():
        await _login(connection, name, passwords[name])
        for schema in sorted({table.split(".")[0] for table in role.tables}):
            await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
        for table, privileges in role.tables.items():
            await connection.execute(f"GRANT {privileges} ON {table} TO {name}")
        for sequence in role.sequences:
            await connection.execute(f"GRANT USAGE ON SEQUENCE {sequence} TO {name}")
        for function in role.functions:
            await _lend_owner_rights(connection, function, name)
        for setting, value in (role.settings or {}).items():
            await connection.execute(f"ALTER ROLE {name} SET {setting} = '{value}'")


async def _close_to_public(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    await connection.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    for schema in ("control", "audit"):
        await connection.execute(f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC")
        await connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC")


async def _login(connection: asyncpg.Connection[asyncpg.Record], name: str, password: str) -> None:
    if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
        await connection.execute(f"CREATE ROLE {name}")
    attributes = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT"
    await connection.execute(f"ALTER ROLE {name} WITH {attributes} PASSWORD '{scram_verifier(password)}'")
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    await connection.execute(f"GRANT CONNECT ON DATABASE {database} TO {name}")
    # What an earlier version granted and this table no longer lists must go.
    for schema in ("control", "audit"):
        await connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {name}")
        await connection.execute(f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM {name}")


async def _lend_owner_rights(connection: asyncpg.Connection[asyncpg.Record], function: str, role: str) -> None:
    found = await connection.fetch(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'control'::regnamespace AND proname = $1",
        function,
    )
    for (signature,) in found:
        await connection.execute(f"ALTER FUNCTION {signature} SECURITY DEFINER")
        await connection.execute(f"GRANT EXECUTE ON FUNCTION {signature} TO {role}")


class RoleSettings(BaseSettings):
    """The owner's URL and one password a role, from the environment."""

    model_config = SettingsConfigDict(env_prefix="REMIT_", extra="ignore")

    database_url: SecretStr = Field(validation_alias=AliasChoices("DATABASE_URL", "REMIT_DATABASE_URL"))
    approval_db_password: SecretStr
    executor_db_password: SecretStr
    audit_db_password: SecretStr
    dashboard_db_password: SecretStr

    def passwords(self) -> dict[str, str]:
        """Return the passwords by role name."""
        return {name: getattr(self, f"{name.removeprefix('remit_')}_db_password").get_secret_value() for name in ROLES}


def main() -> None:
    """Make the roles in the database named by the environment."""
    try:
        settings = RoleSettings.model_validate({})
    except ValidationError as error:
        names = ", ".join(str(found["loc"][0]) for found in error.errors(include_input=False))
        raise SystemExit(f"set in the environment: {names} (passwords as REMIT_<NAME>)") from None
    asyncio.run(apply_roles(settings.database_url.get_secret_value(), settings.passwords()))
    sys.stderr.write(f"roles: {', '.join(ROLES)}\n")


if __name__ == "__main__":
    main()
