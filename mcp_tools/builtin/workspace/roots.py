"""The allowed folders, held open since start: what a path argument can reach, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, Self

from mcp_tools.builtin.workspace import paths, similar, sweep
from mcp_tools.builtin.workspace.beneath import (
    MAX_LINKS,
    NotARegularFile,
    Opener,
    choose_opener,
    location_of,
    open_to_read,
)
from mcp_tools.builtin.workspace.problems import FileProblem, OutsideRoots, explain, shown
from mcp_tools.builtin.workspace.threads import Threads
from mcp_tools.errors import ConfigError, ToolError

SWEEP_DELAY_S: Final = 1.0
"""The sweep for left temp files waits, so that it does not compete with the server's start."""

_FOLDER: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | os.O_CLOEXEC

NO_ROOTS: Final = (
    "no folder is allowed, so no file can be reached. Retrying will not help: the owner of this server "
    "must start it with --root DIR (repeatable)"
)


class Root(NamedTuple):
    """An allowed folder.

    Args:
        fd: Held since start; everything is opened below it, whatever its name leads to later.
        real: Its absolute path without links, at start.
        given: The absolute path its owner gave, which may go through links.
        identity: Device and inode.
    """

    fd: int
    real: str
    given: str
    identity: tuple[int, int]

    def parts_below(self, path: str) -> tuple[str, ...] | None:
        """Return the names of an absolute path below this root, or None if it is not below it."""
        for name in (self.real, self.given):
            parts = paths.parts_below(path, name)
            if parts is not None:
                return parts
        # On a case-insensitive file system `/DATA/x` is in `/Data`: the folder's identity decides.
        for name in (self.real, self.given):
            found = paths.parts_below_in_other_case(path, name)
            if found is not None and self._is_at(found[0]):
                return found[1]
        return None

    def is_deleted(self) -> bool:
        """Whether the folder itself is gone since start."""
        return os.fstat(self.fd).st_nlink == 0

    def _is_at(self, path: str) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.identity


class Located(NamedTuple):
    """A place below a root. `parts` holds no `.`, `..` or empty name; none at all is the root itself."""

    root: Root
    parts: tuple[str, ...]
    asked: str


