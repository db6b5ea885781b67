"""Each attempt works before `restrict` and fails after it, in the same process."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.linux import landlock

pytestmark = pytest.mark.skipif(landlock.abi() == 0, reason="needs Landlock in the kernel")

ATTEMPTS = """
import errno, json, os, socket, subprocess, sys
from sandbox.linux import landlock, libc

root, abstract, network = sys.argv[1:4]
parent, port = map(int, sys.argv[4:])
inside, outside, tool = (os.path.join(root, name) for name in ("inside", "outside", "tool"))


def tried(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)


def made(kind, path):
    kind(path)
    (os.rmdir if os.path.isdir(path) else os.unlink)(path)


def exchange(one, other):
    os.rename(one, other)
    os.rename(other, one)


def listen_on(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    os.unlink(path)


def bind_tcp():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))


def connect_abstract():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\\0" + abstract)


def at(place):
    return {
        "read": lambda: open(place + "/file").close(),
        "list": lambda: os.listdir(place),
        "write": lambda: write(place + "/file"),
        "truncate": lambda: os.truncate(place + "/file", 0),
        "create": lambda: made(write, place + "/new"),
        "remove": lambda: (os.unlink(place + "/spare"), write(place + "/spare")),
        "folder": lambda: made(os.mkdir, place + "/new"),
        "link": lambda: made(lambda path: os.symlink("file", path), place + "/new"),
        "fifo": lambda: made(os.mkfifo, place + "/new"),
        "socket": lambda: listen_on(place + "/new"),
        "run": lambda: subprocess.run([place + "/script"], check=True),
        "rename": lambda: exchange(place + "/file", place + "/renamed"),
    }


def all_attempts():
    said = {
        name: {attempt: tried(action) for attempt, action in at(place).items()}
        for name, place in (("inside", inside), ("outside", outside), ("tool", tool))
    }
    said["rest"] = {
        "move out": tried(lambda: exchange(inside + "/file", outside + "/moved")),
        "move between folders": tried(lambda: exchange(inside + "/file", inside + "/folder/moved")),
        "follow a link out": tried(lambda: open(inside + "/link").close()),
        "write a device": tried(lambda: write("/dev/null")),
        "connect": tried(lambda: socket.create_connection(("127.0.0.1", port), 5).close()),
        "bind": tried(bind_tcp),
        "connect an abstract socket": tried(connect_abstract),
        "signal the parent": tried(lambda: os.kill(parent, 0)),
        "signal oneself": tried(lambda: os.kill(os.getpid(), 0)),
    }
    return said


