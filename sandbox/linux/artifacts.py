"""What a call leaves for its caller beside text: files in its folder for them, and open figures.

Runs inside the walls, in the process of the code, as runner.py does.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import stat
import sys

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Any

    Stamp = tuple[int, int, int]

MAX_NAME_CHARS = 512
_NAMED_OVER_LIMIT = 16  # of the files that are too many, these are named
_PICTURES = ("", ".png", ".jpg", ".jpeg", ".gif", ".webp")  # a figure without an ending is saved as PNG
_SAVED_AS = "_sandbox_saved_as"


class Collected:
    """`[name, size]` of each file, their bytes, and what was left out with the reason."""

    def __init__(self, max_files: int, max_bytes: int) -> None:
        self.names: list[list[object]] = []
        self.blobs: list[bytes] = []
        self.left_out: list[str] = []
        self._max_files = max_files
        self._room = max_bytes
        self._too_many = 0

    def is_full(self, name: str) -> bool:
        """Whether there is no place for one more file, which is then named as left out."""
        if len(self.names) < self._max_files:
            return False
        self._too_many += 1
        if self._too_many <= _NAMED_OVER_LIMIT:
            self.leave_out(name, f"more than {self._max_files} files")
        return True

    def leave_out(self, name: str, why: str) -> None:
        if len(self.left_out) < self._max_files + _NAMED_OVER_LIMIT:
            self.left_out.append(f"{name}: {why}")

    def add(self, name: str, size: int, file: io.BufferedIOBase) -> None:
        """Take a whole file, or name it as left out."""
        if size > self._room:
            self.leave_out(name, f"{size} bytes are more than the {self._room} left")
            return
        data = file.read(self._room)
        self._room -= len(data)
        self.names.append([name, len(data)])
        self.blobs.append(data)


def collect(
    out: str, max_files: int, max_bytes: int, *, known: dict[str, Stamp], pictures: list[tuple[str, bytes]]
) -> Collected:
    """Gather what is in the folder `out`, with `pictures` first.

    Links are not followed; files over the limits are named and left out whole.

    Args:
        out: The folder.
        max_files: How many files, at most.
        max_bytes: Of all of them together.
        known: What `stamps` said before the call; what did not change since is not collected.
        pictures: Names and contents that are no files.
    """
    found = Collected(max_files, max_bytes)
    for name, data in pictures:
        if not found.is_full(name):
            found.add(name, len(data), io.BytesIO(data))
    for path in _files(out):
        # A name that is no text is shown with replacement characters, as output is.
        name = os.fsencode(path[len(out) + 1 :]).decode("utf-8", "replace")[:MAX_NAME_CHARS]
        try:
            if path in known and _stamp(os.lstat(path)) == known[path]:
                continue
            if found.is_full(name):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            is_link = error.errno == errno.ELOOP
            found.leave_out(name, "a link" if is_link else os.strerror(error.errno or 0))
            continue
        with open(fd, "rb") as opened:
            about = os.fstat(fd)
            if stat.S_ISREG(about.st_mode):
                found.add(name, about.st_size, opened)
            else:
                found.leave_out(name, "not an ordinary file")
    return found


def stamps(out: str) -> dict[str, Stamp]:
    """What tells whether a file changed, of each that is in `out`."""
    found = {}
    for path in _files(out):
        try:
            found[path] = _stamp(os.lstat(path))
        except OSError:
            continue
    return found


def _stamp(about: os.stat_result) -> Stamp:
    return about.st_ino, about.st_size, about.st_mtime_ns


def _files(out: str) -> Iterator[str]:
    """Everything in `out` that is no folder, links to folders included, in the order of their names.

    Without recursion: code decides how deep folders are.
    """
    waiting = [out]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue  # closed to us, or its path is too long
        folders = [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
        yield from (entry.path for entry in found if not entry.is_dir(follow_symlinks=False))
        waiting += reversed(folders)


def figures(out: str) -> list[tuple[str, bytes]]:
    """Draw and close every open matplotlib figure, but those that the code saved in `out` as a picture."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return []
    drawn: list[tuple[str, bytes]] = []
    try:
        for number in pyplot.get_fignums():
            figure = pyplot.figure(number)
            if str(getattr(figure, _SAVED_AS, "")).startswith(f"{out}/"):
                continue
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", bbox_inches="tight")
            drawn.append((_free_name(out, number), buffer.getvalue()))
        pyplot.close("all")
    except Exception as error:
        print(f"a figure could not be drawn: {type(error).__name__}: {error}", file=sys.stderr)
    return drawn


def _free_name(out: str, number: int) -> str:
    name, again = f"figure-{number}.png", 1
    while os.path.lexists(f"{out}/{name}"):
        again += 1
        name = f"figure-{number}-{again}.png"
    return name


def watch_figures() -> None:
    """Have figures remember where the code saved them, from the moment that it imports matplotlib."""
    if (module := sys.modules.get("matplotlib.figure")) is not None:
        _remember_saving(module)
    else:
        sys.meta_path.insert(0, _Watch())


class _Watch:
    """An import finder that finds nothing itself; it changes `matplotlib.figure` once that is loaded."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != "matplotlib.figure":
            return None
        sys.meta_path.remove(self)
        finders: list[Any] = sys.meta_path
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _remember_saving(module)

            spec.loader.exec_module = exec_module
        return spec


def _remember_saving(module: Any) -> None:
    original = module.Figure.savefig

    @functools.wraps(original)
    def savefig(self: object, fname: object, *arguments: object, **options: object) -> object:
        result = original(self, fname, *arguments, **options)
        if isinstance(fname, str | os.PathLike):
            path = os.path.realpath(os.fspath(fname))
            if os.path.splitext(path)[1].lower() in _PICTURES:
                setattr(self, _SAVED_AS, path)
        return result

    module.Figure.savefig = savefig
