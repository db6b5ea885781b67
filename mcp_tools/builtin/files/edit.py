"""edit_file: exact replacements in a text file, all or none, only on the content they were made for."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mcp_tools.builtin.files import diff, replacements
from mcp_tools.builtin.files.guard import refuse_now, why_ask
from mcp_tools.builtin.files.replacements import Span
from mcp_tools.builtin.files.results import Result
from mcp_tools.builtin.files.text import decode, encode, quoted_path
from mcp_tools.builtin.files.write import MAX_WRITTEN_BYTES, Sha256
from mcp_tools.builtin.workspace import Target, Workspace, atomic, snapshot
from mcp_tools.builtin.workspace.problems import FileProblem, shown
from mcp_tools.builtin.workspace.snapshot import Snapshot
from mcp_tools.builtin.workspace.threads import Work
from mcp_tools.types import CallContext, Preview, TextContent, ToolOutput

MAX_EDITS: Final = 200


class Edit(BaseModel):
    """One exact replacement."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    oldText: str = Field(description="Exact text to replace; must occur exactly once in the file")  # noqa: N815
    newText: str = Field(description="Text to put there")  # noqa: N815


class Edited(Result):
    """What became of an edit."""

    path: str
    applied: bool
    edits: int
    size_bytes: int
    sha256: str
    diff: str
    notes: list[str]


Edits = Annotated[list[Edit], Field(min_length=1, max_length=MAX_EDITS)]


class _Plan(NamedTuple):
    before: Snapshot
    size_before: int
    new: bytes
    old_text: str
    spans: list[Span]


class EditTools:
    """edit_file over one workspace, with what is asked and shown before it."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def edit_file(
        self,
        path: str,
        edits: Edits,
        dryRun: bool = False,  # noqa: N803 (the wire's name)
        expectedSha256: Sha256 = None,  # noqa: N803
        *,
        context: CallContext,
    ) -> ToolOutput:
        """Replace exact pieces of a UTF-8 text file and return a unified diff.

        Every oldText must occur exactly once in the file as it is now; otherwise nothing is changed and the
        error says how often and in which lines it occurs. All edits are applied or none. Up to 10 MiB. No
        patterns: the text is taken literally, spaces and line ends included.

        Args:
            path: Relative to the first allowed folder, or absolute.
            edits: Replacements of text that does not overlap; each is found in the file as it is before
                any of them.
            dryRun: Only return the diff; the file stays as it is.
            expectedSha256: Edit only if the file's content has this SHA-256 (see get_file_info).
        """
        return await self._workspace.threads.run(
            lambda work: self._edit(path, edits, dryRun, expectedSha256, context, work)
        )

    async def preview(
        self,
        path: str,
        edits: Edits,
        dryRun: bool,  # noqa: N803
        expectedSha256: str | None,  # noqa: N803
    ) -> Preview | None:
        """Show the diff the edits would make; None for a dry run, which changes nothing."""
        if dryRun:
            return None

        def look(work: Work) -> Preview:
            with self._workspace.target(path) as target:
                plan = _plan(target, edits, expectedSha256, work)
                change = _diff(target, plan, work, diff.MAX_PREVIEW_CHARS)
                sizes = f"{plan.size_before:,} → {len(plan.new):,} bytes"
                heading = f"Make {len(edits)} edit(s) in {quoted_path(target.real_path)} ({sizes})"
                return Preview(
                    text=f"{heading}\n{change.text}",
                    state=plan.before.state,
                    left_out=change.left_out,
                    shows=frozenset() if change.left_out else frozenset({"edits"}),
                )

        return await self._workspace.threads.run(look)

    async def must_ask(
        self,
        path: str,
        edits: Edits,
        dryRun: bool,  # noqa: N803
        expectedSha256: str | None,  # noqa: N803
    ) -> str | None:
        """Say why this path is asked about even where edits are pre-approved."""
        if dryRun:
            return None

        def look(_: Work) -> str | None:
            with self._workspace.target(path) as target:
                return why_ask(target.real_path, path)

        return await self._workspace.threads.run(look)

    def _edit(
        self,
        path: str,
        edits: list[Edit],
        is_dry_run: bool,
        expected: str | None,
        context: CallContext,
        work: Work,
    ) -> ToolOutput:
        with self._workspace.target(path) as target:
            plan = _plan(target, edits, expected, work)
            if context.approved_state is not None and plan.before.state != context.approved_state:
                raise atomic.ChangedMeanwhile(path)
            shown_diff = _diff(target, plan, work).text  # before the change, since it may be given up
            notes: tuple[str, ...] = ()
            if not is_dry_run:
                replaced = atomic.replace(
                    target,
                    plan.before,
                    lambda fd: atomic.write_all(fd, plan.new),
                    work=work,
                    last_look=lambda: refuse_now(self._workspace, [target], context),
                )
                notes = replaced.notes
            edited = Edited(
                path=self._workspace.display(target.root, target.real_parts),
                applied=not is_dry_run,
                edits=len(edits),
                size_bytes=len(plan.new),
                sha256=hashlib.sha256(plan.new).hexdigest(),
                diff=shown_diff,
                notes=list(notes),
            )
        did = "Would make" if is_dry_run else "Made"
        text = "\n".join([f"{did} {len(edits)} edit(s) in {shown(edited.path)}", *notes, shown_diff])
        return ToolOutput(content=[TextContent(text=text)], structured=edited.model_dump())


def _plan(target: Target, edits: list[Edit], expected: str | None, work: Work) -> _Plan:
    before, content = snapshot.read(target, MAX_WRITTEN_BYTES)
    if expected is not None and before.sha256 != expected:
        raise FileProblem(
            target.asked,
            f"has sha256 {before.sha256}, not the expected one; nothing was changed. Read it again",
        )
    old_text = decode(content, target.asked)
    spans = replacements.located(old_text, edits, work.check)
    new = encode(replacements.applied(old_text, spans))
    if len(new) > MAX_WRITTEN_BYTES:
        raise FileProblem(
            target.asked, f"would have {len(new):,} bytes; at most {MAX_WRITTEN_BYTES:,} are written"
        )
    return _Plan(before=before, size_before=len(content), new=new, old_text=old_text, spans=spans)


def _diff(target: Target, plan: _Plan, work: Work, max_chars: int = diff.MAX_CHARS) -> diff.Diff:
    path = "/".join(target.real_parts)
    return diff.of_edits(plan.old_text, plan.spans, path, work.check, max_chars=max_chars)
