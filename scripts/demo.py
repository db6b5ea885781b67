"""The guided demonstration that `scripts/try` ends with: a real server, a real client, real files.

Everything shown is checked as well: the exit code is 1 when something did not go as told.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

CHECKOUT = Path(__file__).resolve().parent.parent
SERVER = str(Path(sys.executable).with_name("mcp-tools"))
PERSON_IS_HERE = sys.stdin.isatty() and sys.stdout.isatty()
BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")

NOTES = "milk\nbread\n"
NEW_NOTES = "milk\nbread\ncoffee\n"
PRIVATE = "nobody but me should read this\n"
ME = types.Implementation(name="the demonstration", version="1")

failures: list[str] = []
interrupts: list[KeyboardInterrupt] = []


def heading(text: str) -> None:
    print(f"\n{BOLD}{text}{PLAIN}")


def shown(text: str, indent: str = "    ") -> None:
    """Print lines, indented and wrapped to the terminal."""
    width = max(60, min(shutil.get_terminal_size().columns, 110))
    for line in text.rstrip("\n").split("\n"):
        more = indent + " " * (len(line) - len(line.lstrip()) + 2)
        print(textwrap.fill(line, width, initial_indent=indent, subsequent_indent=more) if line else "")


def check(holds: bool, what: str) -> None:
    if not holds:
        failures.append(what)


def text_of(result: types.CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, types.TextContent))


# --- Answering questions ----------------------------------------------------------------------


def answer(approve: bool) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"approve": approve})


async def ask_the_person(_context: Any, params: Any) -> types.ElicitResult:
    """What a client does with a question: show it, and send back what the person says."""
    print()
    shown(params.message)
    print()
    if not PERSON_IS_HERE:
        print("    Allow it? [y/N] y   (no terminal here, so the demonstration answers)")
        return answer(approve=True)
    # The event loop's own handler would not interrupt `input`.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        reply = input("    Allow it? [y/N] ")  # noqa: ASYNC250 - nothing else has anything to do
    except EOFError:
        print()
        return types.ElicitResult(action="cancel")
    except KeyboardInterrupt as error:
        interrupts.append(error)  # raised here, it would tear down the connection with a traceback
        return types.ElicitResult(action="cancel")
    finally:
        signal.signal(signal.SIGINT, before)
    return answer(approve=reply.strip().lower() in ("y", "yes"))


async def say_no(_context: Any, params: Any) -> types.ElicitResult:
    await anyio.sleep(0.3)  # a no within milliseconds is not taken for a person's
    print("    Asked whether to allow it, the demonstration says no.")
    return answer(approve=False)


# --- The tour ---------------------------------------------------------------------------------


def log_of(root: Path) -> Path:
    """The demonstration's own audit log: what it does is no business of yours."""
    return root.parent / "records" / "audit.jsonl"


