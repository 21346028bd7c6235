"""Writes what `infra/compose.yaml` mounts: `python -m infra.compose DIRECTORY --issuer URL --agent NAME`.

    keys/               the environment's key directory (infra.local.keys) and database passwords; mounted nowhere
    authorities/        certificate authorities of clients and of routes; mounted nowhere
    share/<program>/    the whole of what one program sees, read-only: trust files, its own keys, certificate, pgpass
    share/agents/<name> what one agent gets: its nkey and a client certificate
    data/               streams of the three nodes, the database, audit's checkpoints
    compose.env         settings for `docker compose --env-file`; no secret is in it

Safe to repeat: what exists is kept, what ran out or was rotated is handed out anew. Containers run as the caller, or as
user 10001 when root calls.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.local import key_ring, keys, secret_files
from infra.nats.nodes import NODES, node_file, route_name, server_names
from infra.nats.permissions import SYSTEM_USER
from infra.nats.tls import Authority, Usage
from infra.postgres.roles import ROLES
from remit.errors import RemitError
from remit.runtime.keys import ROOT_FILE, SIGNATURE_FILE, TRUST_FILE, read
from remit.runtime.streams import EMBEDDED, GIB

if TYPE_CHECKING:
    from collections.abc import Iterable

CONTAINER_ID = 10_001
"""User and group of the images; a number, so that no name must exist on the host."""
DATABASE_ROLES = {
    "approval": "remit_approval",
    "executor": "remit_executor",
    "audit": "remit_audit",
    "dashboard": "remit_dashboard",
    "auditor": "remit_auditor",
}
"""Which role a container logs in as; the others have no way to the database."""
OWNER = "remit_owner"
"""The database's superuser: only `migrate` and `roles` log in as it."""
DATABASE_HOST, DATABASE = "postgres:5432", "remit"
STORE_BYTES = EMBEDDED.total_bytes + GIB
"""Every stream whole on every node, and room for what the server keeps beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where everything goes."""

    directory: Path
    environment: str
    agents: tuple[str, ...]
    issuer: str

    @property
    def keys(self) -> Path:
        """The whole environment's keys."""
        return self.directory / "keys"

    def share(self, program: str) -> Path:
        """What one program's container mounts."""
        return self.directory / "share" / program


def prepare(plan: Plan) -> None:
    """Make what is missing and hand out to each program its own.

    Raises:
        ConfigurationError: the directory holds another environment's keys.
        ValueError: an agent's name is not one plain subject token.

    """
    secret_files.make_private(plan.directory)
    keys.generate(plan.keys, plan.environment, plan.agents)
    for role in (OWNER, *ROLES):
        _secret(plan.keys / "postgres" / f"{role}.password")
    _secret(plan.keys / "dashboard" / "oidc-client.secret")
    authorities = plan.directory / "authorities"
    clients, routes = Authority(authorities, "clients"), Authority(authorities, "routes")
    users = key_ring.load_nats_users(plan.keys)
    for principal in sorted(users.users.keys() - {SYSTEM_USER}):
        _hand_out(plan, principal, principal)
        _client_certificate(clients, plan.share(principal), principal)
    for agent in users.agents:
        _copy(plan.keys / "agents" / agent, plan.share(f"agents/{agent}"), ("nats.nk",))
        _client_certificate(clients, plan.share(f"agents/{agent}"), agent)
    # `remit audit verify --nats` reads the streams under audit's login, and gets nothing that audit signs with.
    _hand_out(plan, "auditor", "audit", only=("nats.nk",))
    _client_certificate(clients, plan.share("auditor"), "auditor")
    secret_files.make_private(plan.share("executor") / "credentials")
    _database_logins(plan)
    for node in NODES:
        _keep(plan.share(node) / "nats.conf", node_file(node, users, store_bytes=STORE_BYTES))
        _node_certificates(plan.share(node), node, clients, routes)
    for name in (*NODES, "postgres", "checkpoints"):
        secret_files.make_private(plan.directory / "data" / name)
    _settings(plan)
    _own(plan)