before = all_attempts()
libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
rules = [(inside, landlock.WRITE), (tool, landlock.EXECUTE), ("/dev/null", landlock.WRITE)]
system = ("/bin", "/usr", "/lib", "/lib64", "/etc")  # what a script's shell is made of
rules += [(path, landlock.EXECUTE) for path in system if os.path.exists(path)]
landlock.restrict(rules, network=network == "network")
print(json.dumps([before, all_attempts()]))
"""
Answers = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, Answers]:
    return _attempt_all(tmp_path_factory.mktemp("root"), "no network")


def _attempt_all(root: Path, network: str) -> tuple[Answers, Answers]:
    for name in ("inside", "outside", "tool"):
        folder = root / name
        folder.mkdir()
        (folder / "folder").mkdir()
        (folder / "spare").touch()
        (folder / "file").write_text("text")
        script = folder / "script"
        script.write_text("#!/bin/sh\nexit 0\n")
        script.chmod(0o755)
    (root / "inside" / "link").symlink_to(root / "outside" / "file")
    abstract = f"mcp-tools-test-{os.getpid()}-{network}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0{abstract}")
        unix.listen()
        arguments = [str(root), abstract, network, str(os.getpid()), str(tcp.getsockname()[1])]
        command = [sys.executable, "-I", "-c", ATTEMPTS, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=30)
    before, after = json.loads(done.stdout)
    return before, after


def test_everything_works_before(answers: tuple[Answers, Answers]) -> None:
    before, _ = answers
    assert {answer for group in before.values() for answer in group.values()} == {"done"}


def test_a_writable_folder_allows_all_but_executing_and_sockets(answers: tuple[Answers, Answers]) -> None:
    _, after = answers
    assert after["inside"] == dict.fromkeys(after["inside"], "done") | {"run": "EACCES", "socket": "EACCES"}


def test_an_executable_folder_allows_reading_and_executing_only(answers: tuple[Answers, Answers]) -> None:
    _, after = answers
    allowed = {"read": "done", "list": "done", "run": "done"}
    truncate = {} if landlock.abi() >= 3 else {"truncate": "done"}
    assert after["tool"] == dict.fromkeys(after["tool"], "EACCES") | allowed | truncate


def test_what_no_rule_names_is_closed(answers: tuple[Answers, Answers]) -> None:
    _, after = answers
    truncate = {} if landlock.abi() >= 3 else {"truncate": "done"}
    assert after["outside"] == dict.fromkeys(after["outside"], "EACCES") | truncate


def test_nothing_is_moved_out_and_no_link_leads_out(answers: tuple[Answers, Answers]) -> None:
    _, after = answers
    assert after["rest"]["move out"] in {"EACCES", "EXDEV"}
    assert after["rest"]["follow a link out"] == "EACCES"
    assert after["rest"]["move between folders"] == ("done" if landlock.abi() >= 2 else "EXDEV")


def test_a_single_file_can_be_writable(answers: tuple[Answers, Answers]) -> None:
    _, after = answers
    assert after["rest"]["write a device"] == "done"


@pytest.mark.skipif(landlock.abi() < 4, reason="needs Landlock ABI 4")
def test_tcp_is_closed_without_the_network(answers: tuple[Answers, Answers]) -> None:
    _, after = answers
    assert (after["rest"]["connect"], after["rest"]["bind"]) == ("EACCES", "EACCES")


def test_tcp_stays_open_with_the_network(tmp_path: Path) -> None:
    _, after = _attempt_all(tmp_path, "network")
    assert (after["rest"]["connect"], after["rest"]["bind"]) == ("done", "done")


@pytest.mark.skipif(not landlock.scopes_signals(), reason="needs Landlock ABI 6")
def test_signals_and_abstract_sockets_stay_inside(answers: tuple[Answers, Answers]) -> None:
    _, after = answers
    assert after["rest"]["signal oneself"] == "done"
    assert after["rest"]["signal the parent"] == "EPERM"
    assert after["rest"]["connect an abstract socket"] == "EPERM"


REFUSED = """
import os, sys
from sandbox.linux import landlock, libc

libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
descriptors = os.listdir("/proc/self/fd")
try:
    landlock.restrict([("/usr", landlock.READ), (sys.argv[1], landlock.READ)], network=False)
except FileNotFoundError as error:
    assert error.filename == sys.argv[1]
    open("/etc/passwd").close()
    assert os.listdir("/proc/self/fd") == descriptors
    print("free")
"""


def test_a_path_that_does_not_exist_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", REFUSED, str(tmp_path / "missing")]
    assert subprocess.check_output(command, text=True, timeout=30) == "free\n"


ENDED = """
import os, sys
from sandbox.linux import landlock, libc

libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
landlock.restrict([("/proc", landlock.READ)], network=False)
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def test_a_confined_process_can_be_signalled_from_outside() -> None:
    command = [sys.executable, "-I", "-c", ENDED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == -signal.SIGTERM


def test_without_no_new_privs_an_ordinary_process_is_refused() -> None:
    code = """
import os
from sandbox.linux import landlock, libc
libc.drop_capabilities()
try:
    landlock.restrict([], network=False)
except OSError as error:
    print(error.errno)
"""
    command = [sys.executable, "-I", "-c", code]
    assert int(subprocess.check_output(command, timeout=30)) == errno.EPERM
