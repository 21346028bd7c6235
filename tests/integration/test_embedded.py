"""The embedded broker, database, keys and supervisor: they come back on the same port with the same data, or say why not."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import stat
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nats.aio.client import Client
from nats.errors import Error as NatsError

from infra.local import key_ring, keys, postgres_identity, trust
from infra.local.child import LOOPBACK, PortInUseError, ServerStartError, free_port
from infra.local.nats_server import NatsServer, server_config
from infra.local.postgres_server import PostgresServer
from infra.local.process import ProcessSpec
from infra.local.supervisor import Supervisor, loopback_url
from infra.nats.config import TlsFiles, render
from infra.provision import ProvisionSettings, connect, provision
from remit.clock import now
from remit.errors import ConfigurationError
from remit.runtime.keys import load_executor, load_service_keys, load_token_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.timeout(60)

ROOT = os.name != "nt" and os.geteuid() == 0
IDENTITIES = [postgres_identity.IN_NAMESPACE, postgres_identity.AS_NOBODY] if ROOT else [postgres_identity.AS_CALLER]


@pytest.fixture(scope="module")
def keys_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of one environment."""
    directory = tmp_path_factory.mktemp("keys")
    keys.generate(directory, "test", ["a1"])
    return directory


@pytest.fixture
def nats_dir(tmp_path: Path) -> Path:
    """Where a test's server lives."""
    return tmp_path / "nats"


@pytest.fixture(scope="module")
def cluster_dir() -> Iterator[Path]:
    """A folder outside pytest's own, which only root can enter and `nobody` therefore cannot."""
    directory = Path(tempfile.mkdtemp(prefix="remit-test-"))
    yield directory
    shutil.rmtree(directory)


async def _login(server: NatsServer, keys_dir: Path, **options: Any) -> Client:
    client = Client()
    seed = key_ring.load_nats_seed(keys_dir, "policy")
    await client.connect(server.url, nkeys_seed_str=seed, inbox_prefix=b"_IBX.policy", **options)
    return client


