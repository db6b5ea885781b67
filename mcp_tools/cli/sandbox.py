"""`mcp-tools sandbox`: what `execute_python`'s containers are made from.

Every command imports this for its arguments, so the rest is imported when it runs.
"""

from __future__ import annotations

import argparse
import sys

from mcp_tools.cli import exits

DEFAULT_TAG = "mcp-tools-python:latest"
_PING_S = 10.0
# An engine answers an import, or one step of a build, when it is done with it.
_WORK_S = 1800.0


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and those below it to the command line."""
    sandbox = commands.add_parser(
        "sandbox",
        help="make images for execute_python's containers",
        description="What execute_python's containers are made from.",
        allow_abbrev=False,
    )
    sandbox.set_defaults(parser=sandbox)
    below = sandbox.add_subparsers(dest="sandbox_command", metavar="COMMAND")
    build = below.add_parser(
        "build-image",
        help="make an image with chosen packages",
        description="Make an image for execute_python's containers, on a base image or from this host's "
        "Python, run it once, and print the settings that use it. Progress goes to stderr.",
        allow_abbrev=False,
    )
    build.set_defaults(parser=build)
    build.add_argument(
        "packages", nargs="*", metavar="PACKAGE", help="what pip installs: `numpy`, `pandas>=2.3`, a wheel"
    )
    build.add_argument(
        "--requirement",
        dest="requirements",
        action="append",
        default=[],
        metavar="FILE",
        help="a file of requirements to install; repeatable",
    )
    build.add_argument("--tag", default=DEFAULT_TAG, help=f"the image's name; default {DEFAULT_TAG}")
    source = build.add_mutually_exclusive_group()
    source.add_argument("--base", metavar="IMAGE", help="what to build on; default python:3.11-slim")
    source.add_argument(
        "--from-host",
        action="store_true",
        help="copy the Python that runs this command instead: needs no registry; only on Linux",
    )
    build.add_argument(
        "--pull", action="store_true", help="ask the registry for a newer base also when there is one"
    )
    build.add_argument("--config", metavar="FILE", help="a TOML file of settings, instead of your own one")
    build.add_argument(
        "--python-engine", metavar="HOST|CONTEXT", help="a Docker host or context, as in the settings"
    )


def sandbox(arguments: argparse.Namespace) -> int:
    """Run the command below `sandbox`, or show which there are."""
    from mcp_tools.cli.terminal import for_display
    from sandbox import SandboxConfigError, SandboxError

    if arguments.sandbox_command is None:
        arguments.parser.print_help(sys.stderr)
        return exits.USAGE
    if arguments.from_host and arguments.pull:
        arguments.parser.error("--pull asks a registry, and --from-host needs none: give one of them")
    try:
        return _build_image(arguments)
    except SandboxConfigError as error:
        print(f"mcp-tools: {for_display(str(error))}", file=sys.stderr)
        return exits.USAGE
    except SandboxError as error:
        print(f"mcp-tools: {for_display(str(error))}", file=sys.stderr)
        return exits.FAILED


def _build_image(arguments: argparse.Namespace) -> int:
    from mcp_tools.cli.prepare import read_settings
    from sandbox.docker import image
    from sandbox.docker.engine import Engine

    where = read_settings(arguments).python_engine
    engine = Engine(where, ping_s=_PING_S, answer_s=_WORK_S)
    try:
        if arguments.from_host:
            image.import_from_host(
                engine,
                arguments.tag,
                packages=arguments.packages,
                requirements=arguments.requirements,
                on_progress=_tell,
            )
        else:
            image.build(
                engine,
                arguments.tag,
                base=arguments.base or image.DEFAULT_BASE,
                packages=arguments.packages,
                requirements=arguments.requirements,
                pull=arguments.pull,
                on_progress=_tell,
            )
        facts = image.check(engine, arguments.tag)
    finally:
        engine.close()
    for name, version in facts.packages.items():
        _tell(f"has {name} {version}")
    _tell(
        f"{facts.name} runs: Python {facts.python} on {facts.machine}, {facts.size_bytes / 1e6:.0f} MB. "
        "Its settings:"
    )
    print(settings_for(facts.name, where))
    return exits.OK


def settings_for(image: str, engine: str | None) -> str:
    """The lines of a settings file that use an image."""
    import json  # a text in JSON is one in TOML

    lines = ['python_backend = "docker"', f"python_image = {json.dumps(image)}"]
    if engine is not None:
        lines.append(f"python_engine = {json.dumps(engine)}")
    return "\n".join(lines)


def _tell(line: str) -> None:
    from mcp_tools.cli.terminal import for_display

    print(for_display(line), file=sys.stderr, flush=True)
