"""What the container files promise, read as data: one secret share each, no root, no way round the broker, no foreign code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import compose
from infra.compose import Plan, prepare
from infra.local import key_ring
from infra.nats.nodes import NODES
from infra.nats.permissions import PRINCIPALS
from remit.pipeline import PIPELINE
from remit.runtime.keys import ROOT_FILE, SIGNATURE_FILE, TRUST_FILE, load_service_keys

ROOT = Path(__file__).parents[3]
SERVICES = [row.name for row in PIPELINE]
PROGRAMS = [*SERVICES, "dashboard"]
JOBS = {"provision": "provisioner", "migrate": "migrate", "roles": "roles"}
"""One-shot containers and the share each mounts."""
DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())
CONTAINERS: dict[str, dict[str, Any]] = DOCUMENT["services"]
DOCKERFILE = (ROOT / "infra/Dockerfile").read_text()
PUBLIC = {TRUST_FILE, SIGNATURE_FILE, ROOT_FILE, "clients.crt", "routes.crt"}
"""File names that everybody may have."""


def mounts(container: dict[str, Any]) -> list[str]:
    return [str(volume).replace("${REMIT_DIR:?}", "${REMIT_DIR}") for volume in container["volumes"]]


def networks(name: str) -> set[str]:
    return set(CONTAINERS[name]["networks"])


def test_every_program_of_the_pipeline_is_there_and_nothing_unknown() -> None:
    assert set(CONTAINERS) == {*PROGRAMS, *NODES, *JOBS, "postgres", "auditor"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_its_own_image_and_sees_its_own_share(name: str) -> None:
    container = CONTAINERS[name]
    assert container["build"]["args"] == {"SERVICE": name}
    assert container["image"].startswith(f"remit-{name}:")
    shares = [mount for mount in mounts(container) if "/share/" in mount]
    assert shares == [f"${{REMIT_DIR}}/share/{name}:/run/remit:ro"]


def test_no_share_is_mounted_twice_and_no_container_sees_what_is_kept_back() -> None:
    found = [mount for name in CONTAINERS for mount in mounts(CONTAINERS[name])]
    shares = [mount.split(":")[0] for mount in found if "/share/" in mount]
    assert len(shares) == len(set(shares))
    assert all(mount.endswith(":ro") for mount in found if "/share/" in mount)
    assert all(re.match(r"\$\{REMIT_DIR\}/(share|data)/[a-z0-9-]+:/", mount) for mount in found)


@pytest.mark.parametrize("name", CONTAINERS)
def test_no_container_is_root_or_can_become_it_or_take_the_machine(name: str) -> None:
    container = CONTAINERS[name]
    assert container["user"].startswith("${REMIT_UID:?")
    assert (container["read_only"], container["init"], container["cap_drop"]) == (True, True, ["ALL"])
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in container
    assert container["pids_limit"] <= 256
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"} & set(container)
    assert "healthcheck" in container or name in PROGRAMS  # programs have theirs from the image
    assert container["restart"] == ("no" if name in {*JOBS, "auditor"} else "unless-stopped")


def test_ports_are_published_on_loopback_and_only_where_people_and_agents_come_in() -> None:
    published = {name: container["ports"] for name, container in CONTAINERS.items() if "ports" in container}
    assert set(published) == {*NODES, "dashboard"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert all(ports[0].endswith(":4222") for name, ports in published.items() if name in NODES)


def test_agents_meet_the_nodes_and_nobody_else() -> None:
    assert {name for name in CONTAINERS if "agents" in networks(name)} == set(NODES)
    assert {name for name in CONTAINERS if "routes" in networks(name)} == set(NODES)
    assert networks("postgres") == {"data"}
    with_data = {name for name in CONTAINERS if "data" in networks(name)}
    assert with_data == {"postgres", "migrate", "roles", *compose.DATABASE_ROLES}
    closed = {name for name, network in DOCUMENT["networks"].items() if network.get("internal")}
    assert closed == {"bus", "routes", "data"}
    leaving = {name for name in PROGRAMS if networks(name) - closed}
    assert leaving == {"approval", "executor", "dashboard"}


def test_programs_wait_for_their_streams_and_roles() -> None:
    done = {"condition": "service_completed_successfully"}
    for name in PROGRAMS:
        assert CONTAINERS[name]["depends_on"]["provision"] == done
        assert (CONTAINERS[name]["depends_on"].get("roles") == done) is (name in compose.DATABASE_ROLES)
    assert CONTAINERS["provision"]["command"][:2] == ["--replicas", "3"]
    assert set(CONTAINERS["provision"]["depends_on"]) == set(NODES)


def test_no_secret_is_in_the_environment() -> None:
    given = [str(value) for container in CONTAINERS.values() for value in container.get("environment", {}).values()]
    assert not [value for value in given if re.search(r"://[^/@]*:[^/@]*@", value)]
    names = {name for container in CONTAINERS.values() for name in container.get("environment", {})}
    assert all(name.endswith("_FILE") for name in names if re.search("SECRET|PASSWORD|SEED", name))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A prepared directory with two agents."""
    made = Plan(
        directory=tmp_path_factory.mktemp("compose"),
        environment="test",
        agents=("a1", "a2"),
        issuer="https://idp.example",
    )
    prepare(made)
    return made


