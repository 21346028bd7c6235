"""Who may do what in the database, as data: one login role a service, with the least that its statements need.

    python -m infra.postgres.roles      DATABASE_URL of the owner, REMIT_<APPROVAL|EXECUTOR|AUDIT|DASHBOARD|AUDITOR>_DB_PASSWORD;
                                        with --passwords DIRECTORY: <role>.password of every role in files there

The ledger is insert-only for everybody. The executor passes the claim without any right on stop rows: `control.claim` runs
with its owner's rights, because a row lock alone would need the right to update, and so to lift, a kill switch. Advisory locks
order claims and revocations, so no login may take one on its own account: that would hold up both for as long as it likes.
Source: design, bus section 8 (tamper evidence); README section 3.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url

from infra.postgres.migrate import LOCK_KEY
from infra.postgres.privileges import OUTBOX_RULES, ROLES, Role
from remit.errors import ConfigurationError
from remit.runtime.keys import read

if TYPE_CHECKING:
    from collections.abc import Mapping

    Connection = asyncpg.Connection[asyncpg.Record]

SCRAM_ITERATIONS = 4_096
"""PostgreSQL's own default (`scram_iterations`); the passwords are random, so more would only slow every connection."""
ATTEMPTS = 5
"""Roles belong to the whole cluster: two databases prepared at once meet in the same catalogue rows."""
ADVISORY_LOCKS = "^pg_(try_)?advisory_(xact_)?lock(_shared)?$"
"""Functions of `pg_catalog` that everybody may call by default, and that let any login hold up claims and revocations."""
_LOCK_FUNCTIONS = """
SELECT oid::regprocedure::text, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ $1
"""
FORBIDDEN = ("SUPERUSER", "CREATEDB", "CREATEROLE", "REPLICATION", "BYPASSRLS")
"""Attributes no role of ours has; taking one away takes a superuser, so it is done only where one is set."""


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


async def _apply(connection: Connection, passwords: Mapping[str, str]) -> None:
    # Twice at once in one database would meet in its catalogue rows.
    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
    is_superuser = await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    await _close_to_public(connection)
    for name in ROLES:
        await _login(connection, name, passwords[name])
    await _keep_advisory_locks(connection, is_superuser=is_superuser)
    for name, role in ROLES.items():
        await _grant(connection, name, role)
        for signature in role.locks if is_superuser else ():
            await connection.execute(f"GRANT EXECUTE ON FUNCTION pg_catalog.{signature} TO {name}")
    await _rule_rows(connection)


async def _grant(connection: Connection, name: str, role: Role) -> None:
    for schema in sorted({table.split(".")[0] for table in role.tables}):
        await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
    for table, privileges in role.tables.items():
        for privilege in (privileges,) if isinstance(privileges, str) else privileges:
            await connection.execute(f"GRANT {privilege} ON {table} TO {name}")
    for sequence in role.sequences:
        await connection.execute(f"GRANT USAGE ON SEQUENCE {sequence} TO {name}")
    for function in role.functions:
        found = await connection.fetch(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'control'::regnamespace AND proname = $1",
            function,
        )
        for (signature,) in found:
            await connection.execute(f"GRANT EXECUTE ON FUNCTION {signature} TO {name}")
    for setting, value in (role.settings or {}).items():
        await connection.execute(f"ALTER ROLE {name} SET {setting} = '{value}'")


