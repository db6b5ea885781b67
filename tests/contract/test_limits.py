"""Every limit ends what goes over it, says which one it was, and keeps what was written until then."""

from __future__ import annotations

import pytest

from sandbox import EndedBy, SandboxResult
from tests.contract.backends import AnySandbox, Boxes

IGNORING = """
import signal, time
for number in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)
while True:
    try: time.sleep(60)
    except BaseException: pass
"""
STAYING = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: pass
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
"""
ENDINGS = {
    "asleep and deaf": (IGNORING, EndedBy.TIME),
    "busy": ("while True: pass", EndedBy.TIME),
    "one long instruction": ("10 ** 10 ** 9", EndedBy.TIME),
    "stopped": (
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(60)",
        EndedBy.TIME,
    ),
    "processes that stay": (STAYING, EndedBy.TIME),
    "function at exit": ("import atexit, time\natexit.register(time.sleep, 60)", EndedBy.TIME),
    "one large block": ("kept = bytearray(b'x' * (200 << 20))", EndedBy.MEMORY),
    "small objects": ("kept = []\nwhile True: kept.append(object())", EndedBy.MEMORY),
    "memory of many processes": (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        kept = b'x' * (16 << 20)\n"
        "        time.sleep(60)\ntime.sleep(60)",
        EndedBy.MEMORY,
    ),
    "flood": ("while True: print('x' * 10_000)", EndedBy.OUTPUT),
    "forks": (
        "import os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(60)",
        EndedBy.PROCESSES,
    ),
    "threads": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=[60], daemon=True).start()",
        EndedBy.PROCESSES,
    ),
    "bytes on disk": ("for n in range(40): open(f'{n}', 'wb').write(bytes(1 << 20))", EndedBy.DISK),
    "one large file": (
        "with open('f', 'wb', 0) as file:\n    while True: file.write(bytes(1 << 20))",
        EndedBy.DISK,
    ),
    "number of files": ("for n in range(400): open(f'{n}', 'wb').close()", EndedBy.DISK),
    "shared memory": (
        "for n in range(40): open(f'/dev/shm/{n}', 'wb').write(bytes(1 << 20))",
        EndedBy.DISK,
    ),
}
SENTENCES = {
    EndedBy.TIME: "stopped after 0.4 s, the time limit of this call",
    EndedBy.MEMORY: "the memory limit of 64 MiB was reached",
    EndedBy.OUTPUT: "stopped because of a flood of output; 2000 bytes of each stream are kept",
    EndedBy.PROCESSES: "the limit of 12 processes and threads was reached",
    EndedBy.DISK: "the limit of 8 MiB and 100 files was reached",
}


def ended(result: SandboxResult, by: EndedBy) -> None:
    """It was ended, or met the limit itself and ended with that."""
    assert (result.ended_by, result.success) == (by, False), result
    assert result.return_code in (-1, 1)
    assert result.stdout.startswith("so far\n")


@pytest.mark.parametrize(("code", "by"), ENDINGS.values(), ids=ENDINGS)
def test_a_limit_ends_the_call_and_keeps_its_output(code: str, by: EndedBy, box: AnySandbox) -> None:
    """D-14."""
    limit = 0.4 if by is EndedBy.TIME else None
    result = box.execute_sync(f"print('so far', flush=True)\n{code}", timeout_seconds=limit)
    ended(result, by)
    assert result.error == SENTENCES[by]
    if by is EndedBy.TIME:
        assert 400 <= result.duration_ms < 1400
        assert result.return_code == -1
    if by is EndedBy.OUTPUT:
        assert len(result.stdout) == 2000
        assert result.stdout_dropped_bytes > 1 << 20


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        while True: 1\ntime.sleep(60)",
    ],
    ids=["one process", "several processes"],
)
def test_cpu_time_ends_a_call(code: str, boxes: Boxes) -> None:
    box = boxes(max_cpu_seconds=0.4)
    result = box.execute_sync(f"print('so far', flush=True)\n{code}")
    ended(result, EndedBy.CPU)
    assert result.error == "stopped at 0.4 s of CPU time, the limit of a call"
    assert 300 <= result.cpu_ms < 2000
    assert box.execute_sync("import time\ntime.sleep(0.6)").success, "time that is not CPU time counted"


def test_open_files_over_the_limit_are_an_error_of_the_code(box: AnySandbox) -> None:
    result = box.execute_sync("kept = []\nwhile True: kept.append(open('/dev/null'))")
    assert (result.ended_by, result.exception) == (EndedBy.EXCEPTION, "OSError")
    assert "Too many open files" in result.stderr


def test_what_stays_below_the_limits_is_left_alone(box: AnySandbox) -> None:
    code = """
import os, threading
kept = bytearray(b'x' * (30 << 20))
for n in range(60): open(f'{n}', 'wb').write(bytes(50_000))
files = [open('/dev/null') for _ in range(40)]
pids = []
for n in range(8):
    pids.append(os.fork())
    if pids[-1] == 0: os._exit(n)
print('x' * 1900)
[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
"""
    for _ in range(2):
        result = box.execute_sync(code)
        assert (result.value, result.stderr) == ("[0, 1, 2, 3, 4, 5, 6, 7]", "")


def test_a_call_can_ask_for_less_time_and_not_for_more(boxes: Boxes) -> None:
    box = boxes(timeout_seconds=0.5)
    result = box.execute_sync("import time\ntime.sleep(30)", timeout_seconds=60)
    assert (result.ended_by, result.error) == (
        EndedBy.TIME,
        "stopped after 0.5 s, the time limit of this call",
    )
    assert box.execute_sync("1", timeout_seconds=60).value == "1"
