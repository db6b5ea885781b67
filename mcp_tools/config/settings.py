"""What the owner can decide, and what a project's file may say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from mcp_tools.config.values import (
    Parse,
    choice,
    choices,
    flag,
    integer,
    modules,
    path,
    path_or_url,
    paths,
    prices,
    seconds,
    secret,
    text,
    texts,
)
from mcp_tools.types import DEFAULT_CONFIRM_TIMEOUT_S, SEARCH_PROVIDERS

Transport = Literal["stdio", "sse", "http"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["human", "json"]
FromProject = Literal["refuse", "add", "lower", "raise", "only true", "only false", "fallback"]
LEVELS: Final = ("L2", "L3", "L4", "L4+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the owner can decide. Read it with `load_settings`; programs may also just build one.

    Args:
        roots: Absolute folders that file tools may touch; none means that they may touch nothing.
        transport: What `serve` speaks.
        host, port: Where `serve` listens, for sse and http; port 0 takes any free one.
        token_file: A file of `name:token` lines; the name is the principal.
        token: One bearer token, for the principal `default`.
        confirm_timeout_s: Seconds a person has to answer a question.
        deny, ask, allow: Rules, `tool` or `tool(argument pattern)`; the first list with a match decides.
        tools: `package.module:object` of further registries to serve.
        log_level, log_format: What goes to stderr, and how.
        max_concurrent_calls: Calls that run at once; further ones wait.
        hide_exceptions: A tool's own exceptions reach the model as a call id only.
        allowed_hosts, allowed_origins: `Host` and `Origin` values accepted over HTTP beside our own.
        python_enabled: Whether there is `execute_python`.
        python_timeout_s: Seconds that its code may run.
        python_max_memory_mb: MiB of memory of its code.
        python_packages: A virtual environment or `site-packages` folder that its code can import.
        python_preload: Modules of these that are loaded before any code comes.
        python_network: Its code has this machine's network, or that of a container.
        python_workspace: Its code can change the first root.
        python_minimum_level: Isolation below this is refused: `L2`, `L3`, `L4` or `L4+`.
        python_backend: `auto` takes what isolates strongest here; `linux` or `docker` only that.
        python_image: What its containers are made from, where they are used.
        python_runtime: What the engine runs them with, such as `runsc`. None: its default.
        python_engine: A Docker host or context. None: the one that `docker` would use.
        python_pool_size: Processes kept waiting for code, for each principal.
        python_always_confirm: It asks before each call, whatever rules say.
        web_enabled: Whether there are `search_web` and `fetch_url`.
        web_confirm: Whether `fetch_url` asks where no rule says so: `always`, `never`, or `auto`: where other
            tools can read files of the owner, which an address could carry away.
        web_hosts: `host` or `host:port` that may be reached although they are not public.
        web_proxy: URL of a proxy for all of it. None: none, whatever the environment says.
        web_robots: A site's robots.txt is obeyed.
        search_providers: Asked in this order until one answers.
        search_prices: `provider=dollars` for one query that it answers; others cost nothing.
        searxng_url: Of the owner's SearXNG, for the provider `searxng`.
        brave_key, tavily_key, exa_key, kagi_key: For the providers of these names.
        audit_enabled: Each call is recorded, durably, before it runs and before it is answered.
        audit_log: The file of these records. None: one in the user's state folder.
        audit_anchor: A file elsewhere that is kept at the log's last record, so that a log that was
            replaced as a whole shows. None: there is none.
        audit_max_mb: MiB of a log file before the next one is begun.
        audit_keep_files: Full files that stay. None: all.
        audit_redact: More names of arguments whose values no record may hold.
        audit_required: `all` calls, or those of tools that can make `changes`: the others run also where
            their record cannot be written.
        limits: Rates, budgets and places, as `mcp_tools.limits` reads them.
        limits_store: Where limits are counted, and what calls used: a file, the URL of a Redis server, or
            `memory://`. None: a file in the user's state folder.
        metrics_enabled: There is `/metrics` beside the HTTP endpoints.
        metrics_port: A loopback port for `/metrics` beside stdio. None: there is none.
        output_max_chars, output_max_tokens: Of one result; the whole is kept for `read_output`.
        output_mask_secrets: What looks like a secret does not reach the model.
        notices: What a person should know about these settings, in whole sentences.
    """

    roots: tuple[str, ...] = ()
    transport: Transport = "stdio"
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None
    token: str | None = field(default=None, repr=False)
    confirm_timeout_s: float = DEFAULT_CONFIRM_TIMEOUT_S
    deny: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    log_level: LogLevel = "info"
    log_format: LogFormat = "human"
    max_concurrent_calls: int = 64
    hide_exceptions: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    python_enabled: bool = True
    python_timeout_s: float = 30.0
    python_max_memory_mb: int = 256
    python_packages: str | None = None
    python_preload: tuple[str, ...] = ()
    python_network: bool = False
    python_workspace: bool = False
    python_minimum_level: str = "L2"
    python_backend: str = "auto"
    python_image: str = "python:3.11-slim"
    python_runtime: str | None = None
    python_engine: str | None = None
    python_pool_size: int = 4
    python_always_confirm: bool = False
    web_enabled: bool = True
    web_confirm: str = "auto"
    web_hosts: tuple[str, ...] = ()
    web_proxy: str | None = field(default=None, repr=False)
    web_robots: bool = True
    search_providers: tuple[str, ...] = ("ddgs",)
    search_prices: tuple[str, ...] = ()
    searxng_url: str | None = field(default=None, repr=False)
    brave_key: str | None = field(default=None, repr=False)
    tavily_key: str | None = field(default=None, repr=False)
    exa_key: str | None = field(default=None, repr=False)
    kagi_key: str | None = field(default=None, repr=False)
    audit_enabled: bool = True
    audit_log: str | None = None
    audit_anchor: str | None = None
    audit_max_mb: int = 100
    audit_keep_files: int | None = None
    audit_redact: tuple[str, ...] = ()
    audit_required: str = "all"
    limits: tuple[str, ...] = ()
    limits_store: str | None = field(default=None, repr=False)
    metrics_enabled: bool = False
    metrics_port: int | None = None
    output_max_chars: int = 100_000
    output_max_tokens: int = 25_000
    output_mask_secrets: bool = False
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    parse: Parse
    from_project: FromProject = "refuse"
    adds_up: bool = False


