"""The tools that say what is there: lists, trees, details. None of them changes anything."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, Field

from mcp_tools.builtin.files import glob
from mcp_tools.builtin.files.guard import check_opened, permitted, permitted_below
from mcp_tools.builtin.files.results import Result
from mcp_tools.builtin.workspace import Workspace, snapshot
from mcp_tools.builtin.workspace.beneath import O_PATH, kind_of
from mcp_tools.builtin.workspace.problems import escaped, explain
from mcp_tools.builtin.workspace.protected import why_protected
from mcp_tools.builtin.workspace.roots import NO_ROOTS
from mcp_tools.builtin.workspace.threads import Work
from mcp_tools.builtin.workspace.walk import WALK_S, Entry, Walk
from mcp_tools.errors import ToolError
from mcp_tools.output.plain import encodable
from mcp_tools.types import CallContext, TextContent, ToolOutput

MAX_LISTED: Final = 1_000
MAX_TREE_LEVELS: Final = 20
MAX_PATTERNS: Final = 50

Patterns = Annotated[list[str], Field(max_length=MAX_PATTERNS)]


class ListedEntry(Result):
    """One name in a folder. `type` is file, directory, link, or what else it is."""

    name: str
    type: str


class Listing(Result):
    """A folder's names, sorted. `total` counts those that were seen, `notices` says what is missing."""

    path: str
    entries: list[ListedEntry]
    total: int
    notices: list[str]


class SizedEntry(ListedEntry):
    """One name with the size of a file (null for everything else) and the time it was changed."""

    size_bytes: int | None
    modified: str | None


class SizedListing(Result):
    """A folder's names with sizes."""

    path: str
    entries: list[SizedEntry]
    total: int
    total_size_bytes: int
    notices: list[str]


class TreeEntry(ListedEntry):
    """One name in a tree. `children` is null for what is no folder, and for folders not looked into."""

    children: list[TreeEntry] | None = None


class Tree(Result):
    """A folder with everything below it."""

    path: str
    children: list[TreeEntry]
    notices: list[str]


class FileInfo(Result):
    """What is known of one file or folder. Times are UTC; `sha256` is null over 64 MiB."""

    path: str
    absolute_path: str
    type: str
    size_bytes: int
    modified: str
    accessed: str
    changed: str
    permissions: str
    owner: int
    group: int
    hard_links: int
    reached_through_link: bool
    is_protected: bool
    sha256: str | None = None


class AllowedDirectories(Result):
    """The folders the file tools can reach; relative paths start at the first."""

    directories: list[str]


