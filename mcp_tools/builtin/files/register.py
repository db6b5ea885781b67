"""Every file tool with what clients and the executor are told about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from mcp_tools.builtin.files.change import ChangeTools
from mcp_tools.builtin.files.edit import Edited, EditTools
from mcp_tools.builtin.files.listing import (
    AllowedDirectories,
    FileInfo,
    Listing,
    ListingTools,
    SizedListing,
    Tree,
)
from mcp_tools.builtin.files.read import ReadTools
from mcp_tools.builtin.files.search import FoundFiles, FoundLines, SearchTools
from mcp_tools.builtin.files.subjects import real_places
from mcp_tools.builtin.files.write import WriteTools
from mcp_tools.builtin.workspace import Workspace
from mcp_tools.registry import ToolRegistry
from mcp_tools.types import Subject, ToolAnnotations

TAG: Final = "filesystem"

READS: Final = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
CREATES: Final = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
REPLACES: Final = ToolAnnotations(
    read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False
)


def register_file_tools(registry: ToolRegistry, workspace: Workspace) -> None:
    """Register all file tools over `workspace`.

    With no root allowed the tools exist too, and answer what the server's owner has to do.
    Raises:
        RegistrationError: A name is taken.
    """

    def subjects(*names: str, follow: bool = True) -> Callable[..., Any]:
        async def of_paths(**arguments: Any) -> Sequence[Subject]:
            paths: list[str] = []
            for name in names:
                value = arguments[name]
                paths += [value] if isinstance(value, str) else value
            return await real_places(workspace, *paths, follow=follow)

        return of_paths

    def add(function: Callable[..., Any], title: str, annotations: ToolAnnotations, **more: Any) -> None:
        registry.register(
            title=title,
            annotations=annotations,
            tags=[TAG],
            requires_confirmation=not annotations.read_only_hint,
            **more,
        )(function)

    reading, looking, searching = ReadTools(workspace), ListingTools(workspace), SearchTools(workspace)
    writing, editing, changing = WriteTools(workspace), EditTools(workspace), ChangeTools(workspace)
    add(reading.read_file, "Read file", READS, subjects=subjects("path"))
    add(reading.read_text_file, "Read text file, whole or in part", READS, subjects=subjects("path"))
    add(reading.read_media_file, "Read picture or sound", READS, subjects=subjects("path"))
    add(reading.read_multiple_files, "Read several files", READS, subjects=subjects("paths"))
    for function, title, result in (
        (looking.list_directory, "List folder", Listing),
        (looking.list_directory_with_sizes, "List folder with sizes", SizedListing),
        (looking.directory_tree, "Show folder tree", Tree),
        (looking.get_file_info, "Show file details", FileInfo),
        (searching.search_files, "Find files by name", FoundFiles),
        (searching.grep_files, "Find lines by content", FoundLines),
    ):
        add(function, title, READS, subjects=subjects("path"), output_schema=result)
    add(
        looking.list_allowed_directories,
        "List allowed folders",
        READS,
        output_schema=AllowedDirectories,
    )
    add(
        writing.write_file,
        "Write file",
        REPLACES,
        preview=writing.preview,
        must_ask=writing.must_ask,
        subjects=subjects("path"),
    )
    add(
        editing.edit_file,
        "Edit file",
        REPLACES,
        preview=editing.preview,
        must_ask=editing.must_ask,
        subjects=subjects("path"),
        output_schema=Edited,
    )
    add(
        changing.create_directory,
        "Create folder",
        CREATES,
        preview=changing.preview_create,
        must_ask=changing.must_ask_create,
        subjects=subjects("path"),
    )
    add(
        changing.move_file,
        "Move or rename",
        REPLACES,
        preview=changing.preview_move,
        must_ask=changing.must_ask_move,
        subjects=subjects("source", "destination", follow=False),
    )
    add(
        changing.delete_file,
        "Delete file",
        REPLACES,
        preview=changing.preview_delete,
        must_ask=changing.must_ask_delete,
        subjects=subjects("path", follow=False),
    )
