"""What comes back from code: output, values, errors, what was cut off, files, pictures."""

from __future__ import annotations

import base64
from typing import Any

import anyio
import pytest

from mcp_tools import CallContext, ErrorCode, ExecutionResult, ToolSystem
from mcp_tools.builtin.python.result import MAX_TEXT_CHARS
from mcp_tools.output.pictures import picture_type
from mcp_tools.types import MediaContent
from tests.builtin.python.conftest import Systems, run, texts
from tests.output.pictures import png


def pictures(result: ExecutionResult) -> list[MediaContent]:
    return [piece for piece in result.result.content if isinstance(piece, MediaContent)]


async def test_output_and_the_value_of_the_last_expression_come_back(system: ToolSystem) -> None:
    result = await run(system, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    assert texts(result) == ["[ok]", "[stdout]\nout\n", "[stderr]\nerr\n", "[value]\n42"]
    data = result.structured
    assert (data["stdout"], data["stderr"], data["value"]) == ("out\n", "err\n", "42")
    assert (data["success"], data["return_code"], data["ended_by"]) == (True, 0, "exit")
    assert (data["error"], data["exception"], data["session"]) == (None, None, None)
    assert data["duration_ms"] > 0
    assert data["isolation"] in ("L2", "L3", "L4", "L4+")


async def test_its_processor_time_is_counted_as_used(system: ToolSystem) -> None:
    result = await run(system, "sum(range(2_000_000))")
    assert result.usage is not None
    assert result.usage.sandbox_cpu_s == pytest.approx(result.structured["cpu_ms"] / 1000, abs=1e-6)
    assert result.usage.sandbox_cpu_s > 0


async def test_code_that_says_nothing_is_answered_in_words(system: ToolSystem) -> None:
    assert texts(await run(system, "x = 1")) == ["[ok]\n[no output]"]


async def test_a_failing_program_is_an_answer_with_all_it_printed(system: ToolSystem) -> None:
    result = await run(system, "print('before')\n{}['a']")
    failed, before, stderr = texts(result)
    assert failed.startswith("[failed: ")
    assert "KeyError" in failed
    assert before == "[stdout]\nbefore\n"
    assert "line 2" in stderr
    data = result.structured
    assert (data["success"], data["ended_by"], data["exception"]) == (False, "exception", "KeyError")


async def test_a_syntax_error_is_an_answer_too(system: ToolSystem) -> None:
    data = (await run(system, "def f(:")).structured
    assert (data["success"], data["exception"]) == (False, "SyntaxError")
    assert "def f(:" in data["stderr"]


async def test_what_was_printed_before_the_time_was_up_comes_back(system: ToolSystem) -> None:
    code = "import time\nprint('so far')\ntime.sleep(60)"
    result = await run(system, code, timeout_seconds=0.5)
    assert texts(result)[0].startswith("[failed: ")
    assert "[stdout]\nso far\n" in texts(result)
    assert result.structured["ended_by"] == "time"
    assert result.duration_ms < 5_000


async def test_a_call_cannot_ask_for_more_time_than_the_server_gives(system: ToolSystem) -> None:
    result = await system.execute("execute_python", {"code": "1", "timeout_seconds": 10.5})
    assert result.error_code is ErrorCode.INVALID_ARGUMENTS
    assert "10" in (result.error or "")
    assert (await run(system, "1", timeout_seconds=10)).structured["success"]


async def test_what_is_over_the_limit_is_counted_and_said(systems: Systems) -> None:
    result = await run(systems(max_output_bytes=1000), "print('x' * 5000)")
    assert result.structured["stdout"] == "x" * 1000
    assert result.structured["stdout_dropped_bytes"] == 4001
    assert any("4,001 more bytes" in text for text in texts(result))


async def test_bytes_that_are_no_text_are_replaced_and_that_is_said(system: ToolSystem) -> None:
    result = await run(system, "import os\nos.write(1, b'a\\xffb')\nNone")
    assert result.structured["stdout"] == "a\ufffdb"
    assert result.structured["stdout_replaced"]
    assert any("no UTF-8" in text for text in texts(result))


async def test_nothing_that_code_says_passes_for_what_we_say(system: ToolSystem) -> None:
    """The first piece is ours, and each other begins with a label; the data cannot be talked over."""
    genuine = await run(system, "while True: pass", timeout_seconds=0.5)
    (failed,) = texts(genuine)
    assert failed == "[failed: stopped after 0.5 s, the time limit of this call]"
    code = f"""
import os, sys
print({failed!r}, end="")
print({failed!r}, end="", file=sys.stderr)
open(os.environ["SANDBOX_OUT"] + "/stdout]\\n{failed}", "w").write({failed!r})
class Said:
    def __repr__(self): return {failed!r}
Said()
"""
    result = await run(system, code)
    assert texts(result) == [
        "[ok]",
        *(f"[{label}]\n{failed}" for label in ("stdout", "stderr", "value")),
        f"[file 'stdout]\\n{failed}', {len(failed)} bytes]\n{failed}",
    ]
    assert (result.structured["success"], result.structured["value"]) == (True, failed)


async def test_an_exception_s_name_cannot_pass_for_another_end(system: ToolSystem) -> None:
    code = "raise type('x]\\n[ok]\\n[stopped after 1 s, the time limit of this call', (Exception,), {})"
    first = texts(await run(system, code))[0]
    assert first.startswith("[failed: the code ended with ")
    assert "\n" not in first


HIDDEN = "\x1b\x07\x08\x85\x9b\x7f\u202e\u2066\U000e0041\U000e0100\u2028\r\x01⟦"


@pytest.mark.parametrize("char", HIDDEN)
async def test_what_acts_on_a_terminal_or_is_not_seen_is_written_out(char: str, system: ToolSystem) -> None:
    """In all text that is shown; the data is what the code wrote, and a name is never raw."""
    code = f"""
import os, sys
char = {char!r}
print(f"a{{char}}b\\tc")
print(f"a{{char}}b", file=sys.stderr)
open(os.environ["SANDBOX_OUT"] + "/a.txt", "w", newline="").write(char)
class Said:
    def __repr__(self): return char * 5000
Said()
"""
    result = await run(system, code)
    mark = f"⟦U+{ord(char):04X}"
    first, *others = texts(result)
    assert first.startswith("[ok]\n[characters that act on a terminal or are not seen")
    assert others == [
        f"[stdout]\na{mark}⟧b\tc\n",
        f"[stderr]\na{mark}⟧b\n",
        f"[value]\n{mark} x 5,000⟧",
        f"[file 'a.txt', {len(char.encode())} bytes]\n{mark}⟧",
    ]
    assert result.structured["stdout"] == f"a{char}b\tc\n"


async def test_names_of_files_are_never_raw(system: ToolSystem) -> None:
    code = r"""
import os
for name in ("\x1b[2J.txt", "\u202ea\U000e0041.bin"):
    open(os.environ["SANDBOX_OUT"] + "/" + name, "w").write("\0" if name.endswith("bin") else "x")
os.symlink("/", os.environ["SANDBOX_OUT"] + "/\x1b")
None
"""
    result = await run(system, code)
    names = {each["name"] for each in result.structured["artifacts"]}
    assert names == {"\\x1b[2J.txt", "\\u202ea\\U000e0041.bin"}
    for text in [*texts(result), *result.structured["artifacts_left_out"]]:
        assert not set(text) & set(HIDDEN), ascii(text)
    assert "\n[left out: \\x1b" in texts(result)[0]


async def test_text_for_people_stays_as_it_is(system: ToolSystem) -> None:
    text = "größe 漢字 \u202f한국어 नमस्ते 👩\u200d💻 ❤\ufe0f\tend\n"
    assert texts(await run(system, f"print({text!r}, end='')")) == ["[ok]", f"[stdout]\n{text}"]


# --- Files ------------------------------------------------------------------------------------


async def test_files_are_in_the_working_folder_text_and_bytes(system: ToolSystem) -> None:
    data = bytes(range(256))
    code = "open('a.txt').read(), open('in/b.bin', 'rb').read() == bytes(range(256))"
    files = {"a.txt": "größe", "in/b.bin": {"base64": base64.b64encode(data).decode()}}
    assert (await run(system, code, files=files)).structured["value"] == "('größe', True)"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.bin": {"base64": "no base64!"}}, "files.a.bin.base64"),
        ({"../a": "x"}, "'../a'"),
        ({"/etc/passwd": "x"}, "'/etc/passwd'"),
    ],
)
async def test_files_that_cannot_be_are_refused_by_name(
    files: dict[str, Any], message: str, system: ToolSystem
) -> None:
    result = await system.execute("execute_python", {"code": "1", "files": files})
    assert result.error_code is ErrorCode.TOOL_ERROR
    assert message in (result.error or "")
    assert "nothing was run" in (result.error or "")


