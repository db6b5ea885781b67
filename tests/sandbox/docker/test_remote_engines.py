"""Engines over TCP and TLS, and those that docker's contexts name: the same as over a socket file."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import docker
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sandbox import DockerSandbox, EndedBy, SandboxConfig, SandboxDied, SandboxUnavailable
from sandbox.docker import engine
from sandbox.docker.reaper import INSTANCE, OWNER
from sandbox.types import Mount
from tests.docker_engine import Engine
from tests.own_engine import NoEngine, OwnEngine
from tests.sandbox.docker.networks import Forwarder, have_loopback, in_network_of, unix_connection

ROOT = Path(__file__).resolve().parents[3]
CONFIG = SandboxConfig(pool_size=1)
GONE_WITHIN_S = 10.0
WAIT_S = 30.0
PORT = 2376
KEPT = 10
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
VARIABLES = ("HOST", "CONTEXT", "CONFIG", "TLS_VERIFY", "CERT_PATH")
SERVER = """\
import sys
from sandbox import DockerSandbox, SandboxConfig
sandbox = DockerSandbox(sys.argv[1], SandboxConfig(pool_size=2))
sandbox.execute_sync("x = 1", session="one")
sandbox.execute_sync("1")
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """An engine that is reached through a forwarder.

    Args:
        here: Its socket file, for the test to look what is there.
        certificates: A folder with what docker calls `ca.pem`, `cert.pem` and `key.pem`, for TLS.
    """

    way: Forwarder
    image: str
    here: str
    certificates: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)

    def containers(self, label: str) -> list[str]:
        client = docker.DockerClient(base_url=self.here, timeout=60)
        try:
            return [each["Id"] for each in client.api.containers(all=True, filters={"label": label})]
        finally:
            client.close()

    def of(self, sandbox: DockerSandbox) -> list[str]:
        return self.containers(f"{INSTANCE}={sandbox._supply.instance}")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the docker settings of whoever runs the tests, nor those that were left by another test."""
    for name in (*BUNDLES, *(f"DOCKER_{name}" for name in VARIABLES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def tcp(docker_engine: Engine, docker_image: str) -> Iterator[Remote]:
    if not docker_engine.address.startswith("unix://"):
        pytest.skip("needs a Docker engine with a socket file")
    path = docker_engine.address.removeprefix("unix://")
    with Forwarder(lambda: unix_connection(path)) as way:
        yield Remote(
            way=way, image=docker_image, here=docker_engine.address, variables={"DOCKER_HOST": way.address}
        )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, docker_image_archive: Path) -> Iterator[Remote]:
    """An engine that itself speaks TLS, and only with those who have a certificate."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    options = [f"--tls{name}={folder}/server/{name}.pem" for name in ("cert", "key")]
    own = OwnEngine(
        f"--host=tcp://0.0.0.0:{PORT}", "--tlsverify", f"--tlscacert={folder}/server/ca.pem", *options
    )
    try:
        own.start()
    except NoEngine as error:
        own.remove()
        pytest.skip(str(error))
    try:
        client = docker.DockerClient(base_url=own.address, timeout=60)
        client.api.import_image_from_file(str(docker_image_archive), "python", "1")
        client.close()
        in_network_of(own, have_loopback)

        def connect() -> socket.socket:
            return in_network_of(own, lambda: socket.create_connection(("127.0.0.1", PORT)))

        with Forwarder(connect) as way:
            variables = {
                "DOCKER_HOST": way.address,
                "DOCKER_TLS_VERIFY": "1",
                "DOCKER_CERT_PATH": str(folder / "client"),
            }
            yield Remote(
                way=way,
                image="python:1",
                here=own.address,
                certificates=folder / "client",
                variables=variables,
            )
    finally:
        own.remove()


@pytest.fixture(params=["tcp", "tls"])
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """Where DOCKER_HOST leads to."""
    found: Remote = request.getfixturevalue(request.param)
    for name, value in found.variables.items():
        monkeypatch.setenv(name, value)
    return found