def _secret(path: Path) -> None:
    if not path.exists():
        secret_files.write(path, secrets.token_urlsafe(24))


def _keep(path: Path, text: str) -> None:
    """Write a file unless it says this already, so that a program that reads it meanwhile is not disturbed."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        secret_files.write(path, text)


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        _keep(target / name, (source / name).read_text(encoding="utf-8"))


def _hand_out(plan: Plan, program: str, principal: str, *, only: tuple[str, ...] = ()) -> None:
    # The key file comes last: a reader in between refuses instead of believing half a change.
    _copy(plan.keys, plan.share(program), (ROOT_FILE, SIGNATURE_FILE, TRUST_FILE))
    own = plan.keys / principal
    _copy(own, plan.share(program) / principal, only or sorted(path.name for path in own.iterdir() if path.is_file()))


def _client_certificate(clients: Authority, share: Path, name: str) -> None:
    clients.issue(share / "tls" / "client", (name,), Usage(client=True))
    _copy(clients.certificate_file.parent, share / "tls", (clients.certificate_file.name,))


def _node_certificates(share: Path, node: str, clients: Authority, routes: Authority) -> None:
    clients.issue(share / "tls" / "server", server_names(node), Usage(server=True))
    routes.issue(share / "tls" / "route", (route_name(node),), Usage(server=True, client=True))
    for authority in (clients, routes):
        _copy(authority.certificate_file.parent, share / "tls", (authority.certificate_file.name,))


def _database_logins(plan: Plan) -> None:
    passwords = plan.keys / "postgres"
    for program, role in {**DATABASE_ROLES, "migrate": OWNER, "roles": OWNER}.items():
        # libpq's file; a password of ours holds neither a colon nor a backslash, which it would have to escape.
        password = read(passwords / f"{role}.password")
        _keep(plan.share(program) / "pgpass", f"{DATABASE_HOST}:{DATABASE}:{role}:{password}\n")
    _copy(passwords, plan.share("postgres"), (f"{OWNER}.password",))
    _copy(passwords, plan.share("roles") / "passwords", [f"{role}.password" for role in ROLES])


def _settings(plan: Plan) -> None:
    user, group = (CONTAINER_ID, CONTAINER_ID) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    found = {
        "REMIT_DIR": str(plan.directory),
        "REMIT_UID": str(user),
        "REMIT_GID": str(group),
        "REMIT_ENVIRONMENT": plan.environment,
        "REMIT_OIDC_ISSUER": plan.issuer,
    }
    secret_files.write(plan.directory / "compose.env", "".join(f"{name}={value}\n" for name, value in found.items()))


def _own(plan: Plan) -> None:
    """Give shares and data to the containers' user; only root can, and only root need."""
    if os.geteuid() != 0:
        return
    for top in (plan.directory / "share", plan.directory / "data"):
        for path in (top, *top.rglob("*")):
            os.chown(path, CONTAINER_ID, CONTAINER_ID, follow_symlinks=False)


def main() -> int:
    """Write keys, certificates, server files and settings for `docker compose`; exit code 1 when refused."""
    parser = argparse.ArgumentParser(prog="python -m infra.compose", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--issuer", required=True, metavar="URL", help="OpenID provider, exactly as in the `iss` claim")
    parser.add_argument("--environment", default="compose", help="name in every signed event; one directory each")
    parser.add_argument("--agent", action="append", default=[], help="name of an agent; may be repeated")
    options = parser.parse_args()
    plan = Plan(
        directory=options.directory.absolute(),
        environment=options.environment,
        agents=tuple(options.agent),
        issuer=options.issuer,
    )
    try:
        prepare(plan)
    except (RemitError, FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(
        f"ready: docker compose -f infra/compose.yaml --env-file {plan.directory}/compose.env up --detach\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
