"""The tools that read files. None of them changes anything."""

from __future__ import annotations

import os
from typing import Annotated, Final

from pydantic import Field

from mcp_tools.builtin.files import pages, text
from mcp_tools.builtin.files.guard import open_file
from mcp_tools.builtin.files.whole import MAX_WHOLE_BYTES, read_whole
from mcp_tools.builtin.workspace import Workspace
from mcp_tools.builtin.workspace.problems import FileProblem, escaped
from mcp_tools.builtin.workspace.threads import Work
from mcp_tools.errors import ToolError
from mcp_tools.types import CallContext, MediaContent, TextContent, ToolOutput

MAX_FILES: Final = 50
MAX_TOGETHER_BYTES: Final = 1024 * 1024

_IN_PAGES: Final = "read it in pages: read_text_file with head, tail, or offset and limit"

Lines = Annotated[int | None, Field(ge=1, le=1_000_000)]


class ReadTools:
    """The reading tools over one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def read_file(self, path: str, encoding: str = "utf-8", *, context: CallContext) -> str:
        """Return a whole text file exactly as it is stored (line ends and byte order mark kept).

        Up to 10 MiB; for bigger ones use read_text_file with head, tail, or offset and limit. A file that
        is not text in the given encoding is an error. Cannot read pictures or sound (read_media_file) or
        anything outside the allowed folders.

        Args:
            path: Relative to the first allowed folder, or absolute.
            encoding: For example utf-8, utf-16, latin-1, cp1252.
        """
        name = text.check_encoding(encoding)
        content = await read_whole(
            self._workspace, path, limit_bytes=MAX_WHOLE_BYTES, beyond=_IN_PAGES, context=context
        )
        return text.decode(content, path, encoding=name)

    async def read_text_file(
        self,
        path: str,
        head: Lines = None,
        tail: Lines = None,
        offset: Lines = None,
        limit: Lines = None,
        *,
        context: CallContext,
    ) -> ToolOutput | str:
        """Return a UTF-8 text file of any size, or a part of it, exactly as stored.

        Without head, tail or offset it starts at the first line. At most 100,000 bytes are returned at once;
        a notice then says where to continue. For other encodings use read_file.

        Args:
            path: Relative to the first allowed folder, or absolute.
            head: Only the first so many lines.
            tail: Only the last so many lines. Not together with head, offset or limit.
            offset: The first line to return; lines count from 1.
            limit: How many lines to return from offset on.
        """
        if tail is not None and (head is not None or offset is not None or limit is not None):
            raise ToolError("tail goes alone; use either tail, or head, or offset and limit")
        if head is not None and (offset is not None or limit is not None):
            raise ToolError("head goes alone; use either head, or offset and limit")

        def read(work: Work) -> pages.Page:
            fd = open_file(self._workspace, self._workspace.locate(path), context)
            try:
                if tail is not None:
                    return pages.read_page(fd, path, lambda fd, size: pages.last_lines(fd, size, tail))
                count, first = (head, 1) if head is not None else (limit, offset or 1)
                return pages.read_page(fd, path, lambda fd, _: pages.line_range(fd, path, first, count, work))
            finally:
                os.close(fd)

        page = await self._workspace.threads.run(read, deadline_s=pages.SCAN_S)
        if page.notice is None:
            return page.text
        return ToolOutput(content=[TextContent(text=page.text), TextContent(text=f"[{page.notice}]")])

    async def read_media_file(self, path: str, *, context: CallContext) -> ToolOutput:
        """Return a picture or a sound (PNG, JPEG, GIF, WebP, AVIF, BMP, TIFF, WAV, MP3, OGG, FLAC, M4A).

        Up to 10 MiB. The type is told from the content, not from the name. Cannot show video or documents.

        Args:
            path: Relative to the first allowed folder, or absolute.
        """
        content = await read_whole(
            self._workspace, path, limit_bytes=MAX_WHOLE_BYTES, beyond="it cannot be shown", context=context
        )
        media_type = text.media_type_of(content[:16])
        if media_type is None or not media_type.startswith(("image/", "audio/")):
            what = f"is {media_type}" if media_type else "is no picture or sound that is known here"
            raise FileProblem(path, f"{what}; for text use read_text_file")
        return ToolOutput(content=[MediaContent(data=content, media_type=media_type)])

    async def read_multiple_files(
        self, paths: Annotated[list[str], Field(min_length=1, max_length=MAX_FILES)], *, context: CallContext
    ) -> ToolOutput:
        """Return several UTF-8 text files at once, each under a line with its path.

        A file that cannot be read does not stop the others; its error stands in its place. At most 100,000
        bytes of each and 1 MiB together; a notice says what was left out.

        Args:
            paths: At most 50, each relative to the first allowed folder, or absolute.
        """
        pieces: list[TextContent] = []
        left_bytes = MAX_TOGETHER_BYTES
        for path in paths:
            if left_bytes <= 0:
                pieces.append(
                    TextContent(text=f"{escaped(path)}: [not read: 1 MiB was reached; ask for it alone]")
                )
                continue
            try:
                output = await self.read_text_file(path, context=context)
            except ToolError as error:
                pieces.append(TextContent(text=f"{escaped(path)}: Error: {error}"))
                continue
            body = output if isinstance(output, str) else str(ToolOutput(content=output.content).observed())
            left_bytes -= len(body.encode())
            pieces.append(TextContent(text=f"{escaped(path)}:\n{body}"))
        return ToolOutput(content=pieces)
