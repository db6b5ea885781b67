"""The Docker (or Podman) engine: where it is, whether it answers, and what its containers are worth."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mcp_tools.doctor.model import Finding, State, Subject
from mcp_tools.doctor.versions import known_hole

if TYPE_CHECKING:
    from sandbox.docker.engine import Engine

ANSWER_S: Final = 4.0
"""How long the engine may think about one question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an engine may be.

    Args:
        url: As `DOCKER_HOST` has it.
        why: What named it, for a person.
    """

    url: str
    why: str


class NoSuchContext(Exception):
    """There is no Docker context of this name."""


def places(subject: Subject) -> Iterator[Place]:
    """Every place where `docker` would look, and then Podman's, in order.

    Raises:
        NoSuchContext: One is named that does not exist.
    """
    environ, given = subject.environ, subject.settings.python_engine
    if given is not None:
        url = given if "://" in given else context_url(given, subject)
        yield Place(url=url, why="python_engine")
        return
    if host := environ.get("DOCKER_HOST"):
        yield Place(url=host, why="DOCKER_HOST")
        return
    name = environ.get("DOCKER_CONTEXT") or _current_context(subject)
    if name and name != "default":
        yield Place(url=context_url(name, subject), why=f"the Docker context {name}")
        return
    if subject.platform == "win32":
        yield Place(url="npipe:////./pipe/docker_engine", why="the default pipe")
        return
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    for path, why in (
        ("/var/run/docker.sock", "the default socket"),
        (os.path.join(runtime, "docker.sock"), "the socket of rootless Docker"),
        (os.path.join(subject.home, ".docker/run/docker.sock"), "Docker Desktop's socket"),
        (os.path.join(runtime, "podman/podman.sock"), "Podman's socket"),
        ("/run/podman/podman.sock", "Podman's socket"),
    ):
        if os.path.lexists(path):
            yield Place(url=f"unix://{path}", why=why)


def _docker_folder(subject: Subject) -> str:
    return subject.environ.get("DOCKER_CONFIG") or os.path.join(subject.home, ".docker")


def _current_context(subject: Subject) -> str:
    found = _read_json(os.path.join(_docker_folder(subject), "config.json")).get("currentContext", "")
    return found if isinstance(found, str) else ""


def context_url(name: str, subject: Subject) -> str:
    """Return the engine of a Docker context.

    Raises:
        NoSuchContext: It does not exist, or names no engine.
    """
    if name == "default":
        pipe = subject.platform == "win32"
        return "npipe:////./pipe/docker_engine" if pipe else "unix:///var/run/docker.sock"
    folder = hashlib.sha256(name.encode()).hexdigest()
    meta = _read_json(os.path.join(_docker_folder(subject), "contexts", "meta", folder, "meta.json"))
    endpoint = meta.get("Endpoints", {})
    host = endpoint.get("docker", {}).get("Host") if isinstance(endpoint, dict) else None
    if not isinstance(host, str):
        raise NoSuchContext(name)
    return host


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- Asking it --------------------------------------------------------------------------------


def docker(subject: Subject) -> Sequence[Finding]:
    """Find the engine that the Docker sandbox would use, and ask it what its containers would be worth."""
    from sandbox.docker.engine import Engine, EngineFault
    from sandbox.errors import SandboxUnavailable

    is_wanted = subject.settings.python_enabled and subject.settings.python_backend == "docker"
    bad = State.PROBLEM if is_wanted else State.WARNING
    try:
        known = list(places(subject))
    except NoSuchContext as error:
        return [
            Finding(
                name="engine",
                state=bad,
                found=f"there is no Docker context {error}",
                remedy="`docker context ls` shows them; change python_engine, DOCKER_CONTEXT or "
                "`docker context use`.",
            )
        ]
    if not known:
        return [
            Finding(
                name="engine",
                state=State.PROBLEM if is_wanted else State.OK,
                found="there is no Docker and no Podman here"
                + ("" if is_wanted else "; the embedded sandbox needs none"),
                remedy="Install Docker or Podman, or set python_backend to linux." if is_wanted else "",
            )
        ]
    try:
        engine = Engine(subject.settings.python_engine, ping_s=ANSWER_S, answer_s=ANSWER_S)
    except SandboxUnavailable as refusal:
        return [_refusal(known[0], each.reason, each.remedy, bad) for each in refusal.missing]
    place = next(
        (each for each in known if each.url == engine.address),
        Place(url=engine.address, why=known[0].why),
    )
    try:
        version, info = engine.ask("version", False), engine.ask("info")
        if not isinstance(version, dict) or not isinstance(info, dict):
            return [_refusal(place, "what answers there is no container engine", "Set another.", bad)]
        return [
            *_about(place, version, info),
            _image(engine, info, subject, bad),
            _runtime(info, subject),
        ]
    except EngineFault as fault:
        return [_refusal(place, str(fault), "Restart the engine, and see what its log says.", bad)]
    finally:
        engine.close()


def _refusal(place: Place, reason: str, remedy: str, bad: State) -> Finding:
    return Finding(name=f"engine at {place.url}", state=bad, found=f"{place.why}: {reason}", remedy=remedy)


def _about(place: Place, version: Mapping[str, Any], info: Mapping[str, Any]) -> list[Finding]:
    components = {
        each.get("Name"): each for each in version.get("Components") or () if isinstance(each, dict)
    }
    product = "Podman" if any("podman" in str(name).lower() for name in components) else "Docker"
    desktop = str((version.get("Platform") or {}).get("Name") or "")
    shown = f"{product} {version.get('Version', '?')} (API {version.get('ApiVersion', '?')})"
    found = [
        Finding(
            name="engine",
            state=State.OK,
            found=f"{shown} at {place.url}, from {place.why}, on {info.get('OperatingSystem', '?')}",
        )
    ]
    found += _open_to_the_network(place.url)
    if desktop.startswith("Docker Desktop") and (hole := known_hole("Docker Desktop", desktop.split()[2])):
        found.append(hole)
    runc = components.get("runc") or components.get("OCI Runtime (runc)")  # Docker's name, and Podman's
    if runc:
        details = runc.get("Details") or {}
        number = str(runc.get("Version", "")).removeprefix("runc version ").partition("\n")[0]
        build = str(details.get("Package") or details.get("GitCommit") or "")
        hole = known_hole("runc", number, build)
        found += [hole] if hole else []
    return found + _walls(info)


def _open_to_the_network(url: str) -> list[Finding]:
    parts = urlsplit(url)
    if parts.scheme not in ("tcp", "http") or parts.port == 2376:
        return []
    where = "this machine" if parts.hostname in ("localhost", "127.0.0.1", "::1") else "the network"
    return [
        Finding(
            name="engine's door",
            state=State.WARNING,
            found=f"it listens without TLS: whoever reaches it from {where} can do anything on its host",
            remedy="Use its socket, ssh:// or TLS.",
        )
    ]


def _walls(info: Mapping[str, Any]) -> list[Finding]:
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    names = {part.partition("name=")[2].partition(",")[0] for part in options}
    found = []
    if names & {"rootless", "userns"}:
        kind = "rootless" if "rootless" in names else "userns-remap"
        found.append(
            Finding(name="users", state=State.OK, found=f"{kind}: root in a container is nobody outside")
        )
    else:
        found.append(
            Finding(
                name="users",
                state=State.OK,
                found="containers have the host's users, which counts as L3; a rootless engine, userns-remap "
                "or the runtime runsc would be L4",
            )
        )
    if "seccomp" not in names or any("profile=unconfined" in option for option in options):
        found.append(
            Finding(
                name="seccomp",
                state=State.WARNING,
                found="the engine has no seccomp profile",
                remedy="Use an engine with seccomp, and keep its default profile.",
            )
        )
    cgroup, driver = str(info.get("CgroupVersion") or "?"), str(info.get("CgroupDriver") or "?")
    if driver == "none":
        found.append(
            Finding(
                name="cgroups",
                state=State.WARNING,
                found="the engine has none, so memory and processes of containers have no limit",
                remedy="Boot with cgroup v2 and systemd, and delegate its controllers to this user.",
            )
        )
    else:
        found.append(Finding(name="cgroups", state=State.OK, found=f"version {cgroup}, by {driver}"))
    found += [
        Finding(
            name=f"the engine's own warning {count}",
            state=State.WARNING,
            found=str(warning),
            remedy="See what the engine's manual says of it.",
        )
        for count, warning in enumerate((info.get("Warnings") or ())[:8], start=1)
        if "memory" in str(warning) or "pids" in str(warning) or "cpu" in str(warning)
    ]
    return found


def _runtime(info: Mapping[str, Any], subject: Subject) -> Finding:
    known = info.get("Runtimes") or {}
    have = sorted(str(name) for name in known if not str(name).startswith("io.containerd."))
    default, wanted = info.get("DefaultRuntime") or "?", subject.settings.python_runtime
    shown = f"{', '.join(have) or 'none is named'}; the default is {default}"
    if wanted is None or wanted in known:
        return Finding(
            name="runtimes", state=State.OK, found=shown + (f"; {wanted} is used" if wanted else "")
        )
    return Finding(
        name="runtimes",
        state=State.PROBLEM,
        found=f"python_runtime is {wanted}, which the engine does not have: {shown}",
        remedy=f"Install {wanted} and name it in the engine's daemon.json, or change python_runtime.",
    )


def _image(engine: Engine, info: Mapping[str, Any], subject: Subject, bad: State) -> Finding:
    from sandbox.docker.engine import EngineFault

    name = subject.settings.python_image
    try:
        image = engine.ask("inspect_image", name)
    except EngineFault as fault:
        if fault.status != 404:
            raise
        return Finding(
            name="image",
            state=bad,
            found=f"{name} is not there, and nothing is pulled during a call",
            remedy=f"docker pull {name}, or mcp-tools sandbox build-image",
        )
    ours, theirs = _machine(str(image.get("Architecture", ""))), _machine(str(info.get("Architecture", "")))
    size = f"{int(image.get('Size') or 0) / 1024**2:.0f} MiB"
    if ours and theirs and ours != theirs:
        return Finding(
            name="image",
            state=bad,
            found=f"{name} is for {ours}, and the engine's machine is {theirs}",
            remedy=f"docker pull --platform linux/{theirs} {name}",
        )
    return Finding(
        name="image", state=State.OK, found=f"{name} is there ({size}, {ours or 'unknown machine'})"
    )


def _machine(name: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(name, name)
