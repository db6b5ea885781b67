"""Machines on which something does not work: the doctor says which thing, and what to change."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.docker_engine import Engine
from tests.doctor.conftest import (
    Doctor,
    Serve,
    an_engine,
    engine_answers,
    reset,
    without_user_namespaces,
)


def test_without_user_namespaces_the_setting_to_change_is_named(doctor: Doctor) -> None:
    """A namespace in which no other can be made, as a host with user.max_user_namespaces=0."""
    wanted = ("--python-minimum-level", "L4", "--python-backend", "linux")
    said = doctor(*wanted, through=without_user_namespaces())
    assert said.code == 1
    assert not said.data["holds"]
    backend = said.one("backend")
    assert backend["state"] == "problem"
    assert "refuses every call" in backend["found"]
    assert "user.max_user_namespaces" in backend["remedy"]
    why = [finding for finding in said.findings("embedded") if finding["name"].startswith("why not L4")]
    assert why
    assert any("user.max_user_namespaces" in finding["remedy"] for finding in why)
    assert "user.max_user_namespaces" in said.one("kernel", "user namespaces")["remedy"]


# --- Docker -----------------------------------------------------------------------------------


def test_an_engine_that_hangs_is_told_in_time(no_python: Doctor, unix_server: Serve) -> None:
    def say_nothing(connection: socket.socket) -> None:
        with connection:
            while connection.recv(4096):
                pass

    address = unix_server(say_nothing)
    began_s = time.monotonic()
    said = no_python(env={"DOCKER_HOST": address})
    assert time.monotonic() - began_s < 25
    finding = said.one("docker")
    assert finding["state"] in ("warning", "unknown")
    assert "does not answer" in finding["found"] or "within" in finding["found"]
    assert said.code == 0, "nothing needs it here"


@pytest.mark.parametrize("kind", ["resets", "talks nonsense", "is absent"])
def test_an_engine_that_fails_is_told(
    kind: str, no_python: Doctor, unix_server: Serve, tmp_path: Path
) -> None:
    def nonsense(connection: socket.socket) -> None:
        with connection, contextlib.suppress(BrokenPipeError):  # one look at the socket may be all
            connection.sendall(b"220 mail.example ESMTP\r\n")

    match kind:
        case "resets":
            address = unix_server(reset)
        case "talks nonsense":
            address = unix_server(nonsense)
        case _:
            address = f"unix://{tmp_path}/nothing.sock"
    said = no_python(env={"DOCKER_HOST": address})
    finding = said.one("docker")
    assert finding["state"] == "warning"
    assert "DOCKER_HOST" in finding["found"]
    assert finding["remedy"]
    assert said.code == 0


def test_where_docker_is_wanted_and_absent_the_minimum_does_not_hold(doctor: Doctor, tmp_path: Path) -> None:
    said = doctor("--python-backend", "docker", env={"DOCKER_HOST": f"unix://{tmp_path}/nothing.sock"})
    assert said.code == 1
    assert said.one("docker")["state"] == "problem"
    assert said.one("backend")["state"] in ("problem", "unknown")


def test_a_context_that_does_not_exist_is_named(no_python: Doctor) -> None:
    said = no_python(env={"DOCKER_CONTEXT": "far-away"})
    assert "far-away" in said.one("docker")["found"]
    assert "docker context ls" in said.one("docker")["remedy"]


AN_IMAGE = {"Id": "sha256:0", "Architecture": "amd64", "Os": "linux", "Size": 130 * 1024**2}


@pytest.mark.parametrize(
    ("engine", "name", "state", "word"),
    [
        ({"runc": "1.1.12", "commit": "v1.1.12-0-g51d5e946"}, "runc", "warning", "CVE-2025-31133"),
        ({"runc": "1.1.5+ds1", "commit": "1.1.5+ds1-1+deb12u1"}, "runc", "unknown", "distribution"),
        ({}, "runc", "ok", "1.3.3"),
        ({"podman": "runc-1.2.4-2.fc42.x86_64", "runc": "1.2.4"}, "runc", "unknown", "distribution"),
        ({"podman": "Unknown", "runc": "1.2.4"}, "runc", "warning", "CVE-2025-31133"),
        ({"podman": "Unknown"}, "engine", "ok", "Podman"),
        ({"platform": "Docker Desktop 4.43.1 (198352)"}, "Docker Desktop", "warning", "CVE-2025-9074"),
        ({"platform": "Docker Desktop 4.51.0 (210443)"}, "Docker Desktop", "ok", "4.51.0"),
        ({}, "image", "warning", "nothing is pulled"),
        ({"image": AN_IMAGE}, "image", "ok", "130 MiB"),
        ({"image": AN_IMAGE | {"Architecture": "arm64"}}, "image", "warning", "arm64"),
        ({}, "users", "ok", "L3"),
        ({"security": ("name=seccomp,profile=builtin", "name=rootless")}, "users", "ok", "rootless"),
        ({"security": ("name=apparmor",)}, "seccomp", "warning", "no seccomp"),
        ({}, "cgroups", "ok", "version 2"),
        ({"CgroupDriver": "none"}, "cgroups", "warning", "no limit"),
        ({"Runtimes": {"runc": {}, "runsc": {}}}, "runtimes", "ok", "runsc"),
    ],
)
def test_what_an_engine_says_of_itself_is_judged(
    engine: dict[str, Any], name: str, state: str, word: str, no_python: Doctor, unix_server: Serve
) -> None:
    address = unix_server(engine_answers(an_engine(**engine)))
    said = no_python(env={"DOCKER_HOST": address})
    found = [finding for finding in said.findings("docker") if finding["name"] == name]
    assert len(found) == 1, said.findings("docker")
    assert found[0]["state"] == state
    assert word in found[0]["found"]


def test_a_runtime_that_the_engine_does_not_have_is_a_problem(no_python: Doctor, unix_server: Serve) -> None:
    address = unix_server(engine_answers(an_engine()))
    finding = no_python("--python-engine", address, "--python-runtime", "runsc").one("docker", "runtimes")
    assert finding["state"] == "problem"
    assert "daemon.json" in finding["remedy"]


def test_a_real_engine_is_described(no_python: Doctor, docker_engine: Engine) -> None:
    said = no_python(env={"DOCKER_HOST": docker_engine.address})
    names = {finding["name"]: finding for finding in said.findings("docker")}
    assert {"engine", "users", "cgroups", "runtimes", "image"} <= set(names)
    assert names["engine"]["state"] == "ok"
    assert docker_engine.address in names["engine"]["found"]


# --- HTTP -------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_a_problem_for_http_only(no_python: Doctor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        said = no_python("--transport", "http", "--port", port)
        assert said.code == 1
        assert said.one("listener", "port")["state"] == "problem"
        assert "in use" in said.one("listener", "port")["found"]
        assert no_python("--port", port).code == 0
    said = no_python("--transport", "http", "--port", port)
    assert said.one("listener", "port")["state"] == "ok"
    assert said.one("listener", "tokens")["state"] == "warning"


def test_a_listener_on_the_network_without_tokens_is_a_problem(no_python: Doctor, tmp_path: Path) -> None:
    network = ("--transport", "http", "--host", "0.0.0.0", "--port", "0")
    said = no_python(*network)
    assert said.code == 1
    assert said.one("listener", "tokens")["state"] == "problem"
    with_token = no_python(*network, env={"MCP_TOOLS_TOKEN": "a-token-of-enough-characters"})
    assert with_token.code == 0
    assert with_token.one("listener", "tokens")["state"] == "warning"
    tokens = tmp_path / "tokens"
    tokens.write_text("alice:a-token-of-enough-characters\n")
    tokens.chmod(0o644)
    said = no_python(*network, "--token-file", str(tokens))
    assert said.code == 1
    assert "chmod 600" in said.one("listener", "tokens")["found"]


def test_a_host_that_nobody_has_is_a_problem(no_python: Doctor) -> None:
    said = no_python(
        "--transport", "http", "--host", "192.0.2.1", "--port", "0", env={"MCP_TOOLS_TOKEN": "x" * 32}
    )
    assert said.code == 1
    assert "does not have that address" in said.one("listener", "port")["found"]


# --- Folders ----------------------------------------------------------------------------------


def roots(*folders: object) -> list[str]:
    return [word for folder in folders for word in ("--root", str(folder))]


def test_a_root_that_is_missing_or_a_file_is_a_problem(no_python: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "good").mkdir()
    said = no_python(*roots(tmp_path / "good", tmp_path / "missing", tmp_path / "file"))
    assert said.code == 1
    assert said.one("roots", "/good")["state"] == "ok"
    assert said.one("roots", "/missing")["state"] == "problem"
    assert "is no folder" in said.one("roots", "/file")["found"]


def test_roots_that_are_too_much_are_warned_of(
    no_python: Doctor, environ: dict[str, str], tmp_path: Path
) -> None:
    home = Path(environ["HOME"])
    (home / ".ssh").mkdir()
    (home / ".config/mcp_tools").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/")
    for folder, word in (
        ("/", "whole machine"),
        (tmp_path / "link", "whole machine"),
        (home, "home folder"),
        (home.parent, "holds your home folder"),
        (home / ".ssh", "keys"),
        (home / ".config", "decide what is allowed"),
        ("/etc", "system"),
    ):
        said = no_python(*roots(folder), "--no-audit")  # its log would be in some of them
        finding = said.findings("roots")[0]
        assert finding["state"] == "warning", finding
        assert word in finding["found"]
        assert said.code == 0


def test_roots_that_overlap_are_named(no_python: Doctor, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "same").symlink_to(tmp_path / "a")
    said = no_python(*roots(tmp_path / "a", tmp_path / "a/b", tmp_path / "same"))
    found = [finding["found"] for finding in said.findings("roots") if " and " in finding["name"]]
    assert len(found) == 3
    assert any("same folder" in text for text in found)


def test_a_root_that_others_may_change_or_nobody_may_write(no_python: Doctor, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "every user" in no_python(*roots(tmp_path / "open")).findings("roots")[0]["found"]
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o555)
        assert "not written" in no_python(*roots(tmp_path / "closed")).findings("roots")[0]["found"]


# --- Settings ---------------------------------------------------------------------------------


def test_everything_that_is_wrong_with_a_file_is_said_at_once(no_python: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('rots = ["/tmp"]\nport = "eighty"\nlog_level = "info"\nhosst = "x"\n')
    said = no_python("--config", str(file))
    assert said.code == 1
    finding = said.one("settings", "mine.toml")
    assert finding["state"] == "problem"
    for word in ("rots is not a setting; did you mean roots?", "hosst", "port is 'eighty'"):
        assert word in finding["found"]


def test_a_file_that_cannot_be_parsed_is_a_finding_and_the_rest_is_examined(
    no_python: Doctor, environ: dict[str, str]
) -> None:
    file = Path(environ["HOME"]) / ".config/mcp_tools/mcp_tools.toml"
    file.parent.mkdir(parents=True)
    file.write_text("roots = [\n")
    said = no_python()
    assert said.code == 1
    assert "not valid TOML" in said.one("settings")["found"]
    assert said.findings("dependencies")


def test_files_and_variables_are_named_without_their_values(
    no_python: Doctor, environ: dict[str, str], tmp_path: Path
) -> None:
    file = Path(environ["HOME"]) / ".config/mcp_tools/mcp_tools.toml"
    file.parent.mkdir(parents=True)
    file.write_text('deny = ["write_file"]\n')
    (tmp_path / "mcp_tools.toml").write_text('deny = ["move_file"]\n')
    said = no_python(env={"MCP_TOOLS_LOG_LEVEL": "debug"})
    assert said.code == 0
    names = [finding["name"] for finding in said.findings("settings")]
    assert names[:3] == [str(file), str(tmp_path / "mcp_tools.toml"), "the environment"]
    assert "debug" not in said.out
    assert "2 deny" in said.one("settings", "rules")["found"]


def test_a_project_that_wants_more_than_it_may_is_a_problem(no_python: Doctor, tmp_path: Path) -> None:
    (tmp_path / "mcp_tools.toml").write_text('allow = ["write_file"]\n')
    said = no_python()
    assert said.code == 1
    assert "cannot set allow" in " ".join(finding["found"] for finding in said.findings("settings"))


def test_a_variable_that_is_misspelt_is_a_problem(no_python: Doctor) -> None:
    said = no_python(env={"MCP_TOOLS_ROTS": "/tmp"})
    assert said.code == 1
    assert "did you mean MCP_TOOLS_ROOTS?" in said.one("settings", "environment")["found"]


def test_settings_that_others_may_change_are_warned_of(no_python: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("")
    file.chmod(0o666)
    assert "every user" in no_python("--config", str(file)).one("settings", "mine.toml")["found"]


def test_packages_that_do_not_exist_are_a_problem(doctor: Doctor, tmp_path: Path) -> None:
    said = doctor("--python-packages", str(tmp_path / "nothing"))
    assert said.code == 1
    assert "nothing" in said.one("backend")["found"]


def test_a_real_container_is_what_execute_python_would_run_in(
    doctor: Doctor, docker_engine: Engine, docker_image: str
) -> None:
    chosen = ("--python-backend", "docker", "--python-engine", docker_engine.address)
    said = doctor(*chosen, "--python-image", docker_image)
    assert said.one("docker", "image")["state"] == "ok"
    assert said.one("backend")["state"] == "ok", said.one("backend")
    assert f"containers of {docker_image} at L" in said.one("backend")["found"]
    assert said.code == 0
    without = doctor(*chosen, "--python-image", "mcp-tools-there-is-no-such-image:1")
    assert without.code == 1
    assert "docker pull" in without.one("backend")["remedy"]
    assert without.one("docker", "image")["state"] == "problem"


def test_a_log_that_tools_could_change_is_a_problem(no_python: Doctor, tmp_path: Path) -> None:
    inside = ("--root", str(tmp_path), "--audit-log", str(tmp_path / "log.jsonl"))
    said = no_python(*inside)
    assert said.code == 1
    assert "which tools may change" in said.one("audit", "audit log")["found"]
    assert not (tmp_path / "log.jsonl").exists()
    said = no_python("--no-audit")
    assert said.code == 0
    assert said.one("audit", "audit log")["state"] == "warning"


def test_a_log_that_is_not_there_yet_is_not_made(no_python: Doctor, tmp_path: Path) -> None:
    said = no_python("--audit-log", str(tmp_path / "new" / "log.jsonl"))
    assert said.code == 0
    assert "made at the first start" in said.one("audit", "audit log")["found"]
    assert not (tmp_path / "new").exists()


def test_limits_are_said_as_they_are_understood(no_python: Doctor) -> None:
    said = no_python("--limit", "read_* per principal: 5 calls/minute", "--limit", "*: never")
    assert said.code == 1
    assert said.one("limits", "limit 1")["state"] == "ok"
    assert "'*: never'" in said.one("limits", "limit 2")["found"]
    assert no_python().one("limits", "limits")["state"] == "ok"


def _serve(environ: dict[str, str], *flags: str) -> int:
    """Start a server that has no client, and say how it ended."""
    argv = [sys.executable, "-m", "mcp_tools", "serve", "--no-python", *flags]
    done = subprocess.run(
        argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    return done.returncode


_TIP = '{"v":1,"seq":9,"hash":"sha256:00"}\n'


@pytest.mark.parametrize(
    ("anchor", "text", "said"),
    [
        pytest.param("other/anchor", _TIP, "does not hold record 9", id="names a record that is not there"),
        pytest.param("other/anchor", "no anchor", "no anchor of an audit log", id="no anchor"),
        pytest.param("log/anchor", None, "the log's own folder", id="beside the log"),
        pytest.param("root/anchor", None, "which tools may change", id="in a root"),
        pytest.param("root/new/anchor", None, "which tools may change", id="in a new folder in a root"),
        pytest.param("file/anchor", None, "cannot be kept in", id="in a file"),
    ],
)
def test_an_anchor_that_a_server_refuses_is_a_problem(
    no_python: Doctor, environ: dict[str, str], tmp_path: Path, anchor: str, text: str | None, said: str
) -> None:
    for folder in ("log", "other", "root"):
        (tmp_path / folder).mkdir(mode=0o700)
    (tmp_path / "file").touch()
    log = ("--audit-log", str(tmp_path / "log" / "log.jsonl"), "--root", str(tmp_path / "root"))
    assert _serve(environ, *log) == 0
    if text is not None:
        (tmp_path / anchor).write_text(text)
    flags = (*log, "--audit-anchor", str(tmp_path / anchor))
    found = no_python(*flags).one("audit", "anchor")
    assert (found["state"], said in found["found"]) == ("problem", True), found
    assert sorted(os.listdir(tmp_path / "root")) == []
    assert _serve(environ, *flags) == 2


def test_an_anchor_that_a_server_keeps_is_not(
    no_python: Doctor, environ: dict[str, str], tmp_path: Path
) -> None:
    flags = ("--audit-log", str(tmp_path / "log" / "l"), "--audit-anchor", str(tmp_path / "new" / "anchor"))
    assert "begun at the first start" in no_python(*flags).one("audit", "anchor")["found"]
    assert not (tmp_path / "new").exists()
    assert _serve(environ, *flags) == 0
    found = no_python(*flags).one("audit", "anchor")
    assert (found["state"], "the log holds record" in found["found"]) == ("ok", True), found


def test_a_log_that_would_be_made_in_a_root_is_a_problem(no_python: Doctor, tmp_path: Path) -> None:
    said = no_python("--root", str(tmp_path), "--audit-log", str(tmp_path / "new" / "log.jsonl"))
    assert "which tools may change" in said.one("audit", "audit log")["found"]


@pytest.mark.parametrize("kind", ["link", "text", "folder"])
def test_a_place_for_limits_that_a_server_refuses_is_a_problem(
    no_python: Doctor, environ: dict[str, str], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "limits"
    match kind:
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "text":
            path.write_text("not a database, whatever its name says\n" * 100)
        case _:
            path.mkdir()
    flags = ("--limits-store", str(path))
    found = no_python(*flags).one("limits", "where")
    assert (found["state"], "does not start" in found["found"]) == ("problem", True), found
    assert _serve(environ, *flags) == 2


def test_a_place_for_totals_that_cannot_be_is_a_warning(no_python: Doctor, environ: dict[str, str]) -> None:
    folder = Path(environ["HOME"]) / ".local" / "state" / "mcp_tools"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "limits.sqlite3").mkdir()
    assert no_python().one("limits", "where")["state"] == "warning"
    assert _serve(environ) == 0
    assert no_python("--limit", "*: 1 call / day").one("limits", "where")["state"] == "problem"