SETTINGS: Final[Mapping[str, Setting]] = {
    "roots": Setting(parse=paths),
    "transport": Setting(parse=choice("stdio", "sse", "http")),
    "host": Setting(parse=text),
    "port": Setting(parse=integer(0, 65_535)),
    "token_file": Setting(parse=path),
    "token": Setting(parse=secret),
    "confirm_timeout_s": Setting(parse=seconds(0.1, 86_400), from_project="lower"),
    "deny": Setting(parse=texts, from_project="add", adds_up=True),
    "ask": Setting(parse=texts, from_project="add", adds_up=True),
    "allow": Setting(parse=texts, adds_up=True),
    "tools": Setting(parse=texts),
    "log_level": Setting(parse=choice("debug", "info", "warning", "error"), from_project="fallback"),
    "log_format": Setting(parse=choice("human", "json"), from_project="fallback"),
    "max_concurrent_calls": Setting(parse=integer(1, 10_000), from_project="lower"),
    "hide_exceptions": Setting(parse=flag, from_project="only true"),
    "allowed_hosts": Setting(parse=texts),
    "allowed_origins": Setting(parse=texts),
    "python_enabled": Setting(parse=flag, from_project="only false"),
    "python_timeout_s": Setting(parse=seconds(0.1, 86_400), from_project="lower"),
    "python_max_memory_mb": Setting(parse=integer(16, 1024**2), from_project="lower"),
    "python_packages": Setting(parse=path),
    "python_preload": Setting(parse=modules),
    "python_network": Setting(parse=flag, from_project="only false"),
    "python_workspace": Setting(parse=flag, from_project="only false"),
    "python_minimum_level": Setting(parse=choice(*LEVELS), from_project="raise"),
    "python_backend": Setting(parse=choice("auto", "linux", "docker")),
    "python_image": Setting(parse=text),
    "python_runtime": Setting(parse=text),
    "python_engine": Setting(parse=text),
    "python_pool_size": Setting(parse=integer(1, 64), from_project="lower"),
    "python_always_confirm": Setting(parse=flag, from_project="only true"),
    "web_enabled": Setting(parse=flag, from_project="only false"),
    "web_confirm": Setting(parse=choice("auto", "always", "never")),
    "web_hosts": Setting(parse=texts),
    "web_proxy": Setting(parse=secret),
    "web_robots": Setting(parse=flag, from_project="only true"),
    "search_providers": Setting(parse=choices(*SEARCH_PROVIDERS)),
    "search_prices": Setting(parse=prices(*SEARCH_PROVIDERS)),
    "searxng_url": Setting(parse=secret),
    "brave_key": Setting(parse=secret),
    "tavily_key": Setting(parse=secret),
    "exa_key": Setting(parse=secret),
    "kagi_key": Setting(parse=secret),
    "audit_enabled": Setting(parse=flag, from_project="only true"),
    "audit_log": Setting(parse=path),
    "audit_anchor": Setting(parse=path),
    "audit_max_mb": Setting(parse=integer(1, 100_000)),
    "audit_keep_files": Setting(parse=integer(1, 100_000)),
    "audit_redact": Setting(parse=texts, from_project="add", adds_up=True),
    "audit_required": Setting(parse=choice("all", "changes")),
    "limits": Setting(parse=texts, from_project="add", adds_up=True),
    "limits_store": Setting(parse=path_or_url),
    "metrics_enabled": Setting(parse=flag, from_project="only false"),
    "metrics_port": Setting(parse=integer(0, 65_535)),
    "output_max_chars": Setting(parse=integer(1_000, 1_000_000), from_project="lower"),
    "output_max_tokens": Setting(parse=integer(300, 1_000_000), from_project="lower"),
    "output_mask_secrets": Setting(parse=flag, from_project="only true"),
}