def secret_files(directory: Path) -> dict[str, Path]:
    """Return every file by its content, the public ones left out."""
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {path.read_text(): path for path in found if path.name not in PUBLIC and path.suffix != ".crt"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_with_its_share_alone(plan: Plan, service: str) -> None:
    keys = load_service_keys(plan.share(service), service)
    assert keys.environment.environment == "test"
    assert key_ring.load_nats_seed(plan.share(service), service) == keys.nkey_seed


def test_a_share_holds_no_secret_of_anybody_else(plan: Plan) -> None:
    owner = {text: path.relative_to(plan.keys).parts[0] for text, path in secret_files(plan.keys).items()}
    borrowed = {"auditor": {"audit"}, "provisioner": {"provisioner"}, "postgres": {"postgres"}, "roles": {"postgres"}}
    for share in (plan.directory / "share").iterdir():
        theirs = {owner[text] for text in secret_files(share) if text in owner}
        assert theirs <= borrowed.get(share.name, {share.name}), share.name
    assert not [path for path in secret_files(plan.share("auditor")).values() if path.name == "event.json"]
    assert {path.name for path in secret_files(plan.share("agents/a1")).values()} == {"nats.nk", "client.key"}


def test_each_database_login_is_in_one_share(plan: Plan) -> None:
    roles = {path.parent.name: path.read_text().split(":")[3] for path in plan.directory.glob("share/*/pgpass")}
    assert roles == {**compose.DATABASE_ROLES, "migrate": compose.OWNER, "roles": compose.OWNER}


def test_only_their_owner_reads_the_shares_and_a_second_run_changes_nothing(plan: Plan) -> None:
    files = [path for path in plan.directory.rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    before = {path: path.read_bytes() for path in files}
    prepare(plan)
    assert {path: path.read_bytes() for path in plan.directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("node", NODES)
def test_a_node_syncs_always_and_trusts_clients_and_routes_by_different_authorities(plan: Plan, node: str) -> None:
    found = json.loads((plan.share(node) / "nats.conf").read_text())
    assert found["jetstream"]["sync_interval"] == "always"
    assert found["server_name"] == node
    assert found["http"] == "127.0.0.1:8222"
    assert len(found["cluster"]["routes"]) == len(NODES)
    assert found["cluster"]["listen"] == f"{node}-routes:6222"
    assert found["cluster"]["no_advertise"] is True
    for block in (found["tls"], found["cluster"]["tls"]):
        assert (block["verify"], block["min_version"]) == (True, "1.3")
    assert found["tls"]["ca_file"] != found["cluster"]["tls"]["ca_file"]
    here = {path.name for path in (plan.share(node) / "tls").iterdir()}
    assert here == {"clients.crt", "routes.crt", "server.crt", "server.key", "route.crt", "route.key"}


def test_every_principal_of_the_broker_has_a_share(plan: Plan) -> None:
    assert set(PRINCIPALS) <= {share.name for share in (plan.directory / "share").iterdir()}


def stages() -> dict[str, tuple[str, str]]:
    """Return the Dockerfile's stages by name: what each begins from, and its text."""
    parts = re.split(r"^FROM +(\S+)(?: +AS +(\S+))?\n", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {parts[i + 1] or "final": (parts[i], parts[i + 2]) for i in range(0, len(parts), 3)}


def copied(text: str) -> list[str]:
    """Return what a stage copies from the checkout."""
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("COPY ")]
    return [source for words in lines if not words[0].startswith("--from") for source in words[:-1]]


def test_an_image_gets_one_program_and_what_it_imports() -> None:
    found = stages()
    assert {name: copied(text) for name, (_, text) in found.items() if name in SERVICES} == {
        name: [f"services/{name}"] for name in SERVICES
    }
    assert copied(found["dashboard"][1]) == ["dashboard"]
    assert copied(found["wheel"][1]) == ["shared/remit"]
    assert copied(found["build"][1]) == ["pyproject.toml", "uv.lock", "README.md", "LICENSE"]
    job = ["infra/__init__.py", "infra/provision.py", "infra/nats", "infra/postgres", "infra/local/__init__.py"]
    assert copied(found["job"][1]) == [*job, "infra/local/key_ring.py"]
    rest = set(found) - {*SERVICES, "dashboard", "wheel", "build", "job"}
    assert [copied(found[name][1]) for name in rest] == [[] for _ in rest]


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_the_libraries_its_code_imports_and_no_more(service: str) -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "services" / service).rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) ([a-z0-9_]+)", text, flags=re.MULTILINE))
    expected = "with-mcp" if "mcp" in imported else "with-postgres" if "asyncpg" in imported else "with-services"
    assert stages()[service][0] == expected


def test_the_image_runs_as_a_number_says_how_it_is_and_becomes_its_program() -> None:
    final = stages()["final"][1]
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", final, flags=re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*CMD \[", final, flags=re.MULTILINE)
    assert "/livez" in final
    assert 'ENTRYPOINT ["/opt/remit/bin/start"]' in final
    assert "exec /opt/remit/bin/python -m" in stages()["program"][1]
    assert not re.search(r"^# *syntax", DOCKERFILE, flags=re.IGNORECASE | re.MULTILINE)
    assert {base for base, _ in stages().values() if ":" in base} == {"python:3.13-slim"}


def test_the_build_context_holds_what_is_copied_and_neither_tests_nor_demo_nor_keys() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    wanted = {source for _, text in stages().values() for source in copied(text)}
    assert {source.removeprefix("services/") for source in wanted if source.startswith("services/")} == set(SERVICES)
    assert allowed == {source for source in wanted if not source.startswith("services/")} | {"services"}
