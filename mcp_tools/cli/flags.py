"""The flags that commands share; what they mean is in `mcp_tools.config.Settings`."""

from __future__ import annotations

import argparse

from mcp_tools.types import SEARCH_PROVIDERS


def add_listener(command: argparse.ArgumentParser) -> None:
    """Add where and how `serve` listens."""
    how = command.add_mutually_exclusive_group()
    how.add_argument("--transport", choices=("stdio", "sse", "http"), help="stdio is the default")
    how.add_argument(
        "--stdio", dest="transport", action="store_const", const="stdio", help="--transport stdio"
    )
    command.add_argument("--host", help="where to listen (default 127.0.0.1); others need a token")
    command.add_argument("--port", help="where to listen (default 8000); 0 takes any free one")
    command.add_argument(
        "--token-file", metavar="FILE", help="`name:token` lines; MCP_TOOLS_TOKEN gives one too"
    )
    command.add_argument(
        "--allowed-host",
        dest="allowed_hosts",
        action="append",
        metavar="NAME",
        help="a Host to answer; repeatable",
    )
    command.add_argument(
        "--allowed-origin",
        dest="allowed_origins",
        action="append",
        metavar="URL",
        help="a web origin to answer; repeatable",
    )


def add_settings(command: argparse.ArgumentParser) -> None:
    """Add what every command that has tools takes."""
    command.set_defaults(parser=command)
    group = command.add_argument_group(
        "settings", "Flags win over MCP_TOOLS_* variables, those over the config file."
    )
    group.add_argument("--config", metavar="FILE", help="a TOML file of settings, instead of your own one")
    group.add_argument(
        "--root",
        dest="roots",
        action="append",
        metavar="DIR",
        help="a folder that file tools may touch; repeatable",
    )
    for name, what in (
        ("deny", "never run what this rule matches"),
        ("ask", "ask a person first"),
        ("allow", "run without asking"),
    ):
        group.add_argument(
            f"--{name}", action="append", metavar="RULE", help=f"{what}: tool or tool(pattern); repeatable"
        )
    group.add_argument("--tools", action="append", metavar="MODULE:OBJECT", help="more tools; repeatable")
    group.add_argument("--confirm-timeout", dest="confirm_timeout_s", metavar="SECONDS", help="default 120")
    group.add_argument("--max-concurrent-calls", metavar="N", help="default 64")
    group.add_argument(
        "--hide-exceptions",
        action="store_const",
        const="true",
        help="a tool's exception reaches the model as a call id",
    )
    _add_python(command)
    _add_web(command)
    _add_production(command)
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    group.add_argument("--log-format", choices=("human", "json"))


def _add_python(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("execute_python", "What code that a model wrote may use.")
    for name, dest, value, what in (
        ("--no-python", "python_enabled", "false", "leave the tool out"),
        ("--python-network", "python_network", "true", "give the code a network; then it asks"),
        ("--python-workspace", "python_workspace", "true", "let it change the first root; then it asks"),
        (
            "--python-always-confirm",
            "python_always_confirm",
            "true",
            "ask before each call, whatever rules say",
        ),
    ):
        group.add_argument(name, dest=dest, action="store_const", const=value, help=what)
    group.add_argument(
        "--python-timeout", dest="python_timeout_s", metavar="SECONDS", help="of one call; default 30"
    )
    group.add_argument("--python-max-memory-mb", metavar="MIB", help="of one call; default 256")
    group.add_argument(
        "--python-packages",
        metavar="DIR",
        help="a virtual environment or site-packages folder to import from",
    )
    group.add_argument(
        "--python-preload",
        action="append",
        metavar="MODULE",
        help="load it before any code comes; repeatable",
    )
    group.add_argument(
        "--python-minimum-level",
        choices=("L2", "L3", "L4", "L4+"),
        help="refuse weaker isolation than this; default L2",
    )
    group.add_argument("--python-pool-size", metavar="N", help="processes that wait for code; default 4")
    group.add_argument(
        "--python-backend",
        choices=("auto", "linux", "docker"),
        help="what isolates it; auto, the default, takes the strongest that this machine has",
    )
    for name, metavar, what in (
        ("--python-image", "IMAGE", "what its containers are made from; default python:3.11-slim"),
        ("--python-runtime", "NAME", "what the engine runs them with, such as runsc"),
        ("--python-engine", "HOST|CONTEXT", "a Docker host or context, if not the one docker would use"),
    ):
        group.add_argument(name, metavar=metavar, help=what)


def _add_production(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("production", "Records, limits, metrics, and how much comes back.")
    for name, dest, value, what in (
        ("--no-audit", "audit_enabled", "false", "keep no durable record of calls"),
        ("--metrics", "metrics_enabled", "true", "serve /metrics beside the HTTP endpoints"),
        ("--mask-secrets", "output_mask_secrets", "true", "keep what looks like a secret from the model"),
    ):
        group.add_argument(name, dest=dest, action="store_const", const=value, help=what)
    group.add_argument(
        "--audit-log", metavar="FILE", help="where calls are recorded; default in your state folder"
    )
    group.add_argument(
        "--audit-anchor", metavar="FILE", help="kept at the log's last record: put it on another disk"
    )
    group.add_argument("--audit-max-mb", metavar="MIB", help="of one file of the log; default 100")
    group.add_argument("--audit-keep-files", metavar="N", help="full files that stay; default all")
    group.add_argument(
        "--audit-redact",
        action="append",
        metavar="NAME",
        help="an argument whose values no record may hold; repeatable",
    )
    group.add_argument(
        "--audit-required",
        choices=("all", "changes"),
        help="which calls must not run unrecorded: all, the default, or those that can change something",
    )
    group.add_argument(
        "--limit", dest="limits", action="append", metavar="LIMIT", help="see docs/limits.md; repeatable"
    )
    group.add_argument(
        "--limits-store",
        metavar="FILE|URL",
        help="where they are counted, and what calls used: a file, redis://…, or memory://; default in your "
        "state folder",
    )
    group.add_argument("--metrics-port", metavar="N", help="a loopback port for /metrics beside stdio")
    group.add_argument("--output-max-chars", metavar="N", help="of one result; default 100000")
    group.add_argument("--output-max-tokens", metavar="N", help="of one result, estimated; default 25000")


def _add_web(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("web", "What search_web and fetch_url may reach; see docs/web.md.")
    for name, dest, value, what in (
        ("--no-web", "web_enabled", "false", "leave both tools out"),
        ("--ignore-robots", "web_robots", "false", "fetch also what a site's robots.txt forbids to programs"),
    ):
        group.add_argument(name, dest=dest, action="store_const", const=value, help=what)
    group.add_argument(
        "--web-confirm",
        choices=("auto", "always", "never"),
        help="whether fetch_url asks first where no rule says so; auto, the default, asks where tools can "
        "read files of yours",
    )
    group.add_argument(
        "--web-host",
        dest="web_hosts",
        action="append",
        metavar="HOST[:PORT]",
        help="may be reached although it is not public, such as your own search engine; repeatable",
    )
    group.add_argument("--web-proxy", metavar="URL", help="reach the web through it; variables are ignored")
    group.add_argument(
        "--search-provider",
        dest="search_providers",
        action="append",
        choices=SEARCH_PROVIDERS,
        help="asked in this order; default ddgs, which needs no key; repeatable",
    )
    group.add_argument(
        "--search-price",
        dest="search_prices",
        action="append",
        metavar="PROVIDER=USD",
        help="what a query costs that it answers, for budgets and metrics; repeatable",
    )
    group.add_argument("--searxng-url", metavar="URL", help="of your own SearXNG")
