"""What went wrong with a file, in words a model can act on."""

from __future__ import annotations

import errno
import os
from typing import Final

from mcp_tools.builtin.workspace.beneath import NotARegularFile
from mcp_tools.errors import ToolError
from mcp_tools.output.marks import without_middle
from mcp_tools.output.visible import is_all_seen, is_unseen

MAX_SHOWN_CHARS: Final = 300


def shown(text: str) -> str:
    r"""Quote a path or name so that it cannot pass for something else.

    Line breaks, control and direction-changing characters and undecodable bytes are written out
    (`\n`, `\u202e`, `\udcff`). Of more than 300 characters the middle is missing: the end names the file.
    """
    return "'" + escaped(without_middle(text, MAX_SHOWN_CHARS)).replace("'", "\\'") + "'"


def escaped(text: str) -> str:
    r"""Write out what is not seen (`\n`, `\u3164`), odd spaces included; the rest stays as it is."""
    if is_all_seen(text):
        return text
    return "".join(
        c if c.isprintable() and not is_unseen(c) else c.encode("unicode_escape").decode() for c in text
    )


class OutsideRoots(ToolError):
    """The path leaves the allowed folders. Another spelling of it will not help."""

    def __init__(self, path: str, *, why: str = "is outside the allowed folders") -> None:
        super().__init__(
            f"{shown(path)} {why}; nothing was opened. list_allowed_directories shows what is allowed; "
            "a path relative to the first one is simplest"
        )
        self.path = path


class FileProblem(ToolError):
    """The system refused a step. `code` is its errno."""

    def __init__(self, path: str, text: str, *, code: int | None = None) -> None:
        super().__init__(f"{shown(path)}: {text}")
        self.path = path
        self.code = code


_SENTENCES: Final = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EISDIR: "is a folder",
    errno.EEXIST: "exists already",
    errno.ENOTEMPTY: "is a folder that is not empty",
    errno.EACCES: "the server's user has no permission for this",
    errno.EPERM: "the system does not permit this (the file may be immutable, or belong to somebody else)",
    errno.EROFS: "is on a read-only file system",
    errno.ENOSPC: "no space is left on its file system",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file of this size is not permitted here (file size limit)",
    errno.EMFILE: "the server has too many files open; try again in a moment",
    errno.ENFILE: "this machine has too many files open; try again in a moment",
    errno.ENAMETOOLONG: "the path or a name in it is too long for the file system",
    errno.EIO: "the disk reported an error (input/output error)",
    errno.EBUSY: "is in use by the system (a mount point?)",
    errno.ETXTBSY: "is a program that is running",
    errno.ESTALE: "its network file system lost track of it; try again",
    errno.EAGAIN: "folders on this machine were being renamed; try again",
    errno.EINVAL: "the file system does not accept this name or operation",
    errno.ENOTSUP: "the file system cannot do this",
    errno.ENOMEM: "not enough memory",
    errno.ETIMEDOUT: "its network file system does not answer",
}


def explain(error: OSError | NotARegularFile, path: str, *, then: str = "") -> ToolError:
    """Turn a system's refusal into a `ToolError`; `then` says what is true of the world now."""
    suffix = f"; {then}" if then else ""
    if isinstance(error, NotARegularFile):
        kind = "a folder; use list_directory" if error.kind == "directory" else f"a {error.kind}"
        return FileProblem(path, f"is not a regular file but {kind}{suffix}")
    if error.errno == errno.EXDEV:
        return OutsideRoots(
            path, why="leads out of the allowed folders (through a link that is absolute or leaves them)"
        )
    if error.errno == errno.ELOOP:
        return FileProblem(
            path,
            f"goes through a link that cannot be followed (a loop, or a link that "
            f"was replaced meanwhile){suffix}",
            code=error.errno,
        )
    code = error.errno or 0
    sentence = _SENTENCES.get(code, os.strerror(code) if code else str(error))
    name = f" [{errno.errorcode[code]}]" if code in errno.errorcode else ""
    return FileProblem(path, f"{sentence}{name}{suffix}", code=code)
