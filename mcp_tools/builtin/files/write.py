"""write_file: a whole new content, shown as a diff first, put in place at once or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from typing import Annotated, Final, Literal

from pydantic import Field

from mcp_tools.builtin.files import diff
from mcp_tools.builtin.files.guard import refuse_now, why_ask
from mcp_tools.builtin.files.results import Result
from mcp_tools.builtin.files.text import encode, quoted_path
from mcp_tools.builtin.workspace import Target, Workspace, atomic, snapshot
from mcp_tools.builtin.workspace.problems import FileProblem
from mcp_tools.builtin.workspace.snapshot import Snapshot
from mcp_tools.builtin.workspace.threads import Work
from mcp_tools.errors import ToolError
from mcp_tools.types import CallContext, Preview

MAX_WRITTEN_BYTES: Final = 10 * 1024 * 1024
MAX_APPENDED_TO_BYTES: Final = 256 * 1024 * 1024
MAX_DIFFED_BYTES: Final = 1024 * 1024
_TRIES: Final = 5
_MAX_CONTINUED_BYTES: Final = 4 * 1024
"""Of a last line without a newline, shown with what is added to it."""

Mode = Literal["w", "a", "x"]
Sha256 = Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$")]


class Written(Result):
    """What became of a write."""

    path: str
    bytes_written: int
    size_bytes: int
    created: bool
    sha256: str
    notes: list[str]


class WriteTools:
    """write_file over one workspace, with what is asked and shown before it."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def write_file(
        self,
        path: str,
        content: str,
        mode: Mode = "w",
        expectedSha256: Sha256 = None,  # noqa: N803 (the wire's name)
        *,
        context: CallContext,
    ) -> Written:
        """Write a text file (UTF-8, line ends exactly as sent, up to 10 MiB).

        The file changes at once or not at all. Its folder must exist (create_directory makes one). To
        change a part of a file, use edit_file. Cannot write outside the allowed folders.

        Args:
            path: Relative to the first allowed folder, or absolute.
            content: The whole text; with mode "a" what is added at the end.
            mode: "w" creates or replaces, "a" adds at the end (creates if missing), "x" only creates.
            expectedSha256: Write only if the file's content has this SHA-256 (see get_file_info).
        """
        data = _checked(content)
        return await self._workspace.threads.run(
            lambda work: self._write(path, data, mode, expectedSha256, context, work)
        )

    async def preview(
        self,
        path: str,
        content: str,
        mode: Mode,
        expectedSha256: str | None,  # noqa: N803
    ) -> Preview:
        """Show the diff a write would make."""
        data = _checked(content)

        def look(work: Work) -> Preview:
            with self._workspace.target(path, follow=mode != "x") as target:
                before, old = _look(target)
                _check(target, before, mode, expectedSha256)
                return _describe(target, before, old, data, mode, work)

        return await self._workspace.threads.run(look)

    async def must_ask(
        self,
        path: str,
        content: str,
        mode: Mode,
        expectedSha256: str | None,  # noqa: N803
    ) -> str | None:
        """Say why this path is asked about even where writes are pre-approved."""

        def look(_: Work) -> str | None:
            with self._workspace.target(path, follow=mode != "x") as target:
                return why_ask(target.real_path, path)

        return await self._workspace.threads.run(look)

    def _write(
        self, path: str, data: bytes, mode: Mode, expected: str | None, context: CallContext, work: Work
    ) -> Written:
        for tries_left in reversed(range(_TRIES)):
            with self._workspace.target(path, follow=mode != "x") as target:
                before = snapshot.take(target)
                if context.approved_state is not None and before.state != context.approved_state:
                    raise atomic.ChangedMeanwhile(path)
                _check(target, before, mode, expected)
                digest = hashlib.sha256()
                try:
                    replaced = atomic.replace(
                        target,
                        before,
                        _writer(target, before, data, mode, digest.update),
                        work=work,
                        last_look=lambda target=target: refuse_now(self._workspace, [target], context),  # type: ignore[misc]
                    )
                except atomic.ChangedMeanwhile:
                    # Somebody else wrote first. Only who asked for a certain state is told; for the
                    # others the order of two writes is as good as the other.
                    if context.approved_state is not None or expected is not None or not tries_left:
                        raise
                    continue
                return Written(
                    path=self._workspace.display(target.root, target.real_parts),
                    bytes_written=len(data),
                    size_bytes=replaced.size_bytes,
                    created=replaced.is_new,
                    sha256=digest.hexdigest(),
                    notes=list(replaced.notes),
                )
        raise atomic.ChangedMeanwhile(path)


def _checked(content: str) -> bytes:
    data = encode(content)
    if len(data) > MAX_WRITTEN_BYTES:
        raise ToolError(
            f"content is {len(data):,} bytes; at most {MAX_WRITTEN_BYTES:,} are written at once. Write the "
            'first part, then add the others with mode "a"'
        )
    return data


