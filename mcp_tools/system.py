"""Registry, executor and batch in one object, for people who embed us."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Self

from mcp_tools.batch import MAX_CONCURRENT, AsyncToolExecutor, Confirm
from mcp_tools.executor import ToolExecutor
from mcp_tools.observe.log import log_call
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import (
    Auditor,
    CallContext,
    ExecutionResult,
    Limiter,
    Observer,
    Policy,
    Provider,
    ResultFitter,
    ToolCall,
)

if TYPE_CHECKING:
    from mcp_tools.builtin.python import PythonOptions
    from mcp_tools.shipped import WebOptions
    from sandbox import SandboxConfig


class ToolSystem:
    """Tools and everything that runs them.

    Args:
        registry: None: a new, empty one.
        policy: See `ToolExecutor`.
        max_concurrent: Calls of one batch that run at the same time.
        confirm: Puts a question to a person during `execute_calls`; see `AsyncToolExecutor`.
        limiter, auditor, fitter, observers: See `ToolExecutor`; close them yourself.

    Each finished call is logged to `mcp_tools.calls`: tool, status and duration, never arguments.
    """

    def __init__(
        self,
        registry: ToolRegistry | None = None,
        *,
        policy: Policy | None = None,
        max_concurrent: int = MAX_CONCURRENT,
        confirm: Confirm | None = None,
        limiter: Limiter | None = None,
        auditor: Auditor | None = None,
        fitter: ResultFitter | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.registry = registry if registry is not None else ToolRegistry()
        self.executor = ToolExecutor(
            self.registry,
            policy=policy,
            limiter=limiter,
            auditor=auditor,
            fitter=fitter,
            observers=observers,
            hooks=[log_call],
        )
        self.async_executor = AsyncToolExecutor(self.executor, max_concurrent, confirm=confirm)
        # The registry's own method, not a wrapper: it reads the scope it is called from.
        self.register = self.registry.register
        self._closer: weakref.finalize[..., ToolRegistry] | None = None

    @classmethod
    def with_builtins(
        cls,
        roots: Sequence[str | PathLike[str]] = (),
        *,
        python: SandboxConfig | bool = True,
        web: WebOptions | bool = True,
        policy: Policy | None = None,
        max_concurrent: int = MAX_CONCURRENT,
        confirm: Confirm | None = None,
        limiter: Limiter | None = None,
        auditor: Auditor | None = None,
        fitter: ResultFitter | None = None,
        observers: Sequence[Observer] = (),
    ) -> ToolSystem:
        """Make a system that has our tools.

        Args:
            roots: Folders that file tools may touch. Empty: none; the tools then say so.
            python: What `execute_python` may use. True: the defaults of `SandboxConfig`. False: the tool is
                left out.
            web: What `search_web` and `fetch_url` may do. True: search without a key, and pages from public
                addresses, after a question where there are roots whose content an address could carry away.
                False: the tools are left out.
            policy, max_concurrent, confirm, limiter, auditor, fitter, observers: As above.
        Raises:
            ConfigError: A root does not exist or is no folder, or one that `python` names.
        """
        from mcp_tools.shipped import register_builtins

        system = cls(
            policy=policy,
            max_concurrent=max_concurrent,
            confirm=confirm,
            limiter=limiter,
            auditor=auditor,
            fitter=fitter,
            observers=observers,
        )
        builtins = register_builtins(
            system.registry, roots, python=_limits(python), web=_web(web, confirms_fetch=bool(roots))
        )
        # Open folders and processes are let go of with the tools, which may outlive this object.
        system._closer = weakref.finalize(system.registry, builtins.close)
        return system

    def close(self) -> None:
        """End the sandbox and the processes of isolated tools, and let go of the folders of our tools.

        Later calls of these fail. Can be called again.
        """
        self.registry.close()
        if self._closer is not None:
            self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def execute(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        context: CallContext | Mapping[str, Any] | None = None,
    ) -> ExecutionResult:
        """Run one call; see `ToolExecutor.execute`."""
        return await self.executor.execute(tool_name, parameters, context)

    async def execute_calls(
        self, calls: Sequence[ToolCall], context: CallContext | Mapping[str, Any] | None = None
    ) -> dict[str, ExecutionResult]:
        """Run several calls; see `AsyncToolExecutor.execute_calls`."""
        return await self.async_executor.execute_calls(calls, context)

    def get_tools_for_api(self, provider: Provider | str = "anthropic") -> list[dict[str, Any]]:
        """Describe the tools that may run, as a provider's API wants them.

        Raises:
            ValueError: The provider is unknown.
        """
        if provider not in ("anthropic", "openai"):
            raise ValueError(f"unknown provider {provider!r}; use 'anthropic' or 'openai'")
        return [tool.to_api_format(provider) for tool in self.executor.visible_tools()]

    def format_results_for_llm(
        self,
        results: Mapping[str, ExecutionResult],
        provider: Literal["anthropic", "openai"] = "anthropic",
    ) -> list[dict[str, Any]]:
        """Render results for the next request to a model, in the order of `results`.

        Args:
            results: By call id, as `execute_calls` returns them.
            provider: `anthropic`: `tool_result` blocks, failures flagged; they go into one user
                message. `openai`: `tool` messages of Chat Completions.
        Raises:
            ValueError: The provider is unknown.
        """
        match provider:
            case "anthropic":
                return [_anthropic_block(call_id, result) for call_id, result in results.items()]
            case "openai":
                return [
                    {"role": "tool", "tool_call_id": call_id, "content": result.to_observation()}
                    for call_id, result in results.items()
                ]
        raise ValueError(f"unknown provider {provider!r}; use 'anthropic' or 'openai'")


def _limits(python: SandboxConfig | bool) -> PythonOptions | SandboxConfig | None:
    if not isinstance(python, bool):
        return python
    if not python:
        return None
    from mcp_tools.builtin.python import PythonOptions

    return PythonOptions()


def _web(web: WebOptions | bool, *, confirms_fetch: bool) -> WebOptions | None:
    if not isinstance(web, bool):
        return web
    if not web:
        return None
    from mcp_tools.builtin.search import SearchOptions
    from mcp_tools.shipped import WebOptions
    from mcp_tools.web.types import Reach

    return WebOptions(
        search=SearchOptions(), reach=Reach(), search_reach=Reach(), confirms_fetch=confirms_fetch
    )


def _anthropic_block(call_id: str, result: ExecutionResult) -> dict[str, Any]:
    return {
        "type": "tool_result",
        "tool_use_id": call_id,
        "content": result.to_observation(),
        "is_error": not result.is_success,
    }
