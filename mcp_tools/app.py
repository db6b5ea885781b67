"""The one place where objects meet: settings become a registry, a policy and an executor that fit."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from mcp_tools.config.process import environment
from mcp_tools.confirmation.ledger import ConfirmationLedger
from mcp_tools.errors import ConfigError, RegistrationError
from mcp_tools.executor import ToolExecutor
from mcp_tools.observe.log import log_call
from mcp_tools.policy import RulePolicy
from mcp_tools.production import Production, assemble
from mcp_tools.registry import ToolRegistry

if TYPE_CHECKING:
    from mcp_tools.builtin.python import PythonOptions, PythonTool
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.config import Settings
    from sandbox import SandboxConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """Everything a command needs, ready to run.

    Args:
        settings: What it was built from.
        registry: All tools: ours, other packages', and those the owner named.
        executor: The door to them.
        builtins: What our own tools hold open.
        production: Records, limits, metrics.
        notices: What a person should know, in whole sentences.
    A context manager: at its end nothing is held open any more, and calls of our own tools fail.
    """

    settings: Settings
    registry: ToolRegistry
    executor: ToolExecutor
    builtins: Builtins
    production: Production
    notices: tuple[str, ...]

    @property
    def workspace(self) -> Workspace:
        """The folders that file tools may touch."""
        return self.builtins.workspace

    def close(self) -> None:
        """End what runs and let go of everything. Can be called again."""
        try:
            self.registry.close()
            self.builtins.close()
        finally:
            self.production.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtins:
    """What the tools we ship hold open.

    Args:
        workspace: The folders that file tools may touch.
        python: `execute_python`, where there is one.
    """

    workspace: Workspace
    python: PythonTool | None

    def close(self) -> None:
        """End the sandbox and let go of the folders. Can be called again."""
        try:
            if self.python is not None:
                self.python.close()
        finally:
            self.workspace.close()


def build(settings: Settings, environ: Mapping[str, str] | None = None) -> App:
    """Make everything that `settings` ask for. Nothing is served yet.

    Args:
        settings: What holds.
        environ: Where the user's folders are. None: this process's environment.
    Raises:
        ConfigError: A root does not exist, a rule or limit cannot be read, a `tools` entry cannot be loaded,
            or the audit log cannot be written.
        RegistrationError: A tool cannot be registered, such as one whose name is taken.
    """
    policy = RulePolicy.parse(deny=settings.deny, ask=settings.ask, allow=settings.allow)
    registry = ToolRegistry()
    builtins = register_builtins(
        registry,
        settings.roots,
        python=python_options(settings) if settings.python_enabled else None,
        always_confirm=settings.python_always_confirm,
    )
    for origin in registry.load_entry_points():
        logger.info("loaded the tools of %s", origin)
    for spec in settings.tools:
        load_tools(registry, spec)
        logger.info("loaded the tools of %s", spec)
    production = assemble(settings, registry, environment() if environ is None else environ)
    from mcp_tools.builtin.output import register_output_tool

    register_output_tool(registry, production.outputs, production.fitter.budget)
    executor = ToolExecutor(
        registry,
        policy=policy,
        limiter=production.limiter,
        auditor=production.auditor,
        read_only_without_audit=settings.audit_required == "changes",
        fitter=production.fitter,
        observers=production.observers,
        confirmations=ConfirmationLedger(ttl_s=settings.confirm_timeout_s),
        hooks=[log_call],
        max_concurrent_calls=settings.max_concurrent_calls,
        hide_exceptions=settings.hide_exceptions,
    )
    return App(
        settings=settings,
        registry=registry,
        executor=executor,
        builtins=builtins,
        production=production,
        notices=(
            *settings.notices,
            *_idle_rules(policy, registry),
            *_about_python(settings),
            *(production.telemetry.notices if production.telemetry is not None else ()),
        ),
    )


def register_builtins(
    registry: ToolRegistry,
    roots: Sequence[str | os.PathLike[str]],
    *,
    python: PythonOptions | SandboxConfig | None,
    always_confirm: bool = False,
) -> Builtins:
    """Register the tools we ship, and return what they hold open.

    Args:
        roots: Folders that file tools may touch.
        python: What `execute_python` may use. None: there is none.
        always_confirm: `execute_python` asks before each call.
    Raises:
        ConfigError: A root does not exist or is no folder, or one that `python` names.
    """
    from mcp_tools.builtin.files import register_file_tools
    from mcp_tools.builtin.workspace import Workspace

    workspace = Workspace.open([os.fspath(root) for root in roots])
    try:
        register_file_tools(registry, workspace)
        tool = None
        if python is not None:
            from mcp_tools.builtin.python import register_python_tool

            tool = register_python_tool(registry, python, always_confirm=always_confirm)
    except BaseException:
        workspace.close()
        raise
    return Builtins(workspace=workspace, python=tool)


def python_options(settings: Settings) -> PythonOptions:
    """Return what `settings` let `execute_python` use.

    Raises:
        ConfigError: They contradict each other.
    """
    from mcp_tools.builtin.python import PythonOptions

    if settings.python_workspace and not settings.roots:
        raise ConfigError(
            "python_workspace lets code change the first allowed folder, and there is none; use --root"
        )
    return PythonOptions(
        timeout_seconds=settings.python_timeout_s,
        max_memory_mb=settings.python_max_memory_mb,
        packages=settings.python_packages,
        preload=settings.python_preload,
        allow_network=settings.python_network,
        working_dir=settings.roots[0] if settings.python_workspace else None,
        minimum_level=settings.python_minimum_level,
        pool_size=settings.python_pool_size,
        backend=settings.python_backend,
        image=settings.python_image,
        runtime=settings.python_runtime,
        engine=settings.python_engine,
    )


def _about_python(settings: Settings) -> list[str]:
    if not settings.python_enabled:
        return []
    notices = []
    if settings.python_workspace and (settings.deny or settings.ask):
        notices.append(
            f"python_workspace: execute_python can change everything in {settings.roots[0]}; rules about "
            "paths do not bind code. It asks before each call, unless a rule allows it."
        )
    if settings.python_backend == "linux" and not sys.platform.startswith("linux"):
        notices.append(
            "python_backend is linux, and this is not: execute_python refuses all calls here; use docker."
        )
    return notices


def load_tools(registry: ToolRegistry, spec: str) -> None:
    """Include what `package.module:object` names; see `ToolRegistry.load`.

    The current folder is searched last, so that nothing in it can take the place of a real package.

    Raises:
        ConfigError: There is no such module or object, or its import fails.
        RegistrationError: It holds no tools, or one of them cannot be registered.
    """
    module_name, colon, attribute_path = spec.partition(":")
    if not colon or not module_name or not attribute_path:
        raise ConfigError(f"tools entry {spec!r} is not of the form package.module:object")
    if "" not in sys.path:
        sys.path.append("")
    try:
        found: Any = importlib.import_module(module_name)
        for name in attribute_path.split("."):
            found = getattr(found, name)
        registry.load(found)
    except RegistrationError as error:
        raise RegistrationError(f"tools entry {spec!r}: {error}") from error
    except (Exception, SystemExit) as error:  # a script that was meant to be run may exit on import
        raise ConfigError(
            f"tools entry {spec!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def _idle_rules(policy: RulePolicy, registry: ToolRegistry) -> list[str]:
    """A rule that matches no tool is a misspelt one, or meant for other tools: only its owner knows."""
    names = [tool.name for tool in registry.list_tools()]
    return [
        f"The {rule.decision.name.lower()} rule {rule.text!r} matches no tool there is; is its name right?"
        for rule in policy.rules
        if not any(rule.tool_pattern.matches(name) for name in names)
    ]