class ListingTools:
    """The tools that look over one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def list_directory(self, path: str = ".", *, context: CallContext) -> ToolOutput:
        """List the names in a folder, each marked [FILE], [DIR] or [LINK].

        At most 1,000 names; a notice says how many more there are. Links are not followed.

        Args:
            path: Relative to the first allowed folder, or absolute; "." is the first allowed folder.
        """

        def look(work: Work) -> ToolOutput:
            with opened_folder(self._workspace, path, context) as folder:
                walk = Walk(self._workspace.opener, folder.fd, work, permits=folder.permits, is_deep=False)
                found = list(walk)
            notices = [*walk.notices, *_too_many(found)]
            listing = Listing(
                path=encodable(folder.name),
                entries=[ListedEntry(name=encodable(e.parts[-1]), type=e.kind) for e in found[:MAX_LISTED]],
                total=len(found),
                notices=notices,
            )
            lines = [f"{_mark(e.kind)} {escaped(e.parts[-1])}" for e in found[:MAX_LISTED]]
            return output(lines or ["(the folder is empty)"], notices, listing)

        return await self._workspace.threads.run(look, deadline_s=WALK_S)

    async def list_directory_with_sizes(
        self,
        path: str = ".",
        sortBy: Literal["name", "size"] = "name",  # noqa: N803 (the wire's name)
        *,
        context: CallContext,
    ) -> ToolOutput:
        """List the names in a folder with sizes and times, and the sum.

        At most 1,000 names; a notice says how many more there are. Links are not followed.

        Args:
            path: Relative to the first allowed folder, or absolute; "." is the first allowed folder.
            sortBy: "name", or "size" with the biggest first.
        """

        def look(work: Work) -> ToolOutput:
            with opened_folder(self._workspace, path, context) as folder:
                walk = Walk(self._workspace.opener, folder.fd, work, permits=folder.permits, is_deep=False)
                found = list(walk)
                sized = [_sized(folder.fd, entry) for entry in found]
            if sortBy == "size":
                sized.sort(key=lambda entry: -(entry.size_bytes or 0))
            notices = [*walk.notices, *_too_many(found)]
            total_size_bytes = sum(entry.size_bytes or 0 for entry in sized)
            listing = SizedListing(
                path=encodable(folder.name),
                entries=sized[:MAX_LISTED],
                total=len(found),
                total_size_bytes=total_size_bytes,
                notices=notices,
            )
            lines = [
                f"{_mark(e.type)} {escaped(e.name)}"
                + (f"  {e.size_bytes:,} bytes" if e.size_bytes is not None else "")
                for e in listing.entries
            ]
            folders = sum(entry.is_folder for entry in found)
            lines.append(
                f"Total: {len(found) - folders:,} files, {folders:,} directories, {total_size_bytes:,} bytes"
            )
            return output(lines, notices, listing)

        return await self._workspace.threads.run(look, deadline_s=WALK_S)

    async def directory_tree(
        self,
        path: str = ".",
        excludePatterns: Patterns = [],  # noqa: N803, B006 (read only; the schema shows it)
        *,
        context: CallContext,
    ) -> ToolOutput:
        """Show a folder with everything below it.

        At most 1,000 names and 20 levels, upper levels first; a notice says what is missing. Links are
        not followed.

        Args:
            path: Relative to the first allowed folder, or absolute; "." is the first allowed folder.
            excludePatterns: What to leave out, for example ["node_modules", ".git", "*.pyc"].
        """
        excluded = glob.compile_all(excludePatterns)

        def look(work: Work) -> ToolOutput:
            with opened_folder(self._workspace, path, context) as folder:
                walk = Walk(
                    self._workspace.opener,
                    folder.fd,
                    work,
                    skip=lambda parts: len(parts) > MAX_TREE_LEVELS or glob.any_matches(excluded, parts),
                    permits=folder.permits,
                    depth_first=False,
                )
                tree, notices = _tree(walk)
            whole = Tree(path=encodable(folder.name), children=tree, notices=notices)
            return output(_tree_lines(tree, 0) or ["(the folder is empty)"], notices, whole)

        return await self._workspace.threads.run(look, deadline_s=WALK_S)

    async def get_file_info(self, path: str, *, context: CallContext) -> ToolOutput:
        """Return type, size, times, permissions and SHA-256 of a file or folder, without its content.

        Args:
            path: Relative to the first allowed folder, or absolute.
        """

        def look(_: Work) -> ToolOutput:
            place = self._workspace.locate(path)
            try:
                fd = self._workspace.opener(place.root.fd, place.parts, O_PATH or os.O_RDONLY | os.O_NONBLOCK)
            except OSError as error:
                raise explain(error, path) from error
            check_opened(self._workspace, place, fd, context)
            try:
                status = os.fstat(fd)
                real_parts, real_path = self._workspace.real_location(place.root, fd)
            except OSError as error:
                raise explain(error, path) from error
            finally:
                os.close(fd)
            info = FileInfo(
                path=encodable(self._workspace.display(place.root, real_parts)),
                absolute_path=encodable(real_path),
                type=kind_of(status.st_mode),
                size_bytes=status.st_size,
                modified=_utc(status.st_mtime),
                accessed=_utc(status.st_atime),
                changed=_utc(status.st_ctime),
                permissions=f"{stat.S_IMODE(status.st_mode):03o}",
                owner=status.st_uid,
                group=status.st_gid,
                hard_links=status.st_nlink,
                reached_through_link=real_parts != place.parts,
                is_protected=why_protected(real_path.strip("/").split("/")) is not None,
                sha256=self._digest(path) if stat.S_ISREG(status.st_mode) else None,
            )
            lines = [f"{name}: {escaped(str(value))}" for name, value in info if value is not None]
            return output(lines, [], info)

        return await self._workspace.threads.run(look)

    async def list_allowed_directories(self) -> ToolOutput:
        """List the folders that the file tools can reach. Relative paths start at the first."""
        roots = [root.real for root in self._workspace.roots]
        whole = AllowedDirectories(directories=[encodable(root) for root in roots])
        return output([escaped(root) for root in roots] or [NO_ROOTS], [], whole)

    def _digest(self, path: str) -> str | None:
        try:
            with self._workspace.target(path) as target:
                return snapshot.take(target).sha256
        except ToolError:  # unreadable, or being written to: everything else can still be told
            return None


class OpenedFolder(NamedTuple):
    """A folder to look through.

    Args:
        fd: Its descriptor, closed at the end of the context.
        name: For a model.
        permits: Told the names from the folder down to something in it, says whether the rules let the
            call touch it; None where no rule forbids anything.
    """

    fd: int
    name: str
    permits: Callable[[Sequence[str]], bool] | None


@contextmanager
def opened_folder(workspace: Workspace, path: str, context: CallContext) -> Iterator[OpenedFolder]:
    """Open a folder to look through.

    Raises:
        ToolError: Outside, no folder, or unreadable.
    """
    place = workspace.locate(path)
    folder_fd = workspace.open_folder(place, may_name=permitted(workspace, place.root, context))
    check_opened(workspace, place, folder_fd, context)
    try:
        real_parts, real_path = workspace.real_location(place.root, folder_fd)
        yield OpenedFolder(
            fd=folder_fd,
            name=workspace.display(place.root, real_parts),
            permits=permitted_below(workspace, place.root, real_path, context),
        )
    except OSError as error:
        raise explain(error, path) from error
    finally:
        os.close(folder_fd)


def output(lines: Sequence[str], notices: Sequence[str], structured: BaseModel) -> ToolOutput:
    """Say the same in text and in data."""
    text = "\n".join([*lines, *(f"[{notice}]" for notice in notices)])
    return ToolOutput(content=[TextContent(text=text)], structured=structured.model_dump())


def _too_many(found: Sequence[Entry]) -> list[str]:
    more = len(found) - MAX_LISTED
    if more <= 0:
        return []
    return [f"{more:,} more names are not shown; search_files finds names by pattern"]


def _mark(kind: str) -> str:
    return {"file": "[FILE]", "directory": "[DIR]", "link": "[LINK]"}.get(kind, f"[{kind.upper()}]")


def _sized(folder_fd: int, entry: Entry) -> SizedEntry:
    name = entry.parts[-1]
    try:
        status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except OSError:
        return SizedEntry(name=encodable(name), type=entry.kind, size_bytes=None, modified=None)
    size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None
    return SizedEntry(
        name=encodable(name), type=entry.kind, size_bytes=size_bytes, modified=_utc(status.st_mtime)
    )


def _tree(walk: Walk) -> tuple[list[TreeEntry], list[str]]:
    tops: list[TreeEntry] = []
    folders: dict[tuple[str, ...], TreeEntry] = {}
    notices: list[str] = []
    for index, entry in enumerate(walk):
        if index >= MAX_LISTED:
            notices.append(
                f"only the first {MAX_LISTED:,} names are shown; exclude some, or list a folder below"
            )
            break
        node = TreeEntry(name=encodable(entry.parts[-1]), type=entry.kind)
        above = folders.get(entry.parts[:-1])
        if above is None:
            tops.append(node)
        elif above.children is None:
            above.children = [node]
        else:
            above.children.append(node)
        if entry.is_folder:
            folders[entry.parts] = node
            if len(entry.parts) == MAX_TREE_LEVELS:
                notices = [f"folders below level {MAX_TREE_LEVELS} are not shown"]
    return tops, [*walk.notices, *notices]


def _tree_lines(tree: Sequence[TreeEntry], level: int) -> list[str]:
    lines: list[str] = []
    for node in tree:
        slash = "/" if node.type == "directory" else " (link)" if node.type == "link" else ""
        lines.append(f"{'  ' * level}{escaped(node.name)}{slash}")
        lines += _tree_lines(node.children or (), level + 1)
    return lines


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
