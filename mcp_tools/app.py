"""The one place where objects meet: settings become a registry, a policy and an executor that fit."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
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
from mcp_tools.shipped import Builtins, about_python, python_options, register_builtins, web_options

if TYPE_CHECKING:
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.config import Settings

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
        web=web_options(settings),
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
            *about_python(settings),
            *(production.telemetry.notices if production.telemetry is not None else ()),
        ),
    )


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
