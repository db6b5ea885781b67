"""Programs that may use us: where each keeps its settings, whether we are in them, and whether that works."""

from __future__ import annotations

import glob
import json
import ntpath
import os
import posixpath
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mcp_tools.doctor.model import Finding, State, Subject
from mcp_tools.doctor.starting import NotStarted, start
from mcp_tools.output.masking import mask_secrets

MAX_FILE_BYTES: Final = 16 * 1024**2
Key = Literal["mcpServers", "servers"]

_OURS = re.compile(r"(?i)^(mcp-tools|mcp_tools|mcp-tools-server)(\.exe)?$")
_DIRECT = re.compile(r"(?i)^(mcp-tools|python[\d.]*w?)(\.exe)?$")
_JSON_NOISE = re.compile(
    r"""("(?:[^"\\]|\\.)*") | //[^\n]* | /\*.*?\*/ | ,(?=(?:\s|//[^\n]*|/\*.*?\*/)*[}\]])""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A file in which a client keeps its servers.

    Args:
        client: The client's name.
        path: Where it is, whether it exists or not.
        key: Which of its objects holds the servers.
        is_project: It comes with a project, so perhaps from a stranger: nothing it names is started.
    """

    client: str
    path: str
    key: Key = "mcpServers"
    is_project: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A server in such a file. Its environment may hold secrets and is never shown."""

    name: str
    command: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    url: str


def config_files(platform: str, home: str, environ: Mapping[str, str], cwd: str | None) -> list[ConfigFile]:
    """Every file that the known clients read on this platform."""
    path = ntpath if platform == "win32" else posixpath
    found: list[ConfigFile] = []
    if home:
        if platform == "win32":
            base = environ.get("APPDATA") or path.join(home, "AppData", "Roaming")
            local = environ.get("LOCALAPPDATA") or path.join(home, "AppData", "Local")
        elif platform == "darwin":
            base, local = path.join(home, "Library", "Application Support"), ""
        else:
            given = environ.get("XDG_CONFIG_HOME", "")
            base, local = given if path.isabs(given) else path.join(home, ".config"), ""
        desktop = "claude_desktop_config.json"
        found.append(ConfigFile(client="Claude Desktop", path=path.join(base, "Claude", desktop)))
        if local:
            # As a store app its folder is redirected, and its menu opens a file that it does not read.
            store = path.join(local, "Packages", "Claude_*", "LocalCache", "Roaming", "Claude", desktop)
            found += [ConfigFile(client="Claude Desktop", path=each) for each in glob.glob(store)]
        claude = environ.get("CLAUDE_CONFIG_DIR") or home
        found.append(ConfigFile(client="Claude Code", path=path.join(claude, ".claude.json")))
        found.append(ConfigFile(client="Cursor", path=path.join(home, ".cursor", "mcp.json")))
        for product in ("Code", "Code - Insiders"):
            name = "VS Code" if product == "Code" else "VS Code Insiders"
            found.append(
                ConfigFile(client=name, path=path.join(base, product, "User", "mcp.json"), key="servers")
            )
    if cwd:
        for client, parts, key in (
            ("Claude Code", (".mcp.json",), "mcpServers"),
            ("Cursor", (".cursor", "mcp.json"), "mcpServers"),
            ("VS Code", (".vscode", "mcp.json"), "servers"),
        ):
            file = ConfigFile(
                client=client,
                path=path.join(cwd, *parts),
                key="servers" if key == "servers" else "mcpServers",
                is_project=True,
            )
            if not any(file.path == other.path for other in found):
                found.append(file)
    return found


# --- Reading them -----------------------------------------------------------------------------


def read(file: ConfigFile, cwd: str | None) -> list[Entry]:
    """Return the servers in a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not what the client can read.
    """
    with open(file.path, "rb") as opened:
        raw = opened.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError("it is larger than 16 MiB")
    text = raw.decode("utf-8-sig")
    # VS Code and Cursor accept comments and a comma too much; the others do not.
    if file.client.startswith(("VS Code", "Cursor")):
        text = _JSON_NOISE.sub(lambda match: match[1] or "", text)
    found = json.loads(text) if text.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - of the file, not of a program
    tables = [found.get(file.key)]
    projects = found.get("projects")
    if file.client == "Claude Code" and isinstance(projects, dict) and cwd:
        project = projects.get(cwd)
        tables.append(project.get(file.key) if isinstance(project, dict) else None)
    return [
        _entry(str(name), value)
        for table in tables
        if isinstance(table, dict)
        for name, value in table.items()
        if isinstance(value, dict)
    ]


def _entry(name: str, value: Mapping[str, Any]) -> Entry:
    arguments, environment = value.get("args"), value.get("env")
    return Entry(
        name=name,
        command=str(value.get("command") or ""),
        arguments=tuple(map(str, arguments)) if isinstance(arguments, list) else (),
        environment={str(key): str(each) for key, each in environment.items()}
        if isinstance(environment, dict)
        else {},
        url=str(value.get("url") or value.get("serverUrl") or ""),
    )


def is_ours(entry: Entry) -> bool:
    """Whether an entry is mcp-tools, started directly or through something, or reached by a URL."""
    words = (entry.command, *entry.arguments)
    if any(_OURS.match(ntpath.basename(word)) for word in words):
        return True
    return bool(entry.url or not entry.command) and _OURS.match(entry.name) is not None


# --- Judging them -----------------------------------------------------------------------------


def clients(subject: Subject) -> Sequence[Finding]:
    """Each client that is installed here: whether we are in its settings, and whether what they say works."""
    found: list[Finding] = []
    without: list[Finding] = []
    files = [
        file
        for file in config_files(subject.platform, subject.home, subject.environ, subject.cwd)
        if os.path.isfile(file.path)
    ]
    for file in files:
        name = f"{file.client} ({file.path})"
        try:
            entries = read(file, subject.cwd)
        except OSError as error:
            found.append(
                Finding(name=name, state=State.UNKNOWN, found=f"cannot be read: {error.strerror}", remedy="")
            )
            continue
        except (ValueError, RecursionError) as error:
            found.append(
                Finding(
                    name=name,
                    state=State.PROBLEM,
                    found=f"is not valid JSON ({_place(error)}); clients ignore such a file without a word",
                    remedy="Mend it; a comma too much and a backslash that is not doubled are usual.",
                )
            )
            continue
        ours = [entry for entry in entries if is_ours(entry)]
        found += [_judge(entry, file, subject) for entry in ours]
        if not ours and not file.is_project:
            without.append(
                Finding(name=name, state=State.OK, found=f"has {len(entries)} servers; mcp-tools is not one")
            )
    if any("is not valid JSON" not in finding.found for finding in found):
        return found + without
    return found + without + [_nobody(without)]


def _place(error: Exception) -> str:
    # Not the message: a decoder may quote what it met, and that may be a secret.
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:80]


def _nobody(without: Sequence[Finding]) -> Finding:
    command = shutil.which("mcp-tools") or "/ABSOLUTE/PATH/TO/mcp-tools"
    entry = {"mcp-tools": {"command": command, "args": ["serve", "--root", "/A/FOLDER"]}}
    which = "no client that is known here has mcp-tools" if without else "no client's settings were found"
    return Finding(
        name="clients",
        state=State.WARNING,
        found=which,
        remedy=f"Add it to a client: under mcpServers (in VS Code, servers) put {json.dumps(entry)[1:-1]}",
    )


def _judge(entry: Entry, file: ConfigFile, subject: Subject) -> Finding:
    name = f"{file.client}: {entry.name} ({file.path})"

    def say(state: State, found: str, remedy: str = "") -> Finding:
        return Finding(name=name, state=state, found=found, remedy=remedy)

    if not entry.command:
        where = mask_secrets(entry.url.partition("?")[0])
        return say(State.UNKNOWN, f"reaches a server at {where or 'no address'}; not tried")
    command = mask_secrets(entry.command)
    if any("${" in word for word in (entry.command, *entry.arguments)):
        return say(State.UNKNOWN, f"{command} uses variables that only the client can fill in; not tried")
    path = entry.environment.get("PATH") or subject.environ.get("PATH") or os.defpath
    found = shutil.which(os.path.expanduser(entry.command), path=path)
    if found is None:
        exists = os.path.exists(entry.command)
        return say(
            State.PROBLEM,
            f"{command} {'cannot be executed' if exists else 'does not exist'}; the client shows no tools",
            _right_command(file),
        )
    if file.is_project:
        return say(State.OK, f"{command} exists; not tried, because the file comes with the project")
    if not _DIRECT.match(ntpath.basename(entry.command)) or not _serves_on_stdio(entry):
        return say(State.UNKNOWN, f"{command} exists; not tried, because it may do more than start a server")
    try:
        server = start(found, entry.arguments, entry.environment, subject.environ, subject.home)
    except NotStarted as refusal:
        return say(State.PROBLEM, f"{command} does not serve: {mask_secrets(str(refusal))}", _try_it(entry))
    if not os.path.isabs(entry.command):
        return say(
            State.WARNING,
            f"{command} starts ({server}), and is found by PATH, which is often another one in a client",
            f"Write the whole path: {found}",
        )
    return say(State.OK, f"{command} starts ({server})")


def _serves_on_stdio(entry: Entry) -> bool:
    words = entry.arguments
    if _OURS.match(ntpath.basename(entry.command)):
        starts = words[:1] == ("serve",)
    else:
        starts = words[:3] == ("-m", "mcp_tools", "serve")
    return starts and not any(word.removeprefix("--transport=") in ("http", "sse") for word in words)


def _right_command(file: ConfigFile) -> str:
    ours = shutil.which("mcp-tools")
    return (
        f"Put {ours} there, in {file.path}." if ours else f"Put the whole path of mcp-tools into {file.path}."
    )


def _try_it(entry: Entry) -> str:
    return f"Run what the entry {entry.name!r} says in a terminal and see what it prints."