def _check(target: Target, before: Snapshot, mode: Mode, expected: str | None) -> None:
    if expected is not None and before.sha256 != expected:
        found = f"has sha256 {before.sha256}" if before.sha256 else "is not there, or no file"
        raise FileProblem(target.asked, f"{found}, not the expected one; nothing was written. Read it again")
    if before.status is None:
        return
    if mode == "x":
        raise FileProblem(target.asked, 'exists already, and mode "x" only creates; nothing was written')
    if not stat.S_ISREG(before.status.st_mode):
        raise FileProblem(target.asked, "is not a regular file; nothing was written")
    if mode == "a" and before.status.st_size > MAX_APPENDED_TO_BYTES:
        raise FileProblem(
            target.asked,
            f"is {before.status.st_size:,} bytes; files over {MAX_APPENDED_TO_BYTES:,} are not added to, "
            "since adding copies the file so that it changes at once. Nothing was written",
        )


def _writer(
    target: Target, before: Snapshot, data: bytes, mode: Mode, note: Callable[[bytes], None]
) -> Callable[[int], None]:
    def write(fd: int) -> None:
        if mode == "a" and before.status is not None:
            old_fd = snapshot.open_regular(target)
            try:
                for block in snapshot.blocks(old_fd, MAX_APPENDED_TO_BYTES):
                    atomic.write_all(fd, block)
                    note(block)
            finally:
                os.close(old_fd)
        atomic.write_all(fd, data)
        note(data)

    return write


def _look(target: Target) -> tuple[Snapshot, bytes | None]:
    """Return what is there, with its content where that is worth a diff."""
    status = target.status()
    if status is not None and stat.S_ISREG(status.st_mode) and status.st_size <= MAX_DIFFED_BYTES:
        return snapshot.read(target, MAX_DIFFED_BYTES)
    return snapshot.take(target), None


def _describe(
    target: Target, before: Snapshot, old: bytes | None, data: bytes, mode: Mode, work: Work
) -> Preview:
    size_before = before.status.st_size if before.status is not None else 0
    size_after = len(data) + (size_before if mode == "a" else 0)
    verb = "Create" if before.status is None else "Add to" if mode == "a" else "Replace"
    sizes = f"{size_after:,} bytes" if before.status is None else f"{size_before:,} → {size_after:,} bytes"
    lines = [f"{verb} {quoted_path(target.real_path)} ({sizes}, UTF-8)"]
    if before.status is not None and before.status.st_nlink > 1:
        lines.append(
            f"The file has {before.status.st_nlink} names (hard links); only this one gets the new content."
        )
    name = "/".join(target.real_parts)
    new = data.decode()
    try:
        old_text = "" if before.status is None else None if old is None else old.decode()
    except UnicodeDecodeError:
        old_text = None
    is_end = False
    if old_text is None:
        digest = f", sha256 {before.sha256}" if before.sha256 else ""
        kind = "is not UTF-8 text" if old is not None else "is too big for a diff"
        lines.append(f"What is there now {kind} ({size_before:,} bytes{digest}).")
        is_end = mode == "a"
        old_text = _unfinished_line(target, before, old) if is_end else ""
        if old_text:
            lines.append(
                "It does not end with a newline: what is added continues its last line. That line "
                f"(at most its last {_MAX_CONTINUED_BYTES:,} bytes) as it is (-) and as it becomes (+):"
            )
        else:
            lines.append("Added at the end:" if is_end else "New content:")
    new_text = old_text + new if mode == "a" else new
    change = diff.whole(old_text, new_text, name, work.check, max_chars=diff.MAX_PREVIEW_CHARS, is_end=is_end)
    return Preview(
        text="\n".join([*lines, change.text]),
        state=before.state,
        left_out=change.left_out,
        shows=frozenset() if change.left_out else frozenset({"content"}),
    )


def _unfinished_line(target: Target, before: Snapshot, old: bytes | None) -> str:
    """Return the end of the last line where no newline ends it, else nothing."""
    if old is None:
        fd = snapshot.open_regular(target)
        try:
            start = max(os.fstat(fd).st_size - _MAX_CONTINUED_BYTES, 0)
            old = os.pread(fd, _MAX_CONTINUED_BYTES, start)
            if before.status is None or not snapshot.is_unchanged(before.status, os.fstat(fd)):
                raise atomic.ChangedMeanwhile(target.asked)
        finally:
            os.close(fd)
    # Half a character at the cut, and what is no UTF-8, become U+FFFD, which is seen.
    return old[-_MAX_CONTINUED_BYTES:].rpartition(b"\n")[2].decode(errors="replace")