def make_certificates(folder: Path) -> None:
    """One authority for a server at 127.0.0.1 and a client, and a client of another authority."""
    authority, other = Authority(), Authority()
    for who, by, usage in (
        ("server", authority, ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", authority, ExtendedKeyUsageOID.CLIENT_AUTH),
        ("stranger", other, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        (folder / who).mkdir()
        (folder / who / "ca.pem").write_bytes(authority.certificate.public_bytes(PEM))
        by.certify(who, usage, folder / who)
    shutil.copytree(folder / "client", folder / "trusts another")
    (folder / "trusts another" / "ca.pem").write_bytes(other.certificate.public_bytes(PEM))


PEM = serialization.Encoding.PEM


class Authority:
    """Signs certificates that hold for a day."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = (
            self._about(self.name, self.key.public_key())
            .add_extension(constraints, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def certify(self, who: str, usage: x509.ObjectIdentifier, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = (
            self._about(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)]), key.public_key())
            .add_extension(names, critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        (folder / "cert.pem").write_bytes(certificate.public_bytes(PEM))
        plain = serialization.NoEncryption()
        (folder / "key.pem").write_bytes(
            key.private_bytes(PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
        )

    def _about(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
        )


def write_context(folder: Path, name: str, remote: Remote, *, is_current: bool = False) -> None:
    """What `docker context create` and `docker context use` write."""
    number = hashlib.sha256(name.encode()).hexdigest()
    meta = folder / "contexts" / "meta" / number
    meta.mkdir(parents=True)
    endpoint = {"Host": remote.way.address, "SkipTLSVerify": False}
    about = {"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}
    (meta / "meta.json").write_text(json.dumps(about))
    if remote.certificates is not None:
        shutil.copytree(remote.certificates, folder / "contexts" / "tls" / number / "docker")
    (folder / "config.json").write_text(json.dumps({"currentContext": name} if is_current else {}))


def until(true: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_calls_sessions_and_files_work(remote: Remote) -> None:
    with DockerSandbox(remote.image, CONFIG) as sandbox:
        result = sandbox.execute_sync(
            "import os\ndata = open('in', 'rb').read()\nopen('/tmp/out/copy', 'wb').write(data)\n"
            "print('x' * 50_000)\nlen(data)",
            files={"in": bytes(3_000_000)},
        )
        assert (result.value, len(result.stdout)) == ("3000000", 50_001)
        (artifact,) = result.artifacts
        assert artifact.data == bytes(3_000_000)
        sandbox.execute_sync("x = 41", session="s")
        assert sandbox.execute_sync("x + 1", session="s").value == "42"
        assert len(remote.of(sandbox)) >= 1  # or it would be another engine
    assert remote.of(sandbox) == []


def test_an_address_works_as_the_environment_does(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST")
    with DockerSandbox(remote.image, CONFIG, engine=remote.way.address) as sandbox:
        assert sandbox.execute_sync("6 * 7").value == "42"
        assert remote.of(sandbox)


def test_a_call_is_ended_in_time_and_its_session_goes_on(remote: Remote) -> None:
    with DockerSandbox(remote.image, CONFIG) as sandbox:
        sandbox.execute_sync("x = 41", session="s")
        began_s = time.monotonic()
        result = sandbox.execute_sync("while True: pass", session="s", timeout_seconds=0.5)
        assert result.ended_by is EndedBy.TIME
        assert time.monotonic() - began_s < 2.5
        assert sandbox.execute_sync("x + 1", session="s").value == "42"


async def test_a_call_can_be_cancelled_while_it_says_nothing_and_while_it_says_a_lot(remote: Remote) -> None:
    """Over TLS one thread reads while another one sends the word that ends the call."""
    talks = "import sys\nwhile True:\n    sys.stdout.write('x' * 100); sys.stdout.flush()"
    config = SandboxConfig(pool_size=1, max_output_bytes=20_000_000)
    async with DockerSandbox(remote.image, config) as sandbox:
        await sandbox.execute("x = 41", session="s")
        for code in ("import time; time.sleep(60)", *[talks] * 6):
            began_s = time.monotonic()
            with anyio.move_on_after(0.2) as scope:
                await sandbox.execute(code, session="s")
            assert scope.cancelled_caught
            assert time.monotonic() - began_s < 2.5
            assert (await sandbox.execute("x + 1", session="s")).value == "42"


def test_a_flood_of_output_is_ended(remote: Remote) -> None:
    with DockerSandbox(remote.image, CONFIG) as sandbox:
        result = sandbox.execute_sync("while True: print('x' * 1000)", session="s")
        assert result.ended_by is EndedBy.OUTPUT
        assert sandbox.execute_sync("1", session="s").success


def test_folders_are_refused(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    for config in (
        SandboxConfig(pool_size=1, working_dir=str(tmp_path / "work")),
        SandboxConfig(pool_size=1, mounts=(Mount(source=str(tmp_path / "work"), target="/data"),)),
    ):
        with DockerSandbox(remote.image, config) as sandbox:
            with pytest.raises(SandboxUnavailable, match="may be on another machine") as caught:
                sandbox.execute_sync("1")
            assert remote.way.address in str(caught.value)
            assert "on this machine" in caught.value.missing[0].remedy
            assert remote.of(sandbox) == []


def test_nothing_outlives_a_server_that_was_killed(remote: Remote) -> None:
    argv = [sys.executable, "-c", SERVER, remote.image]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == "ready\n"
            label = f"{OWNER}={process.pid}"
            assert until(lambda: len(remote.containers(label)) >= 3, WAIT_S)
            process.send_signal(signal.SIGKILL)
            process.wait(WAIT_S)
            assert until(lambda: not remote.containers(label), GONE_WITHIN_S)
        finally:
            process.kill()


def test_a_call_whose_connection_is_cut_dies_and_the_next_one_works(remote: Remote) -> None:
    with DockerSandbox(remote.image, CONFIG) as sandbox:
        sandbox.execute_sync("import threading", session="s")
        began_s = time.monotonic()
        with pytest.raises(SandboxDied):
            _during(remote.way.cut, lambda: sandbox.execute_sync("import time; time.sleep(60)", session="s"))
        assert time.monotonic() - began_s < 5
        assert sandbox.execute_sync("6 * 7").value == "42"
        assert until(lambda: len(remote.of(sandbox)) <= 1, GONE_WITHIN_S)


@pytest.mark.parametrize("remote", ["tls"], indirect=True)
def test_a_call_whose_connection_falls_silent_ends_in_its_time(remote: Remote) -> None:
    with DockerSandbox(remote.image, SandboxConfig(pool_size=1, timeout_seconds=1)) as sandbox:
        sandbox.execute_sync("1", session="s")
        (session,) = sandbox._sessions._sessions.values()
        container = session.container
        assert container is not None
        # The answer comes before its next process waits; in the silence nobody would hear of that.
        assert until(lambda: not container.link.is_quiet(), WAIT_S)
        with remote.way.held_up():
            began_s = time.monotonic()
            with pytest.raises(SandboxDied):
                sandbox.execute_sync("import time; time.sleep(60)", session="s")
            assert time.monotonic() - began_s < 1 + 2.5

        def works() -> bool:  # not at once where a container was asked for in the silence
            with contextlib.suppress(SandboxUnavailable):
                return sandbox.execute_sync("6 * 7").value == "42"
            return False

        assert until(works, WAIT_S)
        assert until(lambda: len(remote.of(sandbox)) <= 1, GONE_WITHIN_S)


@pytest.mark.parametrize("remote", ["tls"], indirect=True)
def test_descriptors_stay_as_many(remote: Remote) -> None:
    def ours() -> int:
        return len(os.listdir("/proc/self/fd")) - len(remote.way.sockets)

    with DockerSandbox(remote.image, CONFIG) as sandbox:
        sandbox.execute_sync("1")
        before = ours()
        for _ in range(12):
            assert sandbox.execute_sync("1").success
        # Connections that were asked something are kept for the next question, but not one for each call.
        assert until(lambda: ours() <= before + KEPT, GONE_WITHIN_S)


@pytest.mark.parametrize("client", ["stranger", "trusts another", None])
def test_who_cannot_show_who_they_are_is_refused_in_time(
    client: str | None, tls: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tls.certificates is not None
    if client is not None:
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tls.certificates.parent / client))
    began_s = time.monotonic()
    with DockerSandbox(tls.image, CONFIG, engine=tls.way.address) as sandbox:
        with pytest.raises(SandboxUnavailable) as caught:
            sandbox.execute_sync("1")
        reason = str(caught.value).casefold()
        assert "certificate" in reason or "https" in reason
        assert tls.way.address in reason
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("name", BUNDLES)
def test_authorities_of_the_web_are_not_those_of_an_engine(
    name: str, tls: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a variable is for who fetches pages; here it would shut out the engine, or let in another one."""
    assert tls.certificates is not None
    for variable, value in tls.variables.items():
        monkeypatch.setenv(variable, value)
    another = tls.certificates.parent / "trusts another"
    monkeypatch.setenv(name, str(another / "ca.pem"))
    with DockerSandbox(tls.image, CONFIG) as sandbox:
        assert sandbox.execute_sync("6 * 7").value == "42"
    monkeypatch.setenv(name, str(tls.certificates / "ca.pem"))
    monkeypatch.setenv("DOCKER_CERT_PATH", str(another))
    with (
        DockerSandbox(tls.image, CONFIG) as sandbox,
        pytest.raises(SandboxUnavailable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        sandbox.execute_sync("1")


@pytest.mark.parametrize("is_current", [False, True], ids=["by name", "current"])
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_context_leads_to_its_engine(
    kind: str,
    is_current: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remote: Remote = request.getfixturevalue(kind)
    write_context(tmp_path / "docker", "far away", remote, is_current=is_current)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    where = None if is_current else "far away"
    with DockerSandbox(remote.image, CONFIG, engine=where) as sandbox:
        assert sandbox.execute_sync("6 * 7").value == "42"
        assert remote.of(sandbox)


def test_a_context_that_the_environment_names_comes_before_the_current_one(
    tcp: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docker"
    write_context(folder, "far away", tcp)
    (folder / "config.json").write_text(json.dumps({"currentContext": "another"}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.setenv("DOCKER_CONTEXT", "far away")
    with DockerSandbox(tcp.image, CONFIG) as sandbox:
        assert sandbox.execute_sync("6 * 7").value == "42"
        assert tcp.of(sandbox)


@pytest.mark.parametrize("variable", ["DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"])
def test_certificates_without_a_host_leave_the_current_context(
    variable: str, tcp: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_context(tmp_path / "docker", "far away", tcp, is_current=True)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv(variable, str(tmp_path))
    with DockerSandbox(tcp.image, CONFIG) as sandbox:
        assert sandbox.execute_sync("6 * 7").value == "42"
        assert tcp.of(sandbox)


@pytest.mark.parametrize("how", ["by name", "variable", "current"])
def test_a_context_that_is_not_there_is_not_taken_for_this_machine(
    how: str, tcp: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docker"
    write_context(folder, "far away", tcp)
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    sockets = (*engine._DEFAULT_SOCKETS, tcp.here.removeprefix("unix://"))
    monkeypatch.setattr(engine, "_DEFAULT_SOCKETS", sockets)
    with DockerSandbox(tcp.image, CONFIG) as sandbox:
        assert sandbox.execute_sync("6 * 7").value == "42"  # it is there, so it could be taken
    if how == "variable":
        monkeypatch.setenv("DOCKER_CONTEXT", "far awya")
    if how == "current":
        (folder / "config.json").write_text(json.dumps({"currentContext": "far awya"}))
    where = "far awya" if how == "by name" else None
    with (
        DockerSandbox(tcp.image, CONFIG, engine=where) as sandbox,
        pytest.raises(SandboxUnavailable, match="docker context"),
    ):
        sandbox.execute_sync("1")


def _during(act: Callable[[], None], work: Callable[[], object]) -> None:
    """Do something half a second into other work."""

    timer = threading.Timer(0.5, act)
    timer.start()
    try:
        work()
    finally:
        timer.join()
