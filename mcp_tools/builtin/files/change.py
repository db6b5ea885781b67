"""The tools that change names: create_directory, move_file, delete_file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_tools.builtin.files.guard import joined, permitted_below, refuse_now, why_ask
from mcp_tools.builtin.files.results import Result
from mcp_tools.builtin.workspace import Target, Workspace, atomic, snapshot
from mcp_tools.builtin.workspace.beneath import kind_of
from mcp_tools.builtin.workspace.problems import FileProblem, explain, shown
from mcp_tools.builtin.workspace.snapshot import Snapshot
from mcp_tools.builtin.workspace.threads import Work
from mcp_tools.errors import ToolError
from mcp_tools.types import CallContext, Preview

MAX_LOOKED_THROUGH: Final = 20_000
"""Names looked at below a folder that is to be moved; a bigger one is asked about for its size."""

LOOK_THROUGH_S: Final = 3.0
MAX_NEW_FOLDERS: Final = 64


class Created(Result):
    """What became of create_directory. `created` lists the new folders, outermost first."""

    path: str
    created: list[str]


class Moved(Result):
    """What became of a move."""

    source: str
    destination: str


class Deleted(Result):
    """What became of a deletion."""

    path: str
    size_bytes: int


class ChangeTools:
    """create_directory, move_file and delete_file over one workspace, with what is asked before."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    # --- create_directory ---------------------------------------------------------------------

    async def create_directory(self, path: str, *, context: CallContext) -> Created:
        """Create a folder, and the folders above it that are missing. One that exists is left as it is.

        Args:
            path: Relative to the first allowed folder, or absolute.
        """
        return await self._workspace.threads.run(lambda work: self._create(path, context, work))

    async def preview_create(self, path: str) -> Preview | None:
        """Name the folders that would be new; None where there are none."""

        def look(_: Work) -> Preview | None:
            existing, missing = self._missing(path)
            if not missing:
                return None
            return Preview(
                text=f"Create the folder {shown(joined(existing, missing))}"
                + (f" ({len(missing)} levels below {shown(existing)})" if len(missing) > 1 else ""),
                state=_create_state(existing, missing),
            )

        return await self._workspace.threads.run(look)

    async def must_ask_create(self, path: str) -> str | None:
        """Say why this folder is asked about even where it is pre-approved."""

        def look(_: Work) -> str | None:
            existing, missing = self._missing(path)
            return why_ask(joined(existing, missing), path) if missing else None

        return await self._workspace.threads.run(look)

    def _missing(self, path: str) -> tuple[str, tuple[str, ...]]:
        """Return the real path of the deepest folder that exists, and the names that are missing."""
        with self._deepest(path) as (folder_fd, missing):
            place = self._workspace.locate(path)
            return self._workspace.real_location(place.root, folder_fd)[1], missing

    @contextlib.contextmanager
    def _deepest(self, path: str) -> Iterator[tuple[int, tuple[str, ...]]]:
        place = self._workspace.locate(path)
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            for kept in reversed(range(len(place.parts) + 1)):
                try:
                    fd = self._workspace.opener(place.root.fd, place.parts[:kept], flags)
                except FileNotFoundError:
                    continue
                try:
                    yield fd, place.parts[kept:]
                finally:
                    os.close(fd)
                return
        except OSError as error:
            raise explain(error, path, then="nothing was created") from error
        raise FileProblem(path, "its allowed folder is gone")

    def _create(self, path: str, context: CallContext, work: Work) -> Created:
        place = self._workspace.locate(path)
        created: list[str] = []
        with self._deepest(path) as (deepest_fd, missing):
            if len(missing) > MAX_NEW_FOLDERS:
                raise FileProblem(path, f"would need {len(missing)} new folders; at most {MAX_NEW_FOLDERS}")
            real_parts, real = self._workspace.real_location(place.root, deepest_fd)
            approved = context.approved_state
            if approved is not None and missing and approved != _create_state(real, missing):
                raise atomic.ChangedMeanwhile(path)
            reason = None if context.asked or not missing else why_ask(joined(real, missing), path)
            if reason is not None:
                raise FileProblem(path, f"nothing was created, because a person must be asked: {reason}")
            permits = permitted_below(self._workspace, place.root, real, context)
            if permits and not all(permits(missing[: n + 1]) for n in range(len(missing))):
                raise FileProblem(path, "nothing was created, because a rule forbids a folder on the way")
            work.begin_change()
            folder_fd = os.dup(deepest_fd)
            try:
                for name in missing:
                    # From here on by descriptor, without links: each folder is the one just made.
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, atomic.NEW_FOLDER_MODE, dir_fd=folder_fd)
                        real_parts = (*real_parts, name)
                        created.append(self._workspace.display(place.root, real_parts))
                        # At once: each name is on disk before a name below it can be.
                        atomic.sync_folder(folder_fd)
                    inner_fd = os.open(
                        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd
                    )
                    os.close(folder_fd)
                    folder_fd = inner_fd
                real_parts, _ = self._workspace.real_location(place.root, folder_fd)
            except OSError as error:
                then = (
                    f"these folders were created: {', '.join(created)}" if created else "nothing was created"
                )
                raise explain(error, path, then=then) from error
            finally:
                os.close(folder_fd)
        return Created(path=self._workspace.display(place.root, real_parts), created=created)

    # --- move_file ----------------------------------------------------------------------------

    async def move_file(self, source: str, destination: str, *, context: CallContext) -> Moved:
        """Move or rename a file, link or folder. The destination must not exist; its folder must.

        Nothing is ever overwritten. Does not move between file systems or outside the allowed folders.
        A link is moved itself, not what it points to.

        Args:
            source: What to move; relative to the first allowed folder, or absolute.
            destination: The whole new path, with the new name.
        """
        return await self._workspace.threads.run(lambda work: self._move(source, destination, context, work))

    async def preview_move(self, source: str, destination: str) -> Preview:
        """Say what would be moved where."""

        def look(_: Work) -> Preview:
            with self._both(source, destination) as (from_target, to_target):
                before = _present(from_target)
                kind, size = _kind_and_size(before)
                return Preview(
                    text=f"Move the {kind} {shown(from_target.real_path)}{size}\n"
                    f"to {shown(to_target.real_path)} (nothing is there)",
                    state=_move_state(before, to_target),
                )

        return await self._workspace.threads.run(look)

    async def must_ask_move(self, source: str, destination: str) -> str | None:
        """Say why this move is asked about even where it is pre-approved."""

        def look(work: Work) -> str | None:
            with self._both(source, destination) as (from_target, to_target):
                return self._why_ask_move(from_target, to_target, work)

        return await self._workspace.threads.run(look)

    def _move(self, source: str, destination: str, context: CallContext, work: Work) -> Moved:
        with self._both(source, destination) as (from_target, to_target):
            before = _present(from_target)
            approved = context.approved_state
            if approved is not None and _move_state(before, to_target) != approved:
                raise atomic.ChangedMeanwhile(source)

            def last_look() -> None:
                refuse_now(self._workspace, [from_target, to_target], context)
                self._refuse_below(from_target, to_target, context, work)

            atomic.move(from_target, to_target, before, work=work, last_look=last_look)
            display = self._workspace.display
            return Moved(
                source=display(from_target.root, from_target.real_parts),
                destination=display(to_target.root, to_target.real_parts),
            )

    @contextlib.contextmanager
    def _both(self, source: str, destination: str) -> Iterator[tuple[Target, Target]]:
        workspace = self._workspace
        with (
            workspace.target(source, follow=False) as one,
            workspace.target(destination, follow=False) as other,
        ):
            for root in workspace.roots:
                if (root.real + "/").startswith(one.real_path + "/"):
                    raise FileProblem(source, "is or holds an allowed folder, which stays where it is")
            _check_free(one, other)
            yield one, other

    def _why_ask_move(self, source: Target, destination: Target, work: Work) -> str | None:
        reason = why_ask(source.real_path, source.asked) or why_ask(destination.real_path, destination.asked)
        if reason is not None:
            return reason
        try:
            for below in _names_below(self._workspace, source, work):
                reason = _why_ask_below(source, destination, below)
                if reason is not None:
                    return reason
        except _TooMuch:
            return f"{shown(source.asked)} is too big to look through for protected names"
        return None

    def _refuse_below(self, source: Target, destination: Target, context: CallContext, work: Work) -> None:
        """Refuse a folder that holds a name that nobody was asked about, or that a rule forbids."""
        if context.asked and context.screen is None:
            return
        permits = [
            permitted
            for target in (source, destination)
            if (permitted := permitted_below(self._workspace, target.root, target.real_path_now(), context))
        ]
        why: str | None = None
        try:
            for below in _names_below(self._workspace, source, work):
                if not all(permitted(below) for permitted in permits):
                    why = (
                        "a rule forbids something below it, here or where it would go; retrying will not help"
                    )
                elif not context.asked and (reason := _why_ask_below(source, destination, below)):
                    why = f"a person must be asked: {reason}"
                if why is not None:
                    break
        except _TooMuch:
            why = (
                "it is too big to look through for what must be asked about or a rule forbids; move its parts"
            )
        if why is not None:
            raise FileProblem(source.asked, f"nothing was moved, because {why}")

    # --- delete_file --------------------------------------------------------------------------

    async def delete_file(self, path: str, *, context: CallContext) -> Deleted:
        """Delete one file or link for good. There is no way back. Does not delete folders.

        A link is deleted itself, not what it points to.

        Args:
            path: Relative to the first allowed folder, or absolute.
        """
        return await self._workspace.threads.run(lambda work: self._delete(path, context, work))

    async def preview_delete(self, path: str) -> Preview:
        """Say what would be deleted."""

        def look(_: Work) -> Preview:
            with self._workspace.target(path, follow=False) as target:
                before = _deletable(target)
                kind, size = _kind_and_size(before)
                digest = f", sha256 {before.sha256}" if before.sha256 else ""
                return Preview(
                    text=f"Delete the {kind} {shown(target.real_path)}{size}{digest}\nThere is no way back.",
                    state=before.state,
                )

        return await self._workspace.threads.run(look)

    async def must_ask_delete(self, path: str) -> str | None:
        """Say why this deletion is asked about even where it is pre-approved."""

        def look(_: Work) -> str | None:
            with self._workspace.target(path, follow=False) as target:
                return why_ask(target.real_path, path)

        return await self._workspace.threads.run(look)

    def _delete(self, path: str, context: CallContext, work: Work) -> Deleted:
        with self._workspace.target(path, follow=False) as target:
            before = _deletable(target)
            if context.approved_state is not None and before.state != context.approved_state:
                raise atomic.ChangedMeanwhile(path)
            atomic.remove(
                target, before, work=work, last_look=lambda: refuse_now(self._workspace, [target], context)
            )
            size_bytes = before.status.st_size if before.status is not None else 0
            return Deleted(
                path=self._workspace.display(target.root, target.real_parts), size_bytes=size_bytes
            )


