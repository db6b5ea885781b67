"""The container engine: finding it, asking it, and saying what is wrong with it. Every method may block."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox.docker.client import client_class
from sandbox.errors import Missing, SandboxUnavailable
from sandbox.types import IsolationLevel

if TYPE_CHECKING:
    Progress = Callable[[str], None]

logger = logging.getLogger(__name__)

_DEFAULT_SOCKETS = ("/var/run/docker.sock",)
_OWN_KERNEL = ("runsc", "kata", "gvisor")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_PULL_QUIET_S = 120.0  # between two lines of progress
_REMOVE_S = 5.0
_MAX_WARNINGS = 20  # of one connection that are logged
_WARNED_LIMITS = {"max_memory_mb": ("memory", "swap"), "max_processes": ("pids",)}
_LINES = {"Pulling fs layer", "Download complete", "Pull complete"}  # of progress; the rest repeats itself


class EngineFault(Exception):
    """The engine did not do what it was asked to; the text says why, `status` what HTTP said."""

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an engine can do, asked once for each connection.

    Args:
        image_id: The image by its content, so that a tag that moves changes nothing.
        volumes: Folders that the image declares as volumes.
        runtime: What containers run under.
        level: What that makes of a call.
        missing: Why it is not more.
        not_enforced: Limits of the configuration that this engine cannot enforce.
        has_own_kernel: Whether the runtime gives containers a kernel of their own.
        is_podman: Whether it is Podman, which knows fewer options than Docker.
    """

    image_id: str
    volumes: tuple[str, ...]
    runtime: str
    level: IsolationLevel
    missing: tuple[Missing, ...]
    not_enforced: tuple[str, ...]
    has_own_kernel: bool = False
    is_podman: bool = False


def unavailable(step: str, reason: str, remedy: str, level: str = "L3") -> SandboxUnavailable:
    """The error for something that keeps containers from running here."""
    found = Missing(level=level, step=step, reason=reason, remedy=remedy)
    return SandboxUnavailable("the Docker sandbox cannot run here", (found,))