class Target(NamedTuple):
    """A name in an opened folder: what a change is made to.

    `real_parts` are the names below the root and `real_path` the absolute path, both without links,
    as they were when the folder was opened. Something of this name need not exist.
    """

    root: Root
    folder_fd: int
    name: str
    real_parts: tuple[str, ...]
    real_path: str
    asked: str

    def status(self) -> os.stat_result | None:
        """Return what is there now (a link is not followed), or None."""
        try:
            return os.stat(self.name, dir_fd=self.folder_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def real_path_now(self) -> str:
        """Return where the opened folder is now, with the name: it may have been moved meanwhile."""
        return f"{location_of(self.folder_fd).rstrip('/')}/{self.name}"


class Workspace:
    """The allowed folders of one server. Made with `Workspace.open`; safe to use from any thread."""

    def __init__(self, roots: Sequence[Root], opener: Opener) -> None:
        self.roots = tuple(roots)
        self.opener = opener
        self.threads = Threads()
        self._closed = threading.Event()

    @classmethod
    def open(
        cls, roots: Sequence[str | Path], *, opener: Opener | None = None, sweep_at_start: bool = True
    ) -> Workspace:
        """Open each root and hold it.

        Args:
            roots: Folders; links in them are resolved once, now. None at all: nothing is allowed.
                The first one is where relative paths start.
            opener: None: the kernel's `openat2` where it may be used, the walk elsewhere.
            sweep_at_start: Remove temp files that a killed server left, in the background.
        Raises:
            ConfigError: One is missing, no folder, or cannot be opened; or this is native Windows.
        """
        if sys.platform == "win32":
            raise ConfigError(
                "the file tools do not run on native Windows yet, because opening files strictly inside a "
                "folder is not tested there; run the server in WSL2"
            )
        opened: list[Root] = []
        try:
            for given in roots:
                root = _open_root(given)
                if any(root.identity == other.identity for other in opened):
                    os.close(root.fd)
                else:
                    opened.append(root)
        except ConfigError:
            for root in opened:
                os.close(root.fd)
            raise
        workspace = cls(opened, opener or choose_opener())
        if sweep_at_start and opened:
            threading.Thread(target=workspace._sweep_later, name="mcp-tools-sweep", daemon=True).start()
        return workspace

    def close(self) -> None:
        """Let go of the roots. Later calls of the tools fail; a second close does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.threads.close()
        for root in self.roots:
            os.close(root.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def locate(self, path: str) -> Located:
        """Find the root a path argument belongs to. Nothing is opened.

        Raises:
            ToolError: It can be no path, or leaves the roots, or there is none.
        """
        if self._closed.is_set():
            raise ToolError("the file tools are closed; the server is ending")
        if not self.roots:
            raise ToolError(NO_ROOTS)
        paths.check(path)
        if not path.startswith("/"):
            parts = paths.relative_parts(path)
            if parts is None:
                raise OutsideRoots(path)
            return _existing(Located(root=self.roots[0], parts=parts, asked=path))
        below = [(root, parts) for root in self.roots if (parts := root.parts_below(path)) is not None]
        if not below:
            raise OutsideRoots(path)
        root, parts = min(below, key=lambda found: len(found[1]))  # the innermost of nested roots
        return _existing(Located(root=root, parts=parts, asked=path))

    def open_folder(self, place: Located, *, may_name: Callable[[str], bool] | None = None) -> int:
        """Open a folder for listing.

        Args:
            may_name: Whether a real path may be suggested, should this one not exist.
        Raises:
            ToolError: It is none, or cannot be opened.
        """
        try:
            return self.opener(place.root.fd, place.parts, _FOLDER)
        except FileNotFoundError as error:
            raise explain(error, place.asked, then=self._similar(place, may_name)) from error
        except OSError as error:
            raise explain(error, place.asked) from error

    def open_file(self, place: Located, *, may_name: Callable[[str], bool] | None = None) -> int:
        """Open a regular file for reading.

        Args:
            may_name: As for `open_folder`.
        Raises:
            ToolError: It is none (pipes, devices and sockets are not touched), or cannot be opened.
        """
        try:
            return open_to_read(self.opener, place.root.fd, place.parts)
        except FileNotFoundError as error:
            raise explain(error, place.asked, then=self._similar(place, may_name)) from error
        except (OSError, NotARegularFile) as error:
            raise explain(error, place.asked) from error

    @contextlib.contextmanager
    def target(self, path: str, *, follow: bool = True) -> Iterator[Target]:
        """Open the folder of what a call would change.

        Args:
            follow: Go through a link at the end of the path to what it names; without, the link
                itself is the target (moving and deleting act on the name).
        Raises:
            ToolError: The folder does not exist or is outside, or the path names a root itself.
        """
        place = self.locate(path)
        parts: Sequence[str] = place.parts
        try:
            for _ in range(MAX_LINKS):
                if not parts or parts[-1] in ("", ".", ".."):
                    raise ToolError(
                        f"{shown(path)} is an allowed folder or a folder above; it stays as it is"
                    )
                with self._opened(place.root, parts[:-1], path) as (folder_fd, above, folder_path):
                    name = parts[-1]
                    link = _link_target(folder_fd, name) if follow else None
                    if link is None:
                        yield Target(
                            root=place.root,
                            folder_fd=folder_fd,
                            name=name,
                            real_parts=(*above, name),
                            real_path=f"{folder_path.rstrip('/')}/{name}",
                            asked=path,
                        )
                        return
                    if link.startswith("/"):
                        _refuse(errno.EXDEV)
                    parts = (*above, *link.split("/"))
            _refuse(errno.ELOOP)
        except OSError as error:
            raise explain(error, path, then="nothing was changed") from error

    def real_location(self, root: Root, fd: int) -> tuple[tuple[str, ...], str]:
        """Return where an open file or folder is now: names below its root, and the absolute path.

        Raises:
            OSError: `EXDEV` when it is not below the root any more.
        """
        path = location_of(fd)
        parts = paths.parts_below(path, location_of(root.fd))
        if parts is None:
            _refuse(errno.EXDEV)
        return parts, path

    def display(self, root: Root, parts: Sequence[str]) -> str:
        """Name a place as a model can send it back: relative in the first root, else absolute."""
        if root is self.roots[0]:
            return "/".join(parts) or "."
        return f"{root.real.rstrip('/')}/{'/'.join(parts)}".rstrip("/") or "/"

    def spellings(self, root: Root, real_path: str) -> tuple[str, ...]:
        """Name a place in every way that a rule may name it.

        Args:
            root: Through which it was reached.
            real_path: Absolute, without links.
        Returns:
            The path relative to the first root, where it lies in it, and the absolute one; also as
            it was at start, should the root have been moved since.
        """
        found: list[str] = []
        for each in dict.fromkeys((self.roots[0], root)):
            parts = paths.parts_below(real_path, location_of(each.fd))
            if parts is not None:
                if each is self.roots[0]:
                    found.append("/".join(parts) or ".")
                found.append("/".join([each.real.rstrip("/"), *parts]) or "/")
        return tuple(dict.fromkeys([*found, real_path]))

    def _similar(self, place: Located, may_name: Callable[[str], bool] | None) -> str:
        return similar.suggest(self.opener, place.root.fd, place.parts, may_name)

    @contextlib.contextmanager
    def _opened(
        self, root: Root, parts: Sequence[str], asked: str
    ) -> Iterator[tuple[int, tuple[str, ...], str]]:
        try:
            fd = self.opener(root.fd, parts, _FOLDER)
        except FileNotFoundError:
            raise FileProblem(
                asked, "its folder does not exist (create_directory makes one); nothing was changed"
            ) from None
        try:
            yield (fd, *self.real_location(root, fd))
        finally:
            os.close(fd)

    def _sweep_later(self) -> None:
        if not self._closed.wait(SWEEP_DELAY_S):
            sweep.sweep(self, is_cancelled=self._closed.is_set)


def _existing(place: Located) -> Located:
    if place.root.is_deleted():
        raise ToolError(
            f"the allowed folder {shown(place.root.real)} was deleted since the server started; the owner "
            "must make it again and restart the server"
        )
    return place


def _refuse(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))


def _link_target(folder_fd: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # not a link
            return None
        raise


def _open_root(given: str | Path) -> Root:
    # Not normalised before it is opened: `link/..` is the folder above the link's target.
    path = os.path.expanduser(os.fspath(given))
    if not os.path.isabs(path):  # only then: the current folder may have been deleted
        path = os.path.join(os.getcwd(), path)
    try:
        fd = os.open(path, _FOLDER)
    except OSError as error:
        what = "is not a folder" if error.errno == errno.ENOTDIR else (error.strerror or "cannot be opened")
        raise ConfigError(f"--root {shown(str(given))}: {what}; give an existing folder") from error
    try:
        status = os.fstat(fd)
        real = location_of(fd)
    except OSError as error:
        os.close(fd)
        raise ConfigError(
            f"--root {shown(str(given))}: this system cannot say where an open folder is ({error}); "
            "mount /proc"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        os.close(fd)
        raise ConfigError(f"--root {shown(str(given))} is not a folder; give an existing folder")
    alias = real if ".." in path.split("/") else path
    return Root(fd=fd, real=real, given=alias, identity=(status.st_dev, status.st_ino))