class _TooMuch(Exception):
    """The folder is too big to look through in time."""


def _why_ask_below(source: Target, destination: Target, below: Sequence[str]) -> str | None:
    return next(
        (
            reason
            for target in (source, destination)
            if (reason := why_ask(joined(target.real_path, below), joined(target.asked, below)))
        ),
        None,
    )


def _names_below(workspace: Workspace, folder: Target, work: Work) -> Iterator[tuple[str, ...]]:
    """Yield what moves along with a folder; nothing for what is no folder."""
    status = folder.status()
    if status is None or not stat.S_ISDIR(status.st_mode):
        return
    deadline = time.monotonic() + LOOK_THROUGH_S
    pending: list[tuple[str, ...]] = [()]
    seen = 0
    while pending:
        parts = pending.pop()
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            fd = workspace.opener(folder.folder_fd, (folder.name, *parts), flags, links=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            raise _TooMuch from error  # what cannot be looked into is asked about
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    seen += 1
                    if seen > MAX_LOOKED_THROUGH or time.monotonic() > deadline or work.is_withdrawn:
                        raise _TooMuch
                    yield (*parts, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((*parts, entry.name))
        finally:
            os.close(fd)


def _present(target: Target) -> Snapshot:
    before = snapshot.take(target)
    if before.status is None:
        raise FileProblem(target.asked, "does not exist [ENOENT]; nothing was changed")
    return before


def _deletable(target: Target) -> Snapshot:
    before = _present(target)
    if before.status is not None and stat.S_ISDIR(before.status.st_mode):
        raise FileProblem(target.asked, "is a folder; only files and links are deleted. Nothing was changed")
    return before


def _check_free(source: Target, destination: Target) -> None:
    taken = destination.status()
    if taken is None:
        return
    own = source.status()
    if own is not None and os.path.samestat(own, taken):
        same_name = source.name != destination.name and not stat.S_ISDIR(own.st_mode) and own.st_nlink > 1
        what = "is another name (hard link) of the source" if same_name else "is the source itself"
        raise FileProblem(destination.asked, f"{what}; nothing was changed")
    kind = "a folder; give the whole new path, with the name" if stat.S_ISDIR(taken.st_mode) else "there"
    raise FileProblem(destination.asked, f"exists already, as it is {kind}; nothing was changed")


def _move_state(before: Snapshot, destination: Target) -> str:
    folder = os.fstat(destination.folder_fd)
    return f"{before.state} to {folder.st_dev}:{folder.st_ino}/{destination.name}"


def _kind_and_size(before: Snapshot) -> tuple[str, str]:
    status = before.status
    if status is None:
        raise ToolError("it is gone")
    kind = kind_of(status.st_mode)
    return kind, f" ({status.st_size:,} bytes)" if stat.S_ISREG(status.st_mode) else ""


def _create_state(existing: str, missing: Sequence[str]) -> str:
    return f"{existing} lacks {'/'.join(missing)}"
