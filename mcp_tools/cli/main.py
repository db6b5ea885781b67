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
from mcp_tools.cli import chat as chat_command
from mcp_tools.cli import sandbox as sandbox_command
from mcp_tools.cli import usage as usage_command
from mcp_tools.cli.exits import FAILED, INTERRUPTED, USAGE
from mcp_tools.cli.flags import add_listener, add_settings
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
        case "chat":
            return chat_command.chat(arguments)
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
    chat_command.add_parser(commands)
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
    add_listener(serve)
    add_settings(serve)


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
    add_settings(call)


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = commands.add_parser(
        "list", help="show the tools", description="Show the tools.", allow_abbrev=False
    )
    listing.add_argument("--format", choices=("table", "json", "anthropic", "openai"), default="table")
    listing.add_argument("--tag", help="only tools that carry it")
    add_settings(listing)


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
    add_listener(doctor)
    add_settings(doctor)
