"""Reading a whole file, through aiofiles, by a descriptor the workspace opened."""

from __future__ import annotations

import os
import threading
from typing import Final

import anyio

from mcp_tools.builtin.files.guard import open_file
from mcp_tools.builtin.workspace import Workspace
from mcp_tools.builtin.workspace.problems import FileProblem, explain
from mcp_tools.builtin.workspace.snapshot import SETTLE_S, TRIES, is_settled, is_unchanged
from mcp_tools.types import CallContext

MAX_WHOLE_BYTES: Final = 10 * 1024 * 1024


async def read_whole(
    workspace: Workspace, path: str, *, limit_bytes: int, beyond: str, context: CallContext
) -> bytes:
    """Read all bytes of a regular file, as they were at one moment.

    Args:
        beyond: For the model, when the file is over `limit_bytes`: what to do instead.
    Raises:
        ToolError: Outside, no regular file, too big, unreadable, or it kept changing meanwhile.
    """
    # Imported on use: with asyncio's parts it takes longer than everything else here.
    import aiofiles

    held = _Held()
    try:
        await workspace.threads.run(
            lambda _: held.take(open_file(workspace, workspace.locate(path), context))
        )
        executor = workspace.threads.executor_for_aiofiles()
        for _ in range(TRIES):
            before = await workspace.threads.run(lambda _: held.rewind())
            was_settled = is_settled(before)
            if before.st_size > limit_bytes:
                raise FileProblem(
                    path, f"is {before.st_size:,} bytes, more than the {limit_bytes:,} read at once; {beyond}"
                )
            async with aiofiles.open(os.dup(held.fd), "rb", buffering=0, executor=executor) as file:
                blocks: list[bytes] = []
                size_bytes = 0
                while size_bytes <= limit_bytes:
                    block = await file.read(limit_bytes + 1 - size_bytes)
                    if not block:
                        break
                    blocks.append(block)
                    size_bytes += len(block)
                    if size_bytes == before.st_size:  # if it has grown since, its times say so
                        break
            if size_bytes > limit_bytes:  # /proc files and growing ones hold more than their size says
                raise FileProblem(path, f"holds more than the {limit_bytes:,} bytes read at once; {beyond}")
            after = await workspace.threads.run(lambda _: os.fstat(held.fd))
            if was_settled and is_unchanged(before, after):
                return b"".join(blocks)
            await anyio.sleep(SETTLE_S)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        held.close()
    raise FileProblem(
        path,
        "is being written to right now, so its bytes would be a mixture; try again, or use read_text_file "
        "with tail for a growing log",
    )


class _Held:
    """A descriptor that is closed also when the thread that opens it is left behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self.fd = -1

    def take(self, fd: int) -> None:
        with self._lock:
            if self._is_closed:
                os.close(fd)
            else:
                self.fd = fd

    def rewind(self) -> os.stat_result:
        """Go back to the file's start and return its status."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        return os.fstat(self.fd)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1
