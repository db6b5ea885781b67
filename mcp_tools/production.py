"""What the settings of production become: records, limits, metrics, and results that fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from mcp_tools import outages
from mcp_tools.config import user_state_folder
from mcp_tools.errors import ConfigError
from mcp_tools.types import AuditUnavailable, CallContext, ExecutionResult, Observer, Tool

if TYPE_CHECKING:
    from mcp_tools.config import Settings
    from mcp_tools.limits import StoreLimiter
    from mcp_tools.observe.audit import AuditLog
    from mcp_tools.observe.metrics import PrometheusMetrics
    from mcp_tools.observe.otlp import Telemetry
    from mcp_tools.output.budget import OutputBudget
    from mcp_tools.output.store import OutputStore
    from mcp_tools.registry import ToolRegistry

logger = logging.getLogger(__name__)

LIMITS_FILE = "limits.sqlite3"
IN_MEMORY = "memory://"
"""As `limits_store`: counts and totals end with the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """What an executor is handed besides its tools and rules. A context manager, which lets go of all of it.

    Args:
        auditor: None: calls are not recorded.
        limiter: Also where there are no limits: it gives places to principals in turn.
        fitter: Makes results fit.
        outputs: Keeps what did not fit.
        metrics: None: nothing is counted.
        telemetry: None: nothing is traced, because `OTEL_*` does not ask for it.
        observers: Told of calls.
    """

    auditor: AuditLog | None = None
    limiter: StoreLimiter
    fitter: Fitter
    outputs: OutputStore
    metrics: PrometheusMetrics | None = None
    telemetry: Telemetry | None = None
    observers: tuple[Observer, ...] = ()
    _closed: list[bool] = field(default_factory=list)

    def pages(self) -> dict[str, Any]:
        """Return what is served over HTTP beside the protocol: path → ASGI app."""
        if self.metrics is None:
            return {}
        from mcp_tools.observe.exposition import PATH, asgi_app

        return {PATH: asgi_app(self.metrics.registry)}

    def close(self) -> None:
        """Write what waits and let go of files and connections. Can be called again."""
        if self._closed:
            return
        self._closed.append(True)
        # The log last: it notes its own end.
        for each in (self.limiter, self.outputs, self.telemetry, self.auditor):
            if each is not None:
                each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Fitter:
    """An `OutputBudget` that is loaded when the first result needs it, so that a server starts sooner."""

    def __init__(self, outputs: OutputStore, settings: Settings) -> None:
        self._outputs = outputs
        self._settings = settings
        self._budget: OutputBudget | None = None

    @property
    def budget(self) -> OutputBudget:
        if self._budget is None:
            from mcp_tools.output.budget import OutputBudget

            self._budget = OutputBudget(
                max_chars=self._settings.output_max_chars,
                max_tokens=self._settings.output_max_tokens,
                store=self._outputs,
                mask_secrets=self._settings.output_mask_secrets,
            )
        return self._budget

    async def fit(self, result: ExecutionResult, tool: Tool, context: CallContext) -> ExecutionResult:
        return await self.budget.fit(result, tool, context)


def assemble(settings: Settings, registry: ToolRegistry, environ: Mapping[str, str]) -> Production:
    """Open everything that `settings` ask for.

    Raises:
        ConfigError: A limit cannot be read, or a file cannot be used as it is; the text says what to do.
    """
    from mcp_tools.output.store import OutputStore

    outputs = OutputStore()
    outputs.sweep()  # what servers that were killed left behind
    telemetry = _telemetry(environ)
    metrics = _metrics(settings, registry, telemetry)
    auditor = _audit_log(settings, environ)
    try:
        limiter = _limiter(settings, environ)
    except BaseException:
        if auditor is not None:
            auditor.close()
        raise
    return Production(
        auditor=auditor,
        limiter=limiter,
        fitter=Fitter(outputs, settings),
        outputs=outputs,
        metrics=metrics,
        telemetry=telemetry,
        observers=tuple(_observers(metrics, telemetry)),
    )


def audit_path(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return the file that calls are recorded in.

    Raises:
        ConfigError: None is named, and there is no home to have one.
    """
    if settings.audit_log is not None:
        return settings.audit_log
    from mcp_tools.observe.audit import DEFAULT_NAME

    return _in_state_folder(DEFAULT_NAME, environ, "--audit-log FILE, or --no-audit")


def limits_place(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return the file or URL that limits are counted in, and what calls used.

    Raises:
        ConfigError: None is named, and there is no home to have one.
    """
    return settings.limits_store or _in_state_folder(LIMITS_FILE, environ, "--limits-store FILE|URL")


def _in_state_folder(name: str, environ: Mapping[str, str], instead: str) -> str:
    folder = user_state_folder(environ)
    if folder is None:
        raise ConfigError(f"there is no home folder to keep {name} in; use {instead}")
    return os.path.join(folder, name)


def _audit_log(settings: Settings, environ: Mapping[str, str]) -> AuditLog | None:
    if not settings.audit_enabled:
        return None
    from mcp_tools.observe.audit import AuditLog

    try:
        return AuditLog(
            audit_path(settings, environ),
            max_bytes=settings.audit_max_mb * 1024**2,
            keep_files=settings.audit_keep_files,
            redact=settings.audit_redact,
            anchor=settings.audit_anchor,
            roots=settings.roots,
        )
    except AuditUnavailable as error:
        raise ConfigError(
            f"{error}. Nothing runs unrecorded: mend that, name another file with --audit-log, or use "
            "--no-audit"
        ) from error


def _limiter(settings: Settings, environ: Mapping[str, str]) -> StoreLimiter:
    from mcp_tools.limits import build_limiter, open_store, parse_limit

    # The executor's own places are given to whoever came first; the limiter's are fair between principals.
    texts = (f"*: {settings.max_concurrent_calls} at once", *settings.limits)
    limits = [parse_limit(text) for text in texts]  # before a store is opened for them
    if settings.limits_store == IN_MEMORY:
        return build_limiter(limits)
    if settings.limits or settings.limits_store is not None:
        return build_limiter(limits, open_store(limits_place(settings, environ)))
    # Only totals: no call, and no start, is to depend on them.
    from mcp_tools.limits.file import check_place
    from mcp_tools.limits.later import open_later

    try:
        check_place(place := limits_place(settings, environ))
    except ConfigError as error:
        logger.warning("what calls use is kept in memory only: %s", error)
        return build_limiter(limits)
    return build_limiter(limits, open_later(place))


def _telemetry(environ: Mapping[str, str]) -> Telemetry | None:
    if not any(name.startswith("OTEL_") for name in environ):
        return None
    from mcp_tools import __version__
    from mcp_tools.observe.otlp import setup_tracing

    return setup_tracing(
        environ, service_name="mcp-tools", service_version=__version__, unavailable=outages.counted
    )


def _observers(metrics: PrometheusMetrics | None, telemetry: Telemetry | None) -> Iterator[Observer]:
    if metrics is not None:
        yield metrics
    if telemetry is not None:
        yield telemetry.observer


def _metrics(
    settings: Settings, registry: ToolRegistry, telemetry: Telemetry | None
) -> PrometheusMetrics | None:
    if not settings.metrics_enabled and settings.metrics_port is None:
        return None
    from mcp_tools.calling import abandoned_threads
    from mcp_tools.observe.metrics import PrometheusMetrics

    return PrometheusMetrics(
        tool_exists=lambda name: name in registry,
        abandoned_threads=abandoned_threads,
        dropped_spans=None if telemetry is None else telemetry.dropped_spans,
        unavailable=outages.counted,
    )