async def _close_to_public(connection: Connection) -> None:
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    await connection.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    for schema in ("control", "audit"):
        await connection.execute(f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC")
        await connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC")


async def _keep_advisory_locks(connection: Connection, *, is_superuser: bool) -> None:
    """Leave advisory locks to the owner of schema `control`, whose functions take them; only a superuser can do this."""
    owner = await connection.fetchval(
        "SELECT quote_ident(pg_get_userbyid(nspowner)) FROM pg_namespace WHERE nspname = 'control'"
    )
    functions = await connection.fetch(_LOCK_FUNCTIONS, ADVISORY_LOCKS)
    if is_superuser:
        for signature, _ in functions:
            await connection.execute(f"REVOKE ALL ON FUNCTION pg_catalog.{signature} FROM PUBLIC, {', '.join(ROLES)}")
            await connection.execute(f"GRANT EXECUTE ON FUNCTION pg_catalog.{signature} TO {owner}")
    elif any(is_open for _, is_open in functions):
        sys.stderr.write(
            "warning: any login of this database can take advisory locks and so hold up claims and revocations; run "
            "`python -m infra.postgres.roles` once with a superuser's DATABASE_URL\n"
        )


async def _rule_rows(connection: Connection) -> None:
    await connection.execute("ALTER TABLE control.outbox ENABLE ROW LEVEL SECURITY")
    for rule in OUTBOX_RULES:
        await connection.execute(f"DROP POLICY IF EXISTS {rule.name} ON control.outbox")
        clause = "WITH CHECK" if rule.command == "INSERT" else "USING"
        await connection.execute(
            f"CREATE POLICY {rule.name} ON control.outbox FOR {rule.command} TO {rule.role} {clause} ({rule.rows})"
        )


async def _login(connection: Connection, name: str, password: str) -> None:
    if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
        await connection.execute(f"CREATE ROLE {name}")
    await connection.execute(f"ALTER ROLE {name} WITH LOGIN NOINHERIT PASSWORD '{scram_verifier(password)}'")
    found = await connection.fetchrow(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = $1",
        name,
    )
    for attribute in (word for word, is_set in zip(FORBIDDEN, found or (), strict=True) if is_set):
        await connection.execute(f"ALTER ROLE {name} WITH NO{attribute}")
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    await connection.execute(f"GRANT CONNECT ON DATABASE {database} TO {name}")
    # What an earlier version granted and this table no longer lists must go.
    for schema in ("control", "audit"):
        await connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {name}")
        await connection.execute(f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM {name}")


class OwnerSettings(BaseSettings):
    """The owner's URL, from the environment."""

    model_config = SettingsConfigDict(env_prefix="REMIT_", extra="ignore")

    database_url: SecretStr = Field(validation_alias=AliasChoices("DATABASE_URL", "REMIT_DATABASE_URL"))


class RoleSettings(OwnerSettings):
    """The owner's URL and one password a role, from the environment."""

    approval_db_password: SecretStr
    executor_db_password: SecretStr
    audit_db_password: SecretStr
    dashboard_db_password: SecretStr
    auditor_db_password: SecretStr

    def passwords(self) -> dict[str, str]:
        """Return the passwords by role name."""
        return {name: getattr(self, f"{name.removeprefix('remit_')}_db_password").get_secret_value() for name in ROLES}


def _from_environment() -> tuple[str, dict[str, str]]:
    settings = RoleSettings.model_validate({})
    return settings.database_url.get_secret_value(), settings.passwords()


def _from_files(directory: Path) -> tuple[str, dict[str, str]]:
    url = OwnerSettings.model_validate({}).database_url.get_secret_value()
    return url, {name: read(directory / f"{name}.password") for name in ROLES}


def main() -> None:
    """Make the roles in the database named by the environment."""
    parser = argparse.ArgumentParser(prog="python -m infra.postgres.roles", description=main.__doc__)
    parser.add_argument("--passwords", type=Path, metavar="DIRECTORY", help="read <role>.password files, not variables")
    options = parser.parse_args()
    try:
        url, passwords = _from_files(options.passwords) if options.passwords else _from_environment()
    except ValidationError as error:
        names = ", ".join(str(found["loc"][0]) for found in error.errors(include_input=False))
        raise SystemExit(f"set in the environment: {names} (passwords as REMIT_<NAME>)") from None
    except ConfigurationError as error:
        raise SystemExit(str(error)) from None
    asyncio.run(apply_roles(url, passwords))
    sys.stderr.write(f"roles: {', '.join(ROLES)}\n")


if __name__ == "__main__":
    main()
