"""`AuditLog`: the auditor that an executor is given."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Final, Self

from mcp_tools.errors import ConfigError
from mcp_tools.observe.audit.anchor import Anchor, read_anchor
from mcp_tools.observe.audit.folder import SALT
from mcp_tools.observe.audit.place import open_folder, real_path, salt_of
from mcp_tools.observe.audit.records import Records
from mcp_tools.observe.audit.redact import Redactor
from mcp_tools.types import AuditUnavailable, CallStarted, ExecutionResult

DEFAULT_MAX_BYTES: Final = 100 * 1024**2
MIN_MAX_BYTES: Final = 64 * 1024
_MAX_OPEN: Final = 100_000
DEFAULT_NAME: Final = os.path.join("audit", "audit.jsonl")
"""Where a log is in the user's state folder, if its owner names no other place."""


class AuditLog:
    """Keeps a durable, chained record of each call: `ToolExecutor(registry, auditor=AuditLog(path))`.

    Args:
        path: The file. It gets the mode 0600, and folders that are missing the mode 0700. Beside it there
            will be `.lock`, `.salt` and the files that were full.
        max_bytes: A file that has reached this is renamed and followed by a new one. At least 65,536.
        keep_files: How many full files stay, at least 1. None: all.
        redact: More names of arguments whose values are secret, besides those we know (`password`, …).
        anchor: A file in another folder, best on another disk, that is kept at the last record. None: none.
        anchor_every_s: The anchor is behind for no longer than this. 0: it is written before a record
            counts, and a record without it is none.
        roots: Folders that tools may change: neither the log nor the anchor may be there.
        wait_s: A record that is not on the disk by then counts as not recorded.
    Raises:
        ConfigError: Somebody else could change the log there, a number makes no sense, or the log does not
            reach what its anchor says. Nothing was written.
        AuditUnavailable: Not even that the server started can be recorded.

    Several processes may have one log open, and several event loops and threads of each. Opening it
    records `server.started`, closing it `server.stopped`. A context manager, plain or asynchronous.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        keep_files: int | None = None,
        redact: Iterable[str] = (),
        anchor: str | os.PathLike[str] | None = None,
        anchor_every_s: float = 1.0,
        roots: Sequence[str | os.PathLike[str]] = (),
        wait_s: float = 10.0,
    ) -> None:
        if sys.platform == "win32":
            raise ConfigError("the audit log needs a POSIX system; on Windows run the server in WSL")
        # Here, so that native Windows can import us and say so.
        from mcp_tools.observe.audit.chain import Chain
        from mcp_tools.observe.audit.writer import Writer

        _check(max_bytes, keep_files, anchor_every_s, wait_s)
        self._path = real_path(path)
        self._lock = threading.Lock()
        self._begun: dict[str, None] = {}
        self._is_closed = False
        with contextlib.ExitStack() as opened:
            try:
                folder = open_folder(self._path, roots=roots)
                opened.callback(os.close, folder)
                kept = None
                if anchor is not None:
                    kept = Anchor(os.fspath(anchor), log=self._path, roots=roots)
                    opened.callback(kept.close)
                    _check_anchor(self._path, anchor)
                salt = salt_of(folder, os.path.basename(self._path) + SALT, shown=self._path + SALT)
                self._records = Records(Redactor(salt, redact), secrets.token_hex(8))
                chain = Chain(
                    self._path,
                    roots=roots,
                    max_bytes=max_bytes,
                    keep_files=keep_files,
                    event=self._records.event,
                )
            except OSError as error:
                raise AuditUnavailable(f"the audit log cannot be opened ({error.strerror})") from error
            opened.pop_all()
            os.close(folder)
        self._writer = Writer(chain, kept, anchor_every_s=anchor_every_s, wait_s=wait_s)
        try:
            self._writer.write_from_thread(self._records.event("server.started", _about_process()))
        except AuditUnavailable:
            self.close()
            raise

    @property
    def path(self) -> str:
        """The file that is written."""
        return self._path

    async def begin(self, started: CallStarted) -> None:
        """Record that a call is about to run; returns once that is durable. See `Auditor.begin`."""
        record = self._records.intent(started)
        with self._lock:
            is_alone = not self._begun
            if len(self._begun) >= _MAX_OPEN:
                del self._begun[next(iter(self._begun))]
            self._begun[started.call_id] = None
        try:
            await self._writer.write(record, is_alone=is_alone, is_patient=False)
        except AuditUnavailable:
            with self._lock:
                self._begun.pop(started.call_id, None)
            raise

    async def end(self, result: ExecutionResult) -> None:
        """Record how a call ended; returns once that is durable. See `Auditor.end`."""
        with self._lock:
            has_intent = result.call_id in self._begun
            self._begun.pop(result.call_id, None)
            is_alone = not self._begun
        record = self._records.outcome(result, has_intent=has_intent)
        # What has run is worth the wait.
        await self._writer.write(record, is_alone=is_alone, is_patient=has_intent)

    def close(self) -> None:
        """Write what still waits, then `server.stopped`. Can be called again; later records are refused."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._writer.close(self._records.event("server.stopped", {"pid": os.getpid()}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        import anyio

        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close)


def _check(max_bytes: int, keep_files: int | None, anchor_every_s: float, wait_s: float) -> None:
    if max_bytes < MIN_MAX_BYTES:
        raise ConfigError(f"max_bytes of the audit log is {max_bytes}; at least {MIN_MAX_BYTES}")
    if keep_files is not None and keep_files < 1:
        raise ConfigError(f"keep_files of the audit log is {keep_files}; at least 1, or None to keep all")
    if not 0 <= anchor_every_s <= 3600:
        raise ConfigError(f"anchor_every_s of the audit log is {anchor_every_s:g}; from 0 to 3600")
    if not 0 < wait_s <= 3600:
        raise ConfigError(f"wait_s of the audit log is {wait_s:g}; more than 0, at most 3600")


def _check_anchor(log: str, anchor: str | os.PathLike[str]) -> None:
    """A log that was replaced must not be continued, as if nothing were wrong with it."""
    from mcp_tools.observe.audit.verify import holds

    try:
        tip = read_anchor(real_path(anchor))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ConfigError(f"{os.fspath(anchor)}: {error}; move it away to begin a new one") from error
    if not holds(log, tip):
        raise ConfigError(
            f"the audit log does not hold record {tip.seq}, which its anchor {os.fspath(anchor)} names: it "
            "was cut or replaced. Look with `mcp-tools audit verify`; move the anchor away to go on anyway"
        )


def _about_process() -> dict[str, object]:
    from mcp_tools import __version__

    return {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "host": platform.node()[:100],
        "version": __version__,
        "python": platform.python_version(),
    }
