"""All ways to log in with libpq, through a configuration and on real servers; no password is ever shown."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from asgi_datasource.testing import EmbeddedCluster
from asgi_datasource.testing.binaries import run_as
from asgi_datasource.testing.ports import reserve_port
from tests.cli.run import Ran, run

HARD = "p@ss/w:rd%20#? 'x\\ü"
"""A password with all characters that are special in URLs and keyword strings."""
ROLE = "hard_login"


@pytest.fixture(scope="module")
def login(cluster: EmbeddedCluster) -> Iterator[dict[str, str]]:
    """The address of a server, with a role that has this password."""
    quoted = HARD.replace("'", "''")
    cluster.primary.blocking.sql(f"create role {ROLE} login password '{quoted}'")
    try:
        parts = psycopg.conninfo.conninfo_to_dict(cluster.primary.url())
        yield {"host": str(parts["host"]), "port": str(parts["port"])}
    finally:
        cluster.primary.blocking.sql(f"drop role {ROLE}")


def check(folder: Path, url: object, *arguments: str, **environ: str) -> Ran:
    path = folder / "datasource.json"
    document = {
        "version": 1,
        "datasources": {"orders": {"primary": {"url": url}}},
        "tenancy": {"default": "orders"},
    }
    path.write_text(json.dumps(document))
    done = run("check", path, *arguments, environ=environ)
    for secret in (HARD, quote(HARD, safe=""), HARD[:6]):
        assert secret not in done.out + done.err
    return done


def assert_connected(done: Ran) -> None:
    assert done.code == 0, done.out + done.err
    assert "nothing found" in done.out


def url_of(login: dict[str, str], password: str | None) -> str:
    secret = "" if password is None else f":{password}"
    return f"postgresql://{ROLE}{secret}@{login['host']}:{login['port']}/postgres"


def test_a_password_in_a_url_is_percent_encoded(login: dict[str, str], tmp_path: Path) -> None:
    assert_connected(check(tmp_path, "${URL}", URL=url_of(login, quote(HARD, safe=""))))


def test_a_password_in_a_keyword_string_is_quoted(login: dict[str, str], tmp_path: Path) -> None:
    quoted = HARD.replace("\\", "\\\\").replace("'", "\\'")
    text = f"host={login['host']} port={login['port']} user={ROLE} dbname=postgres password='{quoted}'"
    assert_connected(check(tmp_path, "${URL}", URL=text))


def test_secrets_from_files_and_programs(login: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "url").write_text(url_of(login, quote(HARD, safe="")) + "\n")
    assert_connected(check(tmp_path, {"file": "url"}))
    refused = check(tmp_path, {"command": ["cat", "url"]})
    assert refused.code == 2
    assert "programs are not run for secrets unless that is allowed" in refused.err
    assert_connected(check(tmp_path, {"command": ["cat", "url"]}, "--allow-commands"))


def test_a_password_file_logs_in(login: dict[str, str], tmp_path: Path) -> None:
    escaped = HARD.replace("\\", "\\\\").replace(":", "\\:")
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"{login['host']}:{login['port']}:*:{ROLE}:{escaped}\n")
    passfile.chmod(0o600)
    assert_connected(check(tmp_path, url_of(login, None), PGPASSFILE=str(passfile)))
    assert_connected(check(tmp_path, f"{url_of(login, None)}?passfile={quote(str(passfile), safe='')}"))
    without = check(tmp_path, url_of(login, None), PGPASSFILE="/nowhere")
    assert without.code == 2
    assert "ADS101" in without.out


def test_a_service_file_logs_in(login: dict[str, str], tmp_path: Path) -> None:
    services = tmp_path / "services.conf"
    services.write_text(
        f"[orders]\nhost={login['host']}\nport={login['port']}\nuser={ROLE}\ndbname=postgres\npassword={HARD}\n"
    )
    assert_connected(check(tmp_path, "service=orders", PGSERVICEFILE=str(services)))
    assert_connected(check(tmp_path, "postgresql://?service=orders", PGSERVICEFILE=str(services)))


_BOUNCER = """\
[databases]
postgres = host={host} port={port} user={role} password='{password}'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = cert
auth_file = {folder}/users
pool_mode = session
client_tls_sslmode = verify-full
client_tls_ca_file = {folder}/ca.crt
client_tls_cert_file = {folder}/server.crt
client_tls_key_file = {folder}/server.key
"""


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True, timeout=60)


def certificates(folder: Path) -> None:
    """Create an authority and its certificates for the server and the role."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", "-days", "2", cwd=folder)
    for name, subject in (("server", "localhost"), ("client", ROLE)):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}", cwd=folder)
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt", cwd=folder)
        (folder / f"{name}.key").chmod(0o600)


def test_a_client_certificate_logs_in(login: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The embedded servers have no TLS, so PgBouncer terminates it; the certificate alone is the login."""
    import shutil
    import tempfile

    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program, "pgbouncer is not installed; scripts/test installs it"
    folder = Path(tempfile.mkdtemp(prefix="ads-certificates-"))
    user = run_as()
    listen, reservation = reserve_port()
    try:
        folder.chmod(0o755)
        certificates(folder)
        user.give(folder / "server.key")
        (folder / "users").write_text(f'"{ROLE}" ""\n')
        text = _BOUNCER.format(**login, role=ROLE, password=HARD.replace("'", "''"), listen=listen, folder=folder)
        (folder / "pgbouncer.ini").write_text(text)
        reservation.close()
        process = subprocess.Popen(
            [program, str(folder / "pgbouncer.ini")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user.switch_uid,
            group=user.switch_gid,
            extra_groups=user.switch_groups,
        )
        try:
            wait_for(listen, process)
            tls = f"sslmode=verify-full&sslrootcert={folder}/ca.crt"
            own = f"sslcert={folder}/client.crt&sslkey={folder}/client.key"
            work = tmp_path_factory.mktemp("certificates")
            done = check(work, f"postgresql://{ROLE}@localhost:{listen}/postgres?{tls}&{own}")
            assert done.code == 0, done.out + done.err
            assert "a pooler in session mode" in done.out
            without = check(work, f"postgresql://{ROLE}@localhost:{listen}/postgres?{tls}")
            assert without.code == 2
            assert "ADS101" in without.out
        finally:
            process.terminate()
            process.wait(15)
    finally:
        reservation.close()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    import socket

    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        assert process.poll() is None, "PgBouncer ended"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("PgBouncer does not listen")
