"""The tools that search: search_files by name, grep_files by content. None of them changes anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from typing import Annotated, Final

from pydantic import Field

from mcp_tools.builtin.files import glob as globs
from mcp_tools.builtin.files import grep
from mcp_tools.builtin.files.guard import check_opened, joined, open_file
from mcp_tools.builtin.files.listing import Patterns, opened_folder, output
from mcp_tools.builtin.files.regex_process import MAX_PATTERN_CHARS, RegexProcess
from mcp_tools.builtin.files.results import Result
from mcp_tools.builtin.workspace import Workspace
from mcp_tools.builtin.workspace.beneath import NotARegularFile, open_to_read
from mcp_tools.builtin.workspace.problems import escaped
from mcp_tools.builtin.workspace.threads import Work
from mcp_tools.builtin.workspace.walk import WALK_S, Walk
from mcp_tools.output.plain import encodable
from mcp_tools.types import CallContext, ToolOutput

MAX_FOUND: Final = 1_000
MAX_MATCHES: Final = 2_000
DEFAULT_MATCHES: Final = 200


class FoundFiles(Result):
    """Paths that match, in order; they can be sent back as they are. Folders end in a slash."""

    matches: list[str]
    notices: list[str]


class FoundLine(Result):
    """One line that matches. `text` is cut around the match, with what does not print written out."""

    path: str
    line: int
    text: str


class FoundLines(Result):
    """Lines that match, by file and line."""

    matches: list[FoundLine]
    files_searched: int
    notices: list[str]


class SearchTools:
    """The tools that search one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def search_files(
        self,
        path: str,
        pattern: Annotated[str, Field(min_length=1, max_length=globs.MAX_PATTERN_CHARS)],
        excludePatterns: Patterns = [],  # noqa: N803, B006 (the wire's name; the schema shows the default)
        *,
        context: CallContext,
    ) -> ToolOutput:
        """Find files and folders by name, at any depth below a folder.

        At most 1,000 results and 10 seconds; a notice says when there may be more. Links are not followed.
        Does not look into files; that is grep_files.

        Args:
            path: Where to search; relative to the first allowed folder (which is "."), or absolute.
            pattern: A glob. Without "/" it is matched against names at any depth (*.py), with "/" against
                the path from where the search starts (src/**/test_*.py). Without * ? [ { it finds names
                that contain it, whatever their case.
            excludePatterns: Globs of what to leave out, for example ["node_modules", ".git"].
        """
        wanted = _name_matcher(pattern)
        excluded = globs.compile_all(excludePatterns)

        def look(work: Work) -> ToolOutput:
            with opened_folder(self._workspace, path, context) as folder:
                walk = Walk(
                    self._workspace.opener,
                    folder.fd,
                    work,
                    skip=lambda parts: globs.any_matches(excluded, parts),
                    permits=folder.permits,
                )
                matches: list[str] = []
                notices: list[str] = []
                for entry in walk:
                    if not wanted(entry.parts):
                        continue
                    if len(matches) >= MAX_FOUND:
                        notices.append(f"only the first {MAX_FOUND:,} are shown; there are more")
                        break
                    matches.append(joined(folder.name, entry.parts) + ("/" if entry.is_folder else ""))
            notices += walk.notices
            found = FoundFiles(matches=[encodable(match) for match in matches], notices=notices)
            lines = [escaped(match) for match in matches] or ["No matches found"]
            return output(lines, notices, found)

        return await self._workspace.threads.run(look, deadline_s=WALK_S)

    async def grep_files(
        self,
        pattern: Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS)],
        path: str = ".",
        glob: Annotated[str, Field(min_length=1, max_length=globs.MAX_PATTERN_CHARS)] = "**",
        regex: bool = False,
        ignoreCase: bool = False,  # noqa: N803
        excludePatterns: Patterns = [],  # noqa: N803, B006
        maxResults: Annotated[int, Field(ge=1, le=MAX_MATCHES)] = DEFAULT_MATCHES,  # noqa: N803
        *,
        context: CallContext,
    ) -> ToolOutput:
        """Find lines by content, in a file or in all text files below a folder.

        At most 10 seconds; a notice says what was left out. Binary files (with NUL in their first 8 kB) are
        skipped, links are not followed.

        Args:
            pattern: Text to find, taken literally unless regex is true.
            path: A folder or file; relative to the first allowed folder (which is "."), or absolute.
            glob: Only files whose name or path below the folder matches, for example "*.py".
            regex: Take the pattern as a Python regular expression, matched line by line.
            ignoreCase: Let upper and lower case be the same.
            excludePatterns: Globs of what to leave out, for example ["node_modules", ".git"].
            maxResults: How many lines to return at most.
        """
        return await self._workspace.threads.run(
            lambda work: self._grep(
                pattern, path, glob, regex, ignoreCase, excludePatterns, maxResults, context, work
            ),
            deadline_s=WALK_S,
        )

    def _grep(
        self,
        pattern: str,
        path: str,
        glob_pattern: str,
        is_regex: bool,
        ignore_case: bool,
        exclude_patterns: Sequence[str],
        max_results: int,
        context: CallContext,
        work: Work,
    ) -> ToolOutput:
        wanted = globs.compile_glob(glob_pattern)
        excluded = globs.compile_all(exclude_patterns)
        found = FoundLines(matches=[], files_searched=0, notices=[])
        skipped = _Skipped()
        with ExitStack() as stack:
            find: grep.Finder
            if is_regex:
                find = stack.enter_context(RegexProcess(pattern, ignore_case=ignore_case)).search
            else:
                find = grep.literal_finder(pattern, ignore_case=ignore_case)
            files = stack.enter_context(closing(self._files(path, wanted, excluded, context, work, skipped)))
            for name, fd in files:
                try:
                    for line in grep.matching_lines(fd, find, work, skipped.note):
                        if len(found.matches) >= max_results:
                            skipped.more = f"only the first {max_results:,} lines are shown; there are more"
                            break
                        found.matches.append(
                            FoundLine(path=encodable(name), line=line.number, text=line.text)
                        )
                    found.files_searched += 1
                except OSError:
                    skipped.note("could not be read")
                finally:
                    os.close(fd)
                if skipped.more:
                    break
        found.notices = skipped.notices()
        lines = [f"{escaped(m.path)}:{m.line}: {m.text}" for m in found.matches] or ["No matches found"]
        return output([*lines, f"({found.files_searched:,} files searched)"], found.notices, found)

    def _files(
        self,
        path: str,
        wanted: globs.SearchPattern,
        excluded: Sequence[globs.SearchPattern],
        context: CallContext,
        work: Work,
        skipped: _Skipped,
    ) -> Generator[tuple[str, int], None, None]:
        """Yield each file's name and a descriptor, which is the receiver's to close."""
        place = self._workspace.locate(path)
        try:
            fd = open_to_read(self._workspace.opener, place.root.fd, place.parts)
        except NotARegularFile as error:
            if error.kind != "directory":
                open_file(self._workspace, place, context)  # says what it is
        except OSError:
            open_file(self._workspace, place, context)
        else:
            check_opened(self._workspace, place, fd, context)
            yield path, fd
            return
        with opened_folder(self._workspace, path, context) as folder:
            walk = Walk(
                self._workspace.opener,
                folder.fd,
                work,
                skip=lambda parts: globs.any_matches(excluded, parts),
                permits=folder.permits,
            )
            for entry in walk:
                if entry.kind == "file" and wanted.matches(entry.parts):
                    try:
                        fd = open_to_read(self._workspace.opener, folder.fd, entry.parts, links=False)
                    except (OSError, NotARegularFile):
                        skipped.note("could not be read")
                    else:
                        yield joined(folder.name, entry.parts), fd
            skipped.walk = walk.notices


class _Skipped:
    """Counts files by why they are not, or not wholly, among the searched."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.walk: list[str] = []
        self.more: str | None = None

    def note(self, why: str) -> None:
        self._counts[why] = self._counts.get(why, 0) + 1

    def notices(self) -> list[str]:
        counted = [f"{count:,} files {why}" for why, count in self._counts.items()]
        return [*([self.more] if self.more else []), *self.walk, *counted]


def _name_matcher(pattern: str) -> Callable[[tuple[str, ...]], bool]:
    if any(c in pattern for c in "*?[{/"):
        return globs.compile_glob(pattern).matches
    wanted = pattern.casefold()
    return lambda parts: wanted in parts[-1].casefold()