class Engine:
    """A connection to an engine.

    Args:
        where: A URL, the name of a docker context, or `None` for what the `docker` command would take.
        answer_s: How long the engine may take for one answer, to its last byte.
        ping_s: How long it may take to show that it is there, if less.

    Raises:
        SandboxUnavailable: There is no SDK, or no engine that answers.
    """

    def __init__(self, where: str | None, *, answer_s: float, ping_s: float | None = None) -> None:
        try:
            import docker  # noqa: F401
        except ImportError as error:
            raise unavailable("docker SDK", str(error), "Install the Python package docker.") from error
        self.address = ""
        self._warned: set[str] = set()
        try:
            options = _options(where)
            self.address = str(options.get("base_url") or "unix:///var/run/docker.sock")
            self._limit = threading.local()
            self._limit.seconds = ping_s or answer_s
            self._client = client_class(self._limit)(timeout=answer_s, **options)
            self._limit.seconds = None
        except EngineFault as fault:
            raise self._no_engine(fault) from fault
        except Exception as error:
            raise self._no_engine(error) from error

    def _no_engine(self, error: Exception) -> SandboxUnavailable:
        remedy = "Start Docker or Podman, or set DOCKER_HOST to where its engine listens."
        if "permission denied" in _text_of(error).casefold():
            remedy = (
                f"Let this user use {self.address}: add it to the group docker, or run a rootless engine."
            )
        return unavailable(f"connect to {self.address or 'an engine'}", _text_of(error), remedy)

    @property
    def is_local(self) -> bool:
        """Whether folders of this machine can be mounted there."""
        return self.address.startswith(("unix://", "npipe://", "http+unix://", "/"))

    def ask(self, method: str, *arguments: Any, within_s: float | None = None, **options: Any) -> Any:
        """Call a method of the SDK's low-level client.

        Args:
            within_s: For each of its answers, instead of `answer_s`; for each wait of one that is streamed.

        Raises:
            EngineFault: With what went wrong, whatever that was.
        """
        self._limit.seconds = within_s
        try:
            return getattr(self._client, method)(*arguments, **options)
        except (
            Exception
        ) as error:  # of the SDK, requests, urllib3, ssl, json or the socket: all mean the same
            response = getattr(error, "response", None)
            status = getattr(response, "status_code", None)
            raise EngineFault(_text_of(error), status if isinstance(status, int) else None) from error

    def host_config(self, **options: Any) -> Any:
        return self.ask("create_host_config", **options)

    def create(self, image: str, *, runtime: str | None, host: dict[str, Any], **options: Any) -> set[str]:
        """Make a container; the limits of the configuration that the engine says it drops.

        Raises:
            EngineFault: There is none, as far as the engine says.
        """
        if runtime is not None:
            host = {**host, "runtime": runtime}
        made = self.ask("create_container", image, host_config=self.host_config(**host), **options)
        said = made.get("Warnings") if isinstance(made, dict) else None
        warnings = [_one_line(each) for each in said] if isinstance(said, list) else []
        for each in warnings:
            if each not in self._warned and len(self._warned) < _MAX_WARNINGS:
                self._warned.add(each)
                logger.warning("the container engine warns: %s", each)
        return dropped_limits(warnings)

    def remove(self, container: str, *, within_s: float = _REMOVE_S) -> bool:
        """End a container and remove it; true if it is gone or goes. Never raises."""
        try:
            self.ask("remove_container", container, v=True, force=True, within_s=within_s)
        except EngineFault as fault:
            return fault.status in {404, 409}
        return True

    def kill(self, container: str, *, within_s: float | None = None) -> bool:
        """End the processes of a container; true if there are none. Never raises."""
        try:
            self.ask("kill", container, within_s=within_s)
        except EngineFault as fault:
            return fault.status in {404, 409}
        return True

    def close(self) -> None:
        self._client.close()

    def facts(self, image: str, runtime: str | None, *, pull: str, on_progress: Progress | None) -> Facts:
        """Find out what this engine can do with this image.

        Raises:
            SandboxUnavailable: It cannot run it: no image, another architecture, no such runtime.
        """
        try:
            info = self.ask("info")
            is_podman = _is_podman(self.ask("version"))
            found = self._image(image, pull, on_progress)
        except EngineFault as fault:
            raise self._no_engine(fault) from fault
        if not isinstance(info, dict) or not isinstance(found, dict) or "Id" not in found:
            raise self._no_engine(EngineFault("what answers there is no container engine"))
        _check_platform(info, image, found)
        chosen = self._runtime(info, runtime)
        level, missing = _level(info, chosen)
        config = found.get("Config") or {}
        return Facts(
            image_id=str(found["Id"]),
            volumes=tuple(config.get("Volumes") or ()),
            runtime=chosen,
            level=level,
            missing=missing,
            not_enforced=_not_enforced(info, is_podman),
            has_own_kernel=_has_own_kernel(info, chosen),
            is_podman=is_podman,
        )

    def _runtime(self, info: Mapping[str, Any], runtime: str | None) -> str:
        known = info.get("Runtimes") or {}
        if runtime is None:
            return str(info.get("DefaultRuntime") or "runc")
        if known and runtime not in known and "." not in runtime:
            raise unavailable(
                "runtime",
                f"the engine has no runtime {runtime!r}, but {', '.join(sorted(known))}",
                f"Install {runtime} and name it in the engine's configuration, under runtimes.",
                "L4" if runtime.startswith(_OWN_KERNEL) else "L3",
            )
        return runtime

    def _image(self, image: str, pull: str, on_progress: Progress | None) -> Any:
        try:
            return self.ask("inspect_image", image)
        except EngineFault as fault:
            if fault.status != 404:
                raise
            if pull != "missing":
                raise unavailable(
                    "image",
                    f"the engine has no image {image}, and pulling is not allowed",
                    f"Run `docker pull {image}`, or make one with `mcp-tools sandbox build-image`.",
                ) from fault
        try:
            self._pull(image, on_progress)
            return self.ask("inspect_image", image)
        except EngineFault as fault:
            raise unavailable(
                "pull", f"{image} cannot be pulled: {fault}", "Check its name and the way to the registry."
            ) from fault

    def _pull(self, image: str, on_progress: Progress | None) -> None:
        try:
            for line in self.ask("pull", image, stream=True, decode=True, within_s=_PULL_QUIET_S):
                _check_line(line)
                status = str(line.get("status", ""))
                if on_progress is not None and (not line.get("id") or status in _LINES):
                    on_progress(" ".join(each for each in (str(line.get("id", "")), status) if each))
        except EngineFault:
            raise
        except Exception as error:
            raise EngineFault(_text_of(error)) from error


def _check_line(line: Mapping[str, Any]) -> None:
    if "error" in line:
        raise EngineFault(str(line["error"]))


