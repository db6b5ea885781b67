"""The log's last record, noted in a second file elsewhere, so that a log that was replaced whole shows."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Sequence
from typing import Final

from mcp_tools.errors import ConfigError
from mcp_tools.observe.audit.line import Tip, canonical
from mcp_tools.observe.audit.place import FILE_FLAGS, open_folder, real_path

MAX_ANCHOR_BYTES: Final = 4096


class Anchor:
    """Keeps one file at the last record of a log.

    Raises:
        Unsafe: Somebody else could change it there.
    """

    def __init__(self, path: str, *, log: str, roots: Sequence[str | os.PathLike[str]]) -> None:
        self._path = real_path(path)
        if os.path.dirname(self._path) == os.path.dirname(log):
            raise ConfigError("the anchor of the audit log must not be in the log's own folder")
        self._name = os.path.basename(self._path)
        self._folder: int | None = open_folder(self._path, roots=roots, what="the audit log's anchor")

    def write(self, tip: Tip) -> None:
        """Replace the file: it holds the old record or the new one, never half of one.

        Never goes back: several processes keep the same anchor.
        Raises:
            OSError: It is as it was.
        """
        assert self._folder is not None
        with contextlib.suppress(FileNotFoundError, ValueError):
            if read_anchor(self._path).seq >= tip.seq:
                return
        draft = f".{self._name}.{secrets.token_hex(4)}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE_FLAGS, 0o600, dir_fd=self._folder)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(f"{canonical({'v': 1, 'seq': tip.seq, 'hash': tip.hash})}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            os.rename(draft, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=self._folder)
            raise

    def close(self) -> None:
        """Let go of the folder. Can be called again."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


def read_anchor(path: str | os.PathLike[str]) -> Tip:
    """Read an anchor.

    Raises:
        FileNotFoundError, OSError: There is none, or it cannot be read.
        ValueError: It holds something else.
    """
    fd = os.open(path, os.O_RDONLY | FILE_FLAGS)
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_ANCHOR_BYTES)
    try:
        found = json.loads(data)
    except RecursionError:
        found = None
    if (
        not isinstance(found, dict)
        or type(found.get("seq")) is not int
        or not isinstance(found.get("hash"), str)
    ):
        raise ValueError("this is no anchor of an audit log")
    return Tip(found["seq"], found["hash"])
