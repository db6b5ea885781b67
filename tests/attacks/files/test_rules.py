"""A rule about a path holds for what a call comes across, not only for what its arguments name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mcp_tools.builtin.workspace.beneath import NotARegularFile, open_by_walking
from mcp_tools.executor import ToolExecutor
from mcp_tools.policy.rules import RulePolicy
from mcp_tools.types import CallContext, ErrorCode

SECRET = "topsecret line"

LOOKS: dict[str, tuple[str, dict[str, Any]]] = {
    "list": ("list_directory", {}),
    "sizes": ("list_directory_with_sizes", {}),
    "tree": ("directory_tree", {}),
    "search": ("search_files", {"path": ".", "pattern": "**"}),
    "search by part": ("search_files", {"path": "deep", "pattern": "k"}),
    "grep": ("grep_files", {"pattern": "topsecret"}),
    "grep by regex": ("grep_files", {"pattern": "top.*", "regex": True}),
    "grep below": ("grep_files", {"pattern": "topsecret", "path": "deep"}),
}


@pytest.fixture
def project(files: Any) -> Any:
    for folder in ("private", "deep/private", "open"):
        (files.root / folder).mkdir(parents=True)
        (files.root / folder / "k.txt").write_text(SECRET)
    (files.root / "private.txt").write_text(SECRET)
    return files


def with_rules(files: Any, **rules: list[str]) -> Any:
    executor = ToolExecutor(files.executor.registry, policy=RulePolicy.parse(**rules))
    return dataclasses.replace(files, executor=executor)


async def looked(files: Any, look: str) -> str:
    tool, arguments = LOOKS[look]
    result = await files.execute(tool, **arguments)
    assert result.is_success, result.error
    return f"{result.to_observation()} {result.result.structured}"


def rule_of(files: Any, spelling: str) -> str:
    folder = "" if spelling == "relative" else f"{files.root}/"
    return f"*({folder}**/private/**)"


@pytest.mark.parametrize("look", LOOKS)
async def test_a_look_shows_nothing_that_a_rule_denies(project: Any, look: str) -> None:
    before = await looked(project, look)
    assert "private" in before or "k.txt" in before, "without a rule it is shown"
    for spelling in ("relative", "absolute"):
        denied = with_rules(project, deny=[rule_of(project, spelling)])
        after = await looked(denied, look)
        assert "private/" not in after
        assert "'private'" not in after
        assert "private\n" not in after
        hidden = 2 if look not in ("list", "sizes", "search by part", "grep below") else 1
        assert f"[{hidden} entries are left out, because a rule of this server hides them]" in after


async def test_what_no_rule_denies_is_shown_and_counted_as_before(project: Any) -> None:
    denied = with_rules(project, deny=["*(private/**)"])
    found = (await denied.call("grep_files", pattern="topsecret"))["matches"]
    assert [line["path"] for line in found] == ["private.txt", "deep/private/k.txt", "open/k.txt"]
    sizes = await denied.call("list_directory_with_sizes")
    assert (sizes["total"], sizes["total_size_bytes"]) == (3, len(SECRET))
    other_tool = with_rules(project, deny=["write_file(private/**)"])
    assert (await other_tool.call("list_directory"))["notices"] == []


async def test_what_a_rule_asks_about_is_shown_only_where_a_person_was_asked(project: Any) -> None:
    asks = with_rules(project, ask=["grep_files(private/**)"])
    unasked = await asks.execute("grep_files", pattern="topsecret")
    assert "private/k.txt" not in str(unasked.result).replace("deep/private/k.txt", "")
    assert "1 entries are left out" in str(unasked.result)
    both = with_rules(project, ask=["grep_files(private/**)", "grep_files"])
    asked = await both.execute("grep_files", CallContext(confirmed=True), pattern="topsecret")
    assert "'private/k.txt'" in str(asked.result.structured)


async def test_a_look_started_through_a_link_is_judged_by_where_it_leads(project: Any) -> None:
    (project.root / "innocent").symlink_to("deep")
    denied = with_rules(project, deny=["*(deep/private/**)"])
    result = await denied.execute("grep_files", pattern="topsecret", path="innocent")
    assert result.is_success, result.error
    assert SECRET not in result.to_observation()
    (project.root / "straight").symlink_to("private")
    for tool in ("grep_files", "search_files"):
        denied = with_rules(project, deny=["*(private/**)"])
        result = await denied.execute(tool, pattern="topsecret", path="straight")
        assert result.error_code is ErrorCode.DENIED


async def test_grep_reads_through_no_link_not_even_one_put_in_place_meanwhile(project: Any) -> None:
    """The walk has seen a file; when it is opened, a link is there."""
    root: Path = project.root
    exchanged = root / "open" / "k.txt"
    opener = project.workspace.opener

    def exchanging(dir_fd: int, parts: Any, flags: int, *, links: bool = True) -> int:
        if tuple(parts) == ("open", "k.txt"):
            exchanged.unlink(missing_ok=True)
            exchanged.symlink_to("../private/k.txt")
        return opener(dir_fd, parts, flags, links=links)

    project.workspace.opener = exchanging
    denied = with_rules(project, deny=["*(**/private/**)", "*(private.txt)"])
    result = await denied.execute("grep_files", pattern="topsecret")
    assert exchanged.is_symlink(), "the exchange happened"
    assert "topsecret" not in str(result.result.structured["matches"])
    assert "1 files could not be read" in result.result.structured["notices"]


@pytest.mark.parametrize("tool", ["get_file_info", "read_multiple_files", "read_file"])
async def test_each_path_of_a_call_is_judged_links_followed(project: Any, tool: str) -> None:
    (project.root / "innocent").symlink_to("private/k.txt")
    denied = with_rules(project, deny=["*(private/**)"])
    for path in ("private/k.txt", "open/../private/k.txt", "innocent", str(project.root / "private/k.txt")):
        arguments = {"paths": ["open/k.txt", path]} if tool == "read_multiple_files" else {"path": path}
        assert (await project.execute(tool, **arguments)).is_success, "without a rule it is read"
        assert (await denied.execute(tool, **arguments)).error_code is ErrorCode.DENIED


@pytest.mark.parametrize(
    ("rule", "source", "destination"),
    [
        ("move_file(deep/private/**)", "deep", "elsewhere"),
        ("move_file(elsewhere/private)", "deep", "elsewhere"),
        ("move_file(**/k.txt)", "open", "elsewhere"),
    ],
)
async def test_a_folder_with_something_denied_in_it_is_not_moved(
    project: Any, rule: str, source: str, destination: str
) -> None:
    arguments = {"source": source, "destination": destination}
    denied = with_rules(project, deny=[rule])
    assert "a rule forbids something below it" in await denied.refusal("move_file", **arguments)
    assert (project.root / source / ("private" if source == "deep" else "k.txt")).exists()
    pre_approved = with_rules(project, ask=[rule], allow=["move_file"])
    assert not (await pre_approved.execute("move_file", **arguments)).is_success
    asked = with_rules(project, ask=[rule])
    await asked.call("move_file", **arguments)
    assert (project.root / destination).is_dir()


async def test_a_folder_too_big_to_look_through_is_not_moved_where_rules_apply(project: Any) -> None:
    from mcp_tools.builtin.files import change

    before = change.MAX_LOOKED_THROUGH
    change.MAX_LOOKED_THROUGH = 1  # type: ignore[misc]
    try:
        denied = with_rules(project, deny=["*(nowhere)"])
        error = await denied.refusal("move_file", source="deep", destination="elsewhere")
        await project.call("move_file", source="deep", destination="elsewhere")
    finally:
        change.MAX_LOOKED_THROUGH = before  # type: ignore[misc]
    assert "too big to look through" in error


async def test_a_folder_on_the_way_to_a_new_one_is_judged_too(project: Any) -> None:
    denied = with_rules(project, deny=["create_directory(a/b)"])
    assert "a rule forbids" in await denied.refusal("create_directory", path="a/b/c")
    assert not (project.root / "a").exists()
    await project.call("create_directory", path="a/b/c")


async def test_a_write_through_a_link_to_nothing_is_judged_by_what_it_would_create(project: Any) -> None:
    (project.root / "innocent").symlink_to("private/new")
    denied = with_rules(project, deny=["*(private/**)"])
    arguments = {"path": "innocent", "content": "x"}
    assert (await denied.execute("write_file", **arguments)).error_code is ErrorCode.DENIED
    await project.call("write_file", **arguments)
    assert (project.root / "private" / "new").read_text() == "x"


async def test_a_link_exchanged_after_the_decision_does_not_lead_a_write_past_a_rule(project: Any) -> None:
    """The decision saw a folder that is free to write to; when the tool runs, the link leads elsewhere."""
    link = project.root / "link"
    link.symlink_to("open")
    policy = RulePolicy.parse(deny=["write_file(private/**)"], allow=["write_file"])
    tool = project.executor.registry.get("write_file")
    context = CallContext(screen=policy.screen(tool))
    await tool.function(path="link/k.txt", content="before", context=context)
    link.unlink()
    link.symlink_to("private")
    with pytest.raises(Exception, match="a rule forbids where this leads"):
        await tool.function(path="link/k.txt", content="after", context=context)
    assert (project.root / "open" / "k.txt").read_text() == "before"
    assert (project.root / "private" / "k.txt").read_text() == SECRET


def test_opening_without_links_refuses_them_in_both_ways(files: Any) -> None:
    import os

    from mcp_tools.builtin.workspace.beneath import open_to_read

    (files.root / "x").write_text("x")
    (files.root / "link").symlink_to("x")
    root_fd = files.workspace.roots[0].fd
    os.close(open_to_read(files.workspace.opener, root_fd, ["link"]))
    with pytest.raises((OSError, NotARegularFile)):
        open_to_read(open_by_walking, root_fd, ["link"], links=False)
    with pytest.raises((OSError, NotARegularFile)):
        open_to_read(files.workspace.opener, root_fd, ["link"], links=False)


async def test_a_name_that_a_rule_hides_is_not_suggested(project: Any) -> None:
    for rules in ({}, {"deny": ["*(private.txt)"]}):
        guarded = with_rules(project, **rules)
        for tool, path in (("read_file", "privat.txt"), ("list_directory", "privat.tx")):
            error = await guarded.refusal(tool, path=path)
            assert ("private.txt" in error) is (not rules), error


READS: dict[str, dict[str, Any]] = {
    "read_file": {"path": "link/k.txt"},
    "read_text_file": {"path": "link/k.txt"},
    "read_multiple_files": {"paths": ["link/k.txt"]},
    "get_file_info": {"path": "link/k.txt"},
    "grep_files": {"path": "link/k.txt", "pattern": "topsecret"},
    "list_directory": {"path": "link"},
}


@pytest.mark.parametrize("name", READS)
async def test_a_link_exchanged_after_the_decision_does_not_lead_a_read_past_a_rule(
    project: Any, name: str
) -> None:
    (project.root / "link").symlink_to("private")
    tool = project.executor.registry.get(name)
    free = await tool.function(**READS[name], context=CallContext())
    assert "k.txt" in str(free) or SECRET in str(free)
    screen = RulePolicy.parse(deny=["*(private/**)"]).screen(tool)
    try:
        answer = await tool.function(**READS[name], context=CallContext(screen=screen))
    except Exception as error:
        answer = error
    assert "a rule forbids where this leads" in str(answer)
    assert SECRET not in str(answer)