def server_for(root: Path) -> StdioServerParameters:
    flags = ["--root", str(root), "--log-level", "error", "--audit-log", str(log_of(root))]
    return StdioServerParameters(command=SERVER, args=["serve", *flags])


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        [SERVER, "audit", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


async def tour(folder: Path) -> None:
    root = folder / "allowed"
    root.mkdir()
    (root / "shopping.txt").write_text(NOTES)
    (folder / "private.txt").write_text(PRIVATE)
    (root / "shortcut.txt").symlink_to(folder / "private.txt")

    heading("1. A server is started, as Claude Desktop would, with one allowed folder")
    shown(f"mcp-tools serve --root {root}")
    answering = ask_the_person

    async def on_question(context: Any, params: Any) -> types.ElicitResult:
        return await answering(context, params)

    async with Client(server_for(root), client_info=ME, elicitation_callback=on_question) as client:
        print(f"    connected, protocol {client.protocol_version}")

        heading("2. The tools it offers")
        tools = (await client.list_tools()).tools
        for tool in tools:
            first_line = (tool.description or "").split("\n")[0]
            asks = tool.annotations is not None and not tool.annotations.read_only_hint
            what = textwrap.shorten(first_line, 68, placeholder=" …")
            print(f"    {tool.name:<26}{'asks ' if asks else '     '}{what}")
        check(len(tools) >= 10, "the file tools are listed")

        heading("3. Reading needs no question")
        result = await client.call_tool("read_file", {"path": "shopping.txt"})
        shown("read_file shopping.txt\n" + text_of(result))
        check(text_of(result) == NOTES, "shopping.txt is read")

        heading("4. Changing something does: the question shows the exact change")
        result = await client.call_tool("write_file", {"path": "shopping.txt", "content": NEW_NOTES})
        if interrupts:
            return
        now = (root / "shopping.txt").read_text()
        print()
        shown(text_of(result))
        changes = difflib.unified_diff(
            NOTES.splitlines(), now.splitlines(), "before", "on disk now", lineterm=""
        )
        shown("\n".join(changes) or "shopping.txt on disk is as it was.")
        check(now == (NOTES if result.is_error else NEW_NOTES), "the file changes if and only if you say yes")
        check(not result.is_error or PERSON_IS_HERE, "the file changes after a yes")

        heading("5. What is refused, and why")
        for title, path in (
            ("a path outside the allowed folder", "../private.txt"),
            ("a link inside that leads outside", "shortcut.txt"),
        ):
            result = await client.call_tool("read_file", {"path": path})
            shown(f"{title}: read_file {path}\n→ {text_of(result)}")
            print()
            check(bool(result.is_error) and PRIVATE.strip() not in text_of(result), f"{title} is refused")

        print("    a write that the person declines: write_file new.txt")
        answering = say_no
        result = await client.call_tool("write_file", {"path": "new.txt", "content": "hello\n"})
        shown(f"→ {text_of(result)}")
        check(bool(result.is_error) and not (root / "new.txt").exists(), "a declined write is not done")

    heading("6. A client that cannot ask (Claude Desktop, today): nothing happens behind your back")
    async with Client(server_for(root), client_info=ME) as client:
        result = await client.call_tool("write_file", {"path": "new.txt", "content": "hello\n"})
        shown(f"write_file new.txt\n→ {text_of(result)}")
        check(
            bool(result.is_error) and not (root / "new.txt").exists(), "without a question nothing is written"
        )

    show_records(log_of(root))


def show_records(log: Path) -> None:
    heading("7. All of it is on record, from before it was answered")
    records, verified = audit("tail", "-n", "6", str(log)), audit("verify", str(log))
    shown(f"mcp-tools audit tail\n{records.stdout}\nmcp-tools audit verify\n{verified.stdout}")
    check("write_file" in records.stdout and verified.returncode == 0, "the audit log is whole")


def how_to_plug_in() -> None:
    heading("Plug it into Claude Desktop")
    if sys.platform == "darwin":
        place = "~/Library/Application Support/Claude/claude_desktop_config.json"
    else:
        place = "~/.config/Claude/claude_desktop_config.json"
    entry = {"command": SERVER, "args": ["serve", "--root", str(CHECKOUT / "docs")]}
    print(f"    Put this into {place} and start it again.")
    print("    The last line names the folder that the model may touch: choose yours, as an absolute path.\n")
    print(json.dumps({"mcpServers": {"mcp-tools": entry}}, indent=2, ensure_ascii=False))
    print(
        "\n    Claude Code:  " + f'claude mcp add mcp-tools -- "{SERVER}" serve --root "{CHECKOUT / "docs"}"'
    )
    print("    VS Code, Cursor, rules that allow some writes without a question: README.md")


def main() -> int:
    try:
        with tempfile.TemporaryDirectory(prefix="mcp-tools-demo-") as folder:
            anyio.run(tour, Path(folder).resolve())
    except KeyboardInterrupt:
        interrupts.append(KeyboardInterrupt())
    if interrupts:
        print("\nstopped")
        return 130
    how_to_plug_in()
    for what in failures:
        print(f"NOT AS IT SHOULD BE: {what}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