def _options(where: str | None) -> dict[str, Any]:
    """How to make a client: the address, and TLS where a context or the environment names it."""
    from docker.context.config import get_current_context_name
    from docker.utils import kwargs_from_env

    if where is not None and "://" in where:
        env = {**os.environ, "DOCKER_HOST": where}
        return {"base_url": where, **{k: v for k, v in kwargs_from_env(env).items() if k == "tls"}}
    if where is not None:
        return _of_context(where)
    if os.environ.get("DOCKER_HOST"):
        return dict(kwargs_from_env())
    options = _of_context(os.environ.get("DOCKER_CONTEXT") or get_current_context_name() or "default")
    if not options.get("base_url") or options.get("base_url") in {f"unix://{s}" for s in _DEFAULT_SOCKETS}:
        options |= _first_socket()
    return options


def _of_context(name: str) -> dict[str, Any]:
    """What a docker context says; one that is not there is not taken for this machine's engine."""
    from docker.context import ContextAPI

    options = dict(ContextAPI.kwargs_from_context(name))
    if not options and name != "default":
        raise EngineFault(f"there is no docker context {name!r}")
    return options


def _first_socket() -> dict[str, str]:
    """Docker's default socket, or Podman's where there is no Docker."""
    if sys.platform == "win32":
        return {}
    own = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    home = os.path.expanduser("~")
    candidates = [
        *_DEFAULT_SOCKETS,
        f"{own}/docker.sock",
        f"{home}/.docker/run/docker.sock",
        f"{own}/podman/podman.sock",
        "/run/podman/podman.sock",
    ]
    for path in candidates:
        if os.path.exists(path):
            return {"base_url": f"unix://{path}"}
    return {}


def _check_platform(info: Mapping[str, Any], image: str, found: Mapping[str, Any]) -> None:
    there, needs = str(info.get("Architecture", "")), str(found.get("Architecture", ""))
    there = _MACHINES.get(there, there)
    if str(found.get("Os") or "linux") != "linux":
        raise unavailable("image", f"{image} is for {found.get('Os')}", "Take an image for Linux.")
    if needs and there and _MACHINES.get(needs, needs) != there:
        raise unavailable(
            "image", f"{image} is for {needs}, the engine for {there}", f"Take the image for {there}."
        )


def _is_podman(version: Any) -> bool:
    parts = version.get("Components") if isinstance(version, dict) else None
    return any(isinstance(part, dict) and part.get("Name") == "Podman Engine" for part in parts or ())


def _has_own_kernel(info: Mapping[str, Any], runtime: str) -> bool:
    about = (info.get("Runtimes") or {}).get(runtime) or {}
    path = str(about.get("path") or about.get("runtimeType") or "")
    return any(word in each for word in _OWN_KERNEL for each in (runtime, os.path.basename(path)))


def _level(info: Mapping[str, Any], runtime: str) -> tuple[IsolationLevel, tuple[Missing, ...]]:
    """How strong a container of this engine is. One wall is L3; with its own kernel or no host root, L4."""
    options = [str(each) for each in info.get("SecurityOptions") or ()]
    names = {part for each in options for part in each.split(",")}
    if _has_own_kernel(info, runtime):
        return IsolationLevel.L4, ()
    if names & {"name=rootless", "name=userns"}:
        return IsolationLevel.L4, ()
    return IsolationLevel.L3, (
        Missing(
            level="L4",
            step="container",
            reason=f"a container under {runtime} shares the kernel, and root in it is root on the host",
            remedy="Use the runtime runsc or kata, a rootless engine, or the engine's userns-remap.",
        ),
    )


def _not_enforced(info: Mapping[str, Any], is_podman: bool) -> tuple[str, ...]:
    """What an engine says that it cannot limit; one that says nothing can.

    It drops such limits without an error. `CpuCfsQuota` is left out: no field is about shares of a processor.
    """
    found = []
    if info.get("MemoryLimit") is False or info.get("SwapLimit") is False:  # it would go on in the swap
        found.append("max_memory_mb")
    if info.get("PidsLimit") is False:
        found.append("max_processes")
    if is_podman:  # see `plan.container_options`
        found.append("max_files")
    return tuple(found)


def dropped_limits(warnings: Iterable[str]) -> set[str]:
    """Limits of the configuration that an engine's warnings about a container name.

    None is about what nobody asked for, so every mention of memory or processes is about these limits.
    """
    text = " ".join(warnings).casefold()
    return {name for name, words in _WARNED_LIMITS.items() if any(word in text for word in words)}


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def _text_of(error: BaseException) -> str:
    """One bounded line on what went wrong, without the wrapping of three libraries."""
    explanation = getattr(error, "explanation", None)
    text = str(explanation or error) or type(error).__name__
    inner: BaseException | None = None if explanation else error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            text = inner.strerror
        inner = inner.__cause__ or inner.__context__
    if "timed out" in text.casefold() or isinstance(error, TimeoutError):
        text = "it does not answer"
    return _one_line(text)
