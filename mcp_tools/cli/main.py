"""Arguments → one command → an exit code. Commands are imported when they run: starting must be quick."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from mcp_tools import __version__
from mcp_tools.cli import audit as audit_command
from mcp_tools.cli import sandbox as sandbox_command
from mcp_tools.cli import usage as usage_command
from mcp_tools.cli.exits import FAILED, INTERRUPTED, USAGE
from mcp_tools.errors import ConfigError, RegistrationError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 ok, 1 the tool failed, 2 usage, 3 denied."""
    closed = _make_streams_usable()
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv, argparse.Namespace(closed_streams=closed))
    if unknown:
        _refuse_unknown(arguments.parser, unknown)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (ConfigError, RegistrationError) as error:
        print(f"mcp-tools: {error}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        # The reader went away, as `| head` does. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def run_process() -> NoReturn:
    """Run the command line as this process's only purpose, and end the process.

    Without waiting for threads: a tool's function that outlived its deadline cannot be interrupted, and
    Python would wait for it.
    """
    try:
        code = main()
    except SystemExit as leaving:  # argparse, after its message
        code = leaving.code if isinstance(leaving.code, int) else USAGE
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "serve":
            from mcp_tools.cli.serve import serve

            return serve(arguments)
        case "call":
            from mcp_tools.cli.call import call

            return call(arguments)
        case "doctor":
            from mcp_tools.cli.doctor import doctor

            return doctor(arguments)
        case "audit":
            from mcp_tools.cli.audit import audit

            return audit(arguments)
        case "usage":
            from mcp_tools.cli.usage import usage

            return usage(arguments)
        case "sandbox":
            from mcp_tools.cli.sandbox import sandbox

            return sandbox(arguments)
        case _:
            from mcp_tools.cli.listing import list_tools

            return list_tools(arguments)


def _refuse_unknown(parser: argparse.ArgumentParser, unknown: list[str]) -> NoReturn:
    from difflib import get_close_matches

    known = re.findall(r"--[a-z-]+", parser.format_usage())
    close = get_close_matches(unknown[0].partition("=")[0], known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    parser.error(f"{' '.join(unknown)} is not known here{hint}")


def _make_streams_usable() -> list[str]:
    """Survive being started without streams, and with an encoding that lacks most characters.

    Returns:
        The names of those that were closed.
    """
    closed = []
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file we open becomes our stderr, and what we say goes into it.
            os.open(os.devnull, os.O_RDWR)
            closed.append(name)
    if sys.stderr is None:
        # `print(file=None)` goes to stdout, which carries the protocol.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(ValueError):
                reconfigure(errors="backslashreplace")
    return closed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mcp-tools",
        description="Tools for a model on a real machine: validated, confirmed, isolated, limited, recorded.",
        epilog="`mcp-tools COMMAND --help` tells more.",
        allow_abbrev=False,
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="version", version=f"mcp-tools {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_serve(commands)
    _add_call(commands)
    _add_list(commands)
    audit_command.add_parser(commands)
    usage_command.add_parser(commands)
    sandbox_command.add_parser(commands)
    _add_doctor(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve the tools over MCP",
        description="Serve the tools over MCP: on stdin and stdout, or over HTTP.",
        allow_abbrev=False,
    )
    _add_listener(serve)
    _add_settings(serve)


def _add_listener(command: argparse.ArgumentParser) -> None:
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


def _add_call(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    call = commands.add_parser(
        "call",
        help="make one governed call",
        description="Make one call, under the same rules as a model's. Exit codes: 0 ok, 1 the tool failed, "
        "2 usage (also arguments that do not fit), 3 denied.",
        allow_abbrev=False,
    )
    call.add_argument("tool", metavar="TOOL", help="`mcp-tools list` shows them")
    call.add_argument(
        "--arg",
        dest="arguments",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="repeatable; read as JSON where the tool's schema does not take text",
    )
    call.add_argument(
        "--json", metavar="OBJECT", help="all arguments as a JSON object; - reads it from stdin"
    )
    call.add_argument("--yes", action="store_true", help="answer the question, if one is asked, with yes")
    call.add_argument(
        "--output", choices=("text", "json"), default="text", help="json prints the whole result"
    )
    _add_settings(call)


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = commands.add_parser(
        "list", help="show the tools", description="Show the tools.", allow_abbrev=False
    )
    listing.add_argument("--format", choices=("table", "json", "anthropic", "openai"), default="table")
    listing.add_argument("--tag", help="only tools that carry it")
    _add_settings(listing)


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="say what works here, what does not, and what to change",
        description="Look at the sandbox, Docker, settings, folders, clients and versions. Exit codes: 0 "
        "what is configured holds here, 1 it does not, 2 usage.",
        allow_abbrev=False,
    )
    doctor.add_argument("--json", dest="as_json", action="store_true", help="for programs")
    doctor.add_argument(
        "--attack", action="store_true", help="also attack the sandbox and report breaches; takes a minute"
    )
    _add_listener(doctor)
    _add_settings(doctor)


def _add_settings(command: argparse.ArgumentParser) -> None:
    """The flags that every command takes; what they mean is in `mcp_tools.config.Settings`."""
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
