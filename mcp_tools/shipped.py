"""The tools we ship: what settings make of them, and what they hold open."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from mcp_tools import __version__
from mcp_tools.errors import ConfigError
from mcp_tools.registry import ToolRegistry
from mcp_tools.web.types import Reach

if TYPE_CHECKING:
    from mcp_tools.builtin.python import PythonOptions
    from mcp_tools.builtin.search import SearchOptions
    from mcp_tools.builtin.workspace import Workspace
    from mcp_tools.config import Settings
    from mcp_tools.web.client import WebClient
    from sandbox import SandboxConfig


USER_AGENT: Final = f"mcp-tools/{__version__}"


class Closable(Protocol):
    """Something that a tool holds open."""

    def close(self) -> None:
        """Let go of it. Can be called again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtins:
    """What the tools we ship hold open.

    Args:
        workspace: The folders that file tools may touch.
        others: Closed before it, the last one first.
    """

    workspace: Workspace
    others: tuple[Closable, ...]

    def close(self) -> None:
        """End the sandbox and let go of the folders. Can be called again."""
        with contextlib.ExitStack() as stack:
            for each in (self.workspace, *self.others):
                stack.callback(each.close)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """What `search_web` and `fetch_url` may do.

    Args:
        search: Who is asked.
        reach: Where pages may come from.
        search_reach: Where providers may be: the owner named them.
        confirms_fetch: `fetch_url` asks where no rule says otherwise. None: where there are roots, as an
            address can carry away what a model read there.
        obeys_robots: A site's robots.txt is obeyed.
    """

    search: SearchOptions
    reach: Reach
    search_reach: Reach
    confirms_fetch: bool | None = None
    obeys_robots: bool = True


def register_builtins(
    registry: ToolRegistry,
    roots: Sequence[str | os.PathLike[str]],
    *,
    python: PythonOptions | SandboxConfig | None,
    always_confirm: bool = False,
    web: WebOptions | None = None,
) -> Builtins:
    """Register the tools we ship, and return what they hold open.

    Args:
        roots: Folders that file tools may touch.
        python: What `execute_python` may use. None: there is none.
        always_confirm: `execute_python` asks before each call.
        web: What `search_web` and `fetch_url` may do. None: there are none.
    Raises:
        ConfigError: A root does not exist or is no folder, or one that `python` names.
    """
    from mcp_tools.builtin.files import register_file_tools
    from mcp_tools.builtin.workspace import Workspace

    workspace = Workspace.open([os.fspath(root) for root in roots])
    others: list[Closable] = []
    try:
        register_file_tools(registry, workspace)
        if python is not None:
            from mcp_tools.builtin.python import register_python_tool

            others.append(register_python_tool(registry, python, always_confirm=always_confirm))
        if web is not None:
            confirms = bool(roots) if web.confirms_fetch is None else web.confirms_fetch
            others += _register_web(registry, web, confirms=confirms)
    except BaseException:
        Builtins(workspace=workspace, others=tuple(others)).close()
        raise
    return Builtins(workspace=workspace, others=tuple(others))


def _register_web(registry: ToolRegistry, options: WebOptions, *, confirms: bool) -> list[Closable]:
    from mcp_tools.builtin.search import register_search_tool
    from mcp_tools.builtin.web import FetchOptions, register_web_tool
    from mcp_tools.web.robots import Robots

    web = web_client(options.reach)
    robots = Robots(web, user_agent=USER_AGENT) if options.obeys_robots else None
    return [
        register_search_tool(registry, options.search, web_client(options.search_reach)),
        register_web_tool(registry, web, robots, FetchOptions(confirms=confirms)),
    ]


def web_client(reach: Reach) -> WebClient:
    """Return what asks the web within this reach. What speaks HTTP is loaded by the first request.

    Raises:
        ConfigError: A host or the proxy in it is none.
    """
    from mcp_tools.web.client import WebClient

    try:
        return WebClient(reach, user_agent=USER_AGENT)
    except ValueError as error:
        raise ConfigError(f"web_hosts or web_proxy: {error}") from error


def _price(text: str) -> tuple[str, float]:
    provider, _, dollars = text.partition("=")
    return provider, float(dollars)


def web_options(settings: Settings) -> WebOptions | None:
    """Return what `settings` let our tools do on the web; None where they are left out."""
    if not settings.web_enabled:
        return None
    from mcp_tools.builtin.search import SearchOptions

    reach = Reach(hosts=frozenset(settings.web_hosts), proxy=settings.web_proxy)
    own = [urlsplit(settings.searxng_url).netloc.rpartition("@")[2]] if settings.searxng_url else []
    return WebOptions(
        search=SearchOptions(
            providers=settings.search_providers,
            searxng_url=settings.searxng_url,
            brave_key=settings.brave_key,
            tavily_key=settings.tavily_key,
            exa_key=settings.exa_key,
            kagi_key=settings.kagi_key,
            prices_usd=dict(_price(each) for each in settings.search_prices),
            proxy=settings.web_proxy,
        ),
        reach=reach,
        search_reach=replace(reach, hosts=reach.hosts.union(own)),
        confirms_fetch=settings.web_confirm == "always"
        # Where a model can read what is private, an address can carry it away.
        or (settings.web_confirm == "auto" and bool(settings.roots)),
        obeys_robots=settings.web_robots,
    )


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


def about_python(settings: Settings) -> list[str]:
    """Return what a person should know of `execute_python` under these settings, in whole sentences."""
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