async def test_a_killed_broker_comes_back_on_its_port_with_its_data_and_clients_reconnect(
    keys_dir: Path, nats_dir: Path
) -> None:
    async with NatsServer(server_config(keys_dir, nats_dir), nats_dir) as server:
        settings = ProvisionSettings.model_validate({"NATS_URL": server.url, "REMIT_KEYS_DIR": keys_dir})
        job = await connect(settings, wait_s=5, say=print)
        await provision(job)
        await job.close()
        url = server.url
        client = await _login(server, keys_dir, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
        stored = await client.jetstream().publish("action.x.evaluated", b"{}", timeout=5)
        await server.kill()
        assert not server.running
        await server.start()
        again = await client.jetstream().publish("action.x.evaluated", b"{}", timeout=5)
        await client.close()
    assert (server.url, stored.seq, again.seq) == (url, 1, 2)


async def test_a_broker_stops_in_good_order_and_frees_its_port(keys_dir: Path, nats_dir: Path) -> None:
    async with NatsServer(server_config(keys_dir, nats_dir), nats_dir) as server:
        first = server.pid
        await server.restart()
        assert server.pid != first
    assert "Server Exiting" in server.log_path.read_text().splitlines()[-1]
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.pid


@pytest.mark.parametrize("which", ["port", "monitor_port"])
async def test_a_port_in_use_is_named_with_the_remedy(keys_dir: Path, tmp_path: Path, which: str) -> None:
    async with NatsServer(server_config(keys_dir, tmp_path / "1"), tmp_path / "1") as server:
        taken: int = getattr(server.config, which)
        config = replace(server_config(keys_dir, tmp_path / "2"), **{which: taken})
        with pytest.raises(PortInUseError, match=rf"127\.0\.0\.1:{taken}.*Stop that process"):
            await NatsServer(config, tmp_path / "2").start()


async def test_a_file_the_broker_refuses_is_an_error_before_anything_starts(keys_dir: Path, nats_dir: Path) -> None:
    config = replace(server_config(keys_dir, nats_dir), allowed_extra={"no_such_setting": True})
    with pytest.raises(ConfigurationError, match="no_such_setting"):
        await NatsServer(config, nats_dir).start()


async def test_a_refused_reload_is_an_error_and_the_broker_goes_on(keys_dir: Path, nats_dir: Path) -> None:
    async with NatsServer(server_config(keys_dir, nats_dir), nats_dir) as server:
        with pytest.raises(ConfigurationError, match="did not reload"):
            await server.reload(replace(server.config, allowed_extra={"no_such_setting": True}))
        await (await _login(server, keys_dir)).close()


async def test_another_server_binary_is_honoured(
    keys_dir: Path, nats_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_SERVER_BIN", "/nowhere/nats-server")
    with pytest.raises(ConfigurationError, match="/nowhere/nats-server"):
        await NatsServer(server_config(keys_dir, nats_dir), nats_dir).start()


async def test_a_principal_without_a_key_is_named(keys_dir: Path, nats_dir: Path) -> None:
    config = server_config(keys_dir, nats_dir)
    users = {name: key for name, key in config.users.items() if name != "executor"}
    with pytest.raises(ValueError, match="executor"):
        render(replace(config, users=users))


def _certificate(folder: Path, name: str, issuer: tuple[x509.Name, Any] | None) -> tuple[x509.Name, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer_name, signer_key = issuer or (subject, key)
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    key_usage = x509.KeyUsage(
        **usage, digital_signature=issuer is not None, key_cert_sign=issuer is None, crl_sign=issuer is None,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder(signer_name, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now() - timedelta(minutes=1))
        .not_valid_after(now() + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()), critical=False)
        .sign(signer_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(private)
    return subject, key


async def test_with_tls_files_both_sides_must_show_a_certificate(keys_dir: Path, tmp_path: Path) -> None:
    authority = _certificate(tmp_path, "ca", None)
    for name in ("server", "client"):
        _certificate(tmp_path, name, authority)
    files = {kind: tmp_path / f"server.{kind[:3].replace('cer', 'crt')}" for kind in ("cert", "key")}
    tls = TlsFiles(cert_file=files["cert"], key_file=files["key"], ca_file=tmp_path / "ca.crt")
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    options = {"tls": context, "tls_hostname": "localhost", "tls_handshake_first": True, "allow_reconnect": False}
    async with NatsServer(replace(server_config(keys_dir, tmp_path / "n"), tls=tls), tmp_path / "n") as server:
        assert server.url.startswith("tls://")
        with pytest.raises((ssl.SSLError, NatsError, ConnectionError)):
            await _login(server, keys_dir, max_reconnect_attempts=1, reconnect_time_wait=0.1, **options)
        context.load_cert_chain(tmp_path / "client.crt", tmp_path / "client.key")
        await (await _login(server, keys_dir, **options)).close()


@pytest.fixture(params=IDENTITIES, ids=lambda identity: identity.user or "".join(identity.prefix[:1]) or "caller")
async def postgres(request: pytest.FixtureRequest, cluster_dir: Path) -> AsyncIterator[PostgresServer]:
    """A running server under each identity that this machine allows; on CI as an ordinary user, that one."""
    if request.param.user:
        cluster_dir.chmod(0o711)
    directory = Path(tempfile.mkdtemp(dir=cluster_dir))
    async with PostgresServer(directory, identity=request.param) as server:
        yield server


async def test_postgres_keeps_committed_rows_over_restart_and_crash_on_the_same_port(postgres: PostgresServer) -> None:
    url, port = await postgres.create_database("remit"), postgres.port
    assert await postgres.create_database("remit") == url
    await _run(url, "CREATE TABLE kept (n int)")
    for end in (postgres.stop, postgres.kill):
        await _run(url, "INSERT INTO kept VALUES (1)")
        await end()
        await postgres.start()
    assert (await _run(url, "SELECT count(*) FROM kept"), postgres.port) == (2, port)


async def test_postgres_is_private_checksummed_and_asks_for_the_password(postgres: PostgresServer) -> None:
    url = postgres.url()
    for setting, expected in {"data_checksums": "on", "fsync": "on", "listen_addresses": LOOPBACK}.items():
        assert await _run(url, f"SHOW {setting}") == expected
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host=LOOPBACK, port=postgres.port, user="postgres", password="wrong", database="postgres")
    for name, mode in {".": 0o700, "data": 0o700, "socket": 0o700, "superuser.pw": 0o600}.items():
        assert stat.S_IMODE((postgres.directory / name).stat().st_mode) == mode


async def test_postgres_names_a_port_in_use(postgres: PostgresServer, tmp_path: Path) -> None:
    with pytest.raises(PortInUseError, match=str(postgres.port)):
        await PostgresServer(tmp_path / "second", port=postgres.port).start()


async def test_a_database_name_that_is_no_identifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="database name"):
        await PostgresServer(tmp_path).create_database('x"; DROP DATABASE postgres; --')


async def _run(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_keys_are_private_kept_and_completed(tmp_path: Path) -> None:
    keys.generate(tmp_path, "test", ["a1"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    keys.generate(tmp_path, "test", ["a2"])
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert [path.relative_to(tmp_path).as_posix() for path in after.keys() - before.keys()] == ["agents/a2/nats.nk"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in after} | {
        stat.S_IMODE(p.parent.stat().st_mode) for p in after
    }
    assert modes == {0o600, 0o700}
    with pytest.raises(ConfigurationError, match="environment 'test', not 'production'"):
        keys.generate(tmp_path, "production")


async def test_a_rotated_key_signs_and_the_old_one_stays_trusted_until_distrusted(tmp_path: Path) -> None:
    keys.generate(tmp_path, "test")
    old = load_service_keys(tmp_path, "policy").signer
    kid = keys.rotate(tmp_path, "policy")
    signer, trusted = load_service_keys(tmp_path, "policy").signer, trust.load_trust(tmp_path).keys
    assert (signer.kid, trusted[kid].key) == (kid, signer.key.verify_key)
    assert trusted[old.kid].key == old.key.verify_key
    assert trusted[kid].types == {"action.evaluated"}
    with pytest.raises(ConfigurationError, match="rotate policy first"):
        keys.distrust(tmp_path, kid)
    keys.distrust(tmp_path, old.kid)
    assert old.kid not in trust.load_trust(tmp_path).keys


async def test_a_key_file_that_the_root_did_not_sign_is_refused(tmp_path: Path) -> None:
    keys.generate(tmp_path, "test")
    path = tmp_path / trust.TRUST_FILE
    path.write_text(path.read_text().replace('"action.evaluated"', '"action.approved"'))
    with pytest.raises(ConfigurationError, match="valid signature"):
        trust.load_trust(tmp_path)


async def test_no_loaded_secret_shows_in_a_repr(keys_dir: Path) -> None:
    loaded = (
        load_service_keys(keys_dir, "policy"),
        load_executor(keys_dir),
        load_token_keys(keys_dir),
    )
    shown = repr(loaded)
    assert key_ring.load_nats_seed(keys_dir, "policy") not in shown
    assert "PrivateKey" not in shown
    assert "SigningKey" not in shown


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
SERVER = (sys.executable, "-m", "http.server", "{port}", "--bind", LOOPBACK)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_killed_process_comes_back_alone_on_its_port(tmp_path: Path) -> None:
    spec = ProcessSpec(
        name="web", argv=SERVER, log_path=tmp_path / "web.log", cwd=tmp_path, ready_url=loopback_url("/")
    )
    async with Supervisor([spec], scale={"web": 2}) as supervisor:
        await supervisor.ready(20)
        (victim,), (other,), port = supervisor.pids("web-1"), supervisor.pids("web-2"), supervisor.port("web-1")
        os.kill(victim, signal.SIGKILL)
        await _until(lambda: supervisor.restarts("web") == 1 and supervisor.pids("web-1"))
        await supervisor.ready(20)
        assert supervisor.pids("web-1") != [victim]
        assert (supervisor.pids("web-2"), supervisor.port("web-1")) == ([other], port)
        assert [s.last_exit for s in supervisor.status()] == [-signal.SIGKILL, None]
        await supervisor.scale("web", 1)
        assert len(supervisor.pids("web")) == 1
    assert (tmp_path / "web-2.log").exists()


async def test_a_process_that_keeps_failing_is_retried_ever_more_slowly(tmp_path: Path) -> None:
    said: list[str] = []
    spec = ProcessSpec(name="bad", argv=(sys.executable, "-c", "exit(70)"), log_path=tmp_path / "bad.log")
    async with Supervisor([spec], say=said.append):
        await _until(lambda: len(said) == 3)
    assert said == [f"bad exited with 70; again in {pause} s" for pause in ("0.2", "0.4", "0.8")]


async def test_a_process_deaf_to_sigterm_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    spec = ProcessSpec(name="deaf", argv=(sys.executable, "-c", DEAF), log_path=tmp_path / "deaf.log")
    supervisor = await Supervisor([spec]).start()
    await _until(lambda: spec.log_path.exists() and "deaf" in spec.log_path.read_text())
    (pid,) = supervisor.pids("deaf")
    await supervisor.stop(grace_s=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_process_that_never_gets_ready_is_named_with_its_log(tmp_path: Path) -> None:
    script = "print('no database', flush=True); import time; time.sleep(99)"
    spec = ProcessSpec(
        name="late",
        argv=(sys.executable, "-c", script),
        log_path=tmp_path / "late.log",
        ready_url=loopback_url("/readyz"),
    )
    async with AsyncExitStack() as stack:
        supervisor = await stack.enter_async_context(Supervisor([spec]))
        with pytest.raises(ServerStartError, match=r"late not ready after 1 s(.|\n)*no database"):
            await supervisor.ready(1)


async def test_a_scale_that_names_nobody_is_refused(tmp_path: Path) -> None:
    spec = ProcessSpec(name="policy", argv=("true",), log_path=tmp_path / "policy.log")
    with pytest.raises(ConfigurationError, match="polcy"):
        Supervisor([spec], scale={"polcy": 2})
    assert free_port() > 0
