"""Code in a session that speaks for the session: to its init, to the server, and between calls."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import EndedBy, PythonSandbox, SandboxConfig, SandboxDied, SandboxError, SandboxResult
from sandbox.linux.call import has_ended

SAY_EVERYWHERE = """
import os
for fd in range(3, 16):
    try:
        os.write(fd, {words!r})
    except OSError:
        pass
"""
FORGED_REPORT = """
import json, os
said = {"exit_code": 0, "value": "forged", "exception": None, "artifacts": [], "left_out": []}
report = json.dumps(said).encode()
os.write(3, len(report).to_bytes(4, "little") + report)  # the socket of the call
while True:
    pass
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[PythonSandbox]:
    with PythonSandbox(SandboxConfig(timeout_seconds=2)) as made:
        if made.execute_sync("").isolation < 4:
            pytest.skip(f"needs a machine that gives L4: it gives {made.level}")
        yield made


def run(sandbox: PythonSandbox, code: str, session: str, **more: float) -> SandboxResult | SandboxError:
    try:
        return sandbox.execute_sync(code, session=session, **more)
    except SandboxError as error:
        return error


@pytest.mark.parametrize(
    "words",
    [
        b'{"done": 1000000000}',
        b'{"done": 2}',
        b"not json",
        b'{"caller": 1}',
        b"[]",
        b'{"go": 1}',
        b'{"ready": 1}',
    ],
)
def test_words_that_code_makes_up_end_its_session_or_nothing(sandbox: PythonSandbox, words: bytes) -> None:
    name = f"words-{words.decode()}"
    run(sandbox, "x = 1", name)
    run(sandbox, SAY_EVERYWHERE.format(words=words), name)
    began_s = time.monotonic()
    late = run(sandbox, "while True: pass", name, timeout_seconds=0.3)
    if isinstance(late, SandboxResult):
        assert late.ended_by is EndedBy.TIME
    else:
        assert isinstance(late, SandboxDied)
    assert time.monotonic() - began_s < 5
    after = run(sandbox, "1 + 1", name)
    assert isinstance(after, SandboxResult)
    assert after.value == "2"


def test_code_that_keeps_the_next_call_from_getting_ready_ends_the_session(sandbox: PythonSandbox) -> None:
    burn = "import os\ndef burn():\n    while True: pass\nos.register_at_fork(after_in_child=burn)"
    run(sandbox, burn, "burn")
    session = sandbox._sessions.find("", "burn")
    assert session is not None
    try:
        assert has_ended(session.pidfd, within_s=10)
    finally:
        sandbox._sessions.leave(session)
    again = run(sandbox, "'burn' in globals()", "burn")
    assert isinstance(again, SandboxResult)
    assert (again.value, again.session_started) == ("False", True)


def test_code_that_claims_to_be_done_is_ended() -> None:
    with PythonSandbox(SandboxConfig(timeout_seconds=60)) as patient:
        run(patient, "x = 1", "claims")
        claimed = run(patient, FORGED_REPORT, "claims")
        assert isinstance(claimed, SandboxResult)
        assert claimed.value == "forged"
        began_s = time.monotonic()
        after = run(patient, "x", "claims")  # waits until the one that goes on is ended
        assert isinstance(after, SandboxResult)
        assert after.value == "1"
        assert time.monotonic() - began_s < 10


def test_no_set_user_id_file_is_left_in_a_folder_of_the_host(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)
    code = (
        "import os\nopen('/work/x', 'w').close()\n"
        "for mode in (0o4755, 0o2755, 0o6755):\n"
        "    for attempt in (lambda: os.chmod('/work/x', mode),\n"
        "                    lambda: os.open(f'/work/{mode}', os.O_CREAT | os.O_WRONLY, mode),\n"
        "                    lambda: os.mkdir(f'/work/d{mode}', mode)):\n"
        "        try:\n            attempt()\n        except PermissionError:\n            print('denied')\n"
    )
    outside = tmp_path / "outside"
    outside.touch()
    os.chmod(outside, 0o4755)  # the control: outside it works
    assert outside.stat().st_mode & stat.S_ISUID
    outside.unlink()
    with PythonSandbox(SandboxConfig(working_dir=str(tmp_path))) as working:
        result = working.execute_sync(code)
    assert (result.ended_by, result.stdout.count("denied")) == (EndedBy.EXIT, 9), result.stderr
    modes = [each.stat().st_mode for each in tmp_path.iterdir()]
    assert modes
    assert not [mode for mode in modes if mode & (stat.S_ISUID | stat.S_ISGID)]