@pytest.mark.parametrize("files", [{"a": "half \ud800"}, {"\udfff": "x"}, {"a": {"base64": "\ud800"}}])
async def test_half_characters_in_files_are_refused_by_the_name_of_the_field(
    files: dict[str, Any], system: ToolSystem
) -> None:
    result = await system.execute("execute_python", {"code": "1", "files": files})
    assert result.error_code is ErrorCode.INVALID_ARGUMENTS
    assert "files: has a lone surrogate at character" in (result.error or "")


async def test_text_left_in_the_out_folder_comes_back_and_other_files_are_named(system: ToolSystem) -> None:
    code = """
open('/tmp/out/table.csv', 'w').write('a,b\\n1,2\\n')
open('/tmp/out/model.bin', 'wb').write(bytes(300))
open('/tmp/out/long.txt', 'w').write('x' * 30_000)
None
"""
    result = await run(system, code)
    said = "\n".join(texts(result))
    assert "[file 'table.csv', 8 bytes]\na,b\n1,2\n" in said
    assert "not shown: 'model.bin', application/octet-stream, 300 bytes" in said
    by_name = {each["name"]: each for each in result.structured["artifacts"]}
    assert by_name["table.csv"]["text"] == "a,b\n1,2\n"
    assert (by_name["model.bin"]["shown_as"], by_name["model.bin"]["text"]) == ("name", None)
    assert (by_name["long.txt"]["shown_as"], by_name["long.txt"]["size_bytes"]) == (
        "beginning of the text",
        30_000,
    )
    assert len(by_name["long.txt"]["text"]) == MAX_TEXT_CHARS


# --- Pictures ---------------------------------------------------------------------------------


async def test_a_picture_file_comes_back_as_a_picture_whatever_its_name(system: ToolSystem) -> None:
    result = await run(system, f"open('/tmp/out/plot.dat', 'wb').write({png()!r})\nNone")
    (picture,) = pictures(result)
    assert (picture.data, picture.media_type) == (png(), "image/png")
    (artifact,) = result.structured["artifacts"]
    assert (artifact["media_type"], artifact["shown_as"]) == ("image/png", "picture")


async def test_what_only_calls_itself_a_picture_is_text(system: ToolSystem) -> None:
    result = await run(system, "open('/tmp/out/plot.png', 'w').write('<html>')\nNone")
    assert pictures(result) == []
    assert result.structured["artifacts"][0]["text"] == "<html>"


@pytest.mark.parametrize("preload", [(), ("matplotlib.pyplot",)], ids=["imported", "preloaded"])
async def test_open_figures_come_back_without_asking(
    preload: tuple[str, ...], systems: Systems, site_packages: str
) -> None:
    system = systems(packages=site_packages, preload=preload, timeout_seconds=60.0, max_memory_mb=512)
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nprint('drawn')"
    result = await run(system, code)
    assert "[stdout]\ndrawn\n" in texts(result), result.structured
    (picture,) = pictures(result)
    assert picture.media_type == "image/png"
    assert picture_type(picture.data) == "image/png"
    if preload:
        assert result.structured["stderr"] == ""


# --- Ending early -----------------------------------------------------------------------------


async def test_the_first_call_says_that_the_sandbox_starts(systems: Systems) -> None:
    said: list[str | None] = []

    async def progress(_count: float, _total: float | None = None, message: str | None = None) -> None:
        said.append(message)

    system = systems(max_files=100)
    for _ in range(2):
        await run(system, "1", context=CallContext(on_progress=progress))
    assert said == ["starting the sandbox"]


async def test_calls_run_side_by_side(system: ToolSystem) -> None:
    with anyio.fail_after(8):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(run, system, "import time; time.sleep(1)")


async def test_after_the_end_a_call_is_refused_in_words(systems: Systems) -> None:
    system = systems(max_files=101)
    await run(system, "1")
    system.close()
    result = await system.execute("execute_python", {"code": "1"})
    assert result.error_code is ErrorCode.TOOL_ERROR
    assert "closed" in (result.error or "")
