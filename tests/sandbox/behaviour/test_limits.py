"""Every limit ends what goes over it and says which one it was; what stays below is left alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from sandbox import (
    EndedBy,
    IsolationLevel,
    PythonSandbox,
    SandboxBusy,
    SandboxClosed,
    SandboxConfig,
    SandboxResult,
)
from tests.sandbox.levels import (
    L2,
    L3,
    L4,
    L4_PLUS,
    L4_USER,
    PLACES,
    USERS,
    WITH_FORK,
    WITH_MOUNTS,
    Box,
    Boxes,
    Place,
    at,
)

# Large enough that a guard that looks every few milliseconds is not too late for the exact cases.
SMALL: Mapping[str, Any] = {
    "timeout_seconds": 8.0,
    "max_memory_mb": 64,
    "max_processes": 12,
    "max_open_files": 64,
    "max_disk_mb": 8,
    "max_files": 100,
    "max_output_bytes": 2000,
}

HOLDING = """
import os, time
def hold(megabytes):
    block = bytearray(megabytes << 20)
    for at in range(0, len(block), 4096):
        block[at] = 1
    return block
"""
CHILDREN = """
pids = []
for _ in range(8):
    pids.append(os.fork())
    if pids[-1] == 0:
        block = hold(16)
        time.sleep(30)
        os._exit(0)
time.sleep(30)
"""
MEMORY = {
    "one block": "hold(200)",
    "many small objects": "kept = []\nwhile True: kept.append(object())",
    "strings": "text = 'x'\nwhile True: text += text",
    "an anonymous mapping": (
        "import mmap\nmapped = mmap.mmap(-1, 200 << 20)\nfor at in range(0, 200 << 20, 4096): mapped[at] = 1"
    ),
    "a value that is large when shown": "[0] * 8_000_000",
}
MEMORY_OF_MANY = {
    "many processes": CHILDREN,
    "grandchildren": "if os.fork() == 0:\n    os.setsid() if LEVEL > 3 else None\n"
    + "\n".join(f"    {line}" for line in CHILDREN.strip().splitlines())
    + "\ntime.sleep(30)",
    "shared between processes": (
        "import mmap\nshared = [mmap.mmap(-1, 16 << 20) for _ in range(8)]\n"
        "for each in shared:\n    if os.fork() == 0:\n"
        "        for at in range(0, 16 << 20, 4096): each[at] = 1\n"
        "        time.sleep(30)\ntime.sleep(30)"
    ),
}


def stopped(result: SandboxResult, by: EndedBy) -> None:
    """It was ended, or met the limit itself and ended with that."""
    assert result.ended_by is by, result
    assert not result.success
    assert result.return_code in (-1, 1)
    assert result.error


def goes_on(boxes: Boxes, place: Place) -> None:
    assert boxes.at(place, **SMALL).execute_sync("print('next')").stdout == "next\n"


# --- Time -------------------------------------------------------------------------------------


STUBBORN = """
import signal
for number in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)
while True:
    try:
        while True: pass
    except BaseException: pass
"""
WAITING = {
    "asleep": "import time\ntime.sleep(60)",
    "exit function": "import atexit\natexit.register(lambda: all(True for _ in iter(int, 1)))",
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=[60]).start()",
    "one long instruction": "10 ** 10 ** 9",
}


def ends_in_time(code: str, box: Box) -> None:
    result = box.execute_sync(f"print('so far')\n{code}", timeout_seconds=0.2)
    stopped(result, EndedBy.TIME)
    assert (result.stdout, result.return_code) == ("so far\n", -1)
    assert result.error == "stopped after 0.2 s, the time limit of this call"
    assert 200 <= result.duration_ms < 1200


@at(*PLACES, *USERS)
def test_time_ends_a_call(place: Place, boxes: Boxes) -> None:
    """D-14."""
    ends_in_time(STUBBORN, boxes.at(place, **SMALL))


@at(L4_PLUS, L2)
@pytest.mark.parametrize("code", WAITING.values(), ids=WAITING)
def test_time_ends_a_call_whatever_it_does(code: str, place: Place, boxes: Boxes) -> None:
    """D-14."""
    ends_in_time(code, boxes.at(place, **SMALL))


@at(*WITH_FORK)
def test_time_ends_every_process_of_a_call(place: Place, boxes: Boxes) -> None:
    """Daemons and stopped processes too: none of them writes to the folder after the end (D-14)."""
    box = boxes.at(place, **SMALL)
    code = """
import os, signal, sys, time
for _ in range(2):
    if os.fork() == 0:
        try: os.setsid()
        except OSError: pass
        if os.fork() == 0:
            while True:
                os.write(1, b".")
                time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
"""
    result = box.execute_sync(code, timeout_seconds=0.3)
    stopped(result, EndedBy.TIME)
    assert result.stdout
    goes_on(boxes, place)


def test_a_call_can_ask_for_less_time_and_not_for_more(boxes: Boxes) -> None:
    box = boxes.here(timeout_seconds=0.3)
    assert box.execute_sync("import time\ntime.sleep(9)", timeout_seconds=60).ended_by is EndedBy.TIME
    started = time.monotonic()
    assert box.execute_sync("import time\ntime.sleep(9)", timeout_seconds=0.05).ended_by is EndedBy.TIME
    assert time.monotonic() - started < 0.25


# --- CPU time ---------------------------------------------------------------------------------


@at(*PLACES)
def test_cpu_time_of_one_process(place: Place, boxes: Boxes) -> None:
    box = boxes.at(place, max_cpu_seconds=0.2, timeout_seconds=10.0)
    result = box.execute_sync("print('so far')\nwhile True: pass")
    stopped(result, EndedBy.CPU)
    assert result.stdout == "so far\n"
    assert 150 <= result.cpu_ms < 1000
    assert result.error == "stopped at 0.2 s of CPU time, the limit of a call"
    assert box.execute_sync("import time\ntime.sleep(0.3)").success


@at(*WITH_FORK)
def test_cpu_time_of_many_processes_together(place: Place, boxes: Boxes) -> None:
    box = boxes.at(place, max_cpu_seconds=0.2, timeout_seconds=10.0)
    code = (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        while True: 1\ntime.sleep(60)"
    )
    result = box.execute_sync(code)
    stopped(result, EndedBy.CPU)
    assert result.duration_ms < 3000


# --- Memory -----------------------------------------------------------------------------------


@at(*PLACES, L4_USER)
@pytest.mark.parametrize("code", MEMORY.values(), ids=MEMORY)
def test_memory_of_one_process(code: str, place: Place, boxes: Boxes) -> None:
    result = boxes.at(place, **SMALL).execute_sync(f"print('so far')\n{HOLDING}\n{code}")
    stopped(result, EndedBy.MEMORY)
    assert result.stdout == "so far\n"
    assert result.error == "the memory limit of 64 MiB was reached"
    assert result.peak_memory_bytes < 110 << 20


@at(*WITH_FORK)
@pytest.mark.parametrize("code", MEMORY_OF_MANY.values(), ids=MEMORY_OF_MANY)
def test_memory_of_many_processes_together(code: str, place: Place, boxes: Boxes) -> None:
    box = boxes.at(place, **SMALL)
    result = box.execute_sync(f"LEVEL = {int(place.level)}\n{HOLDING}\n{code}")
    stopped(result, EndedBy.MEMORY)
    goes_on(boxes, place)


@at(L4_PLUS)
def test_files_are_memory_too(place: Place, boxes: Boxes) -> None:
    box = boxes.at(place, **{**SMALL, "max_disk_mb": 256})
    code = "with open('f', 'wb', 0) as file:\n    while True: file.write(bytes(1 << 20))"
    stopped(box.execute_sync(code), EndedBy.MEMORY)


@at(*PLACES)
def test_what_fits_into_memory_is_left_alone(place: Place, boxes: Boxes) -> None:
    result = boxes.at(place, **SMALL).execute_sync(f"{HOLDING}\nblock = hold(40)\nlen(block)")
    assert result.value == str(40 << 20)
    assert result.peak_memory_bytes > 40 << 20


@at(*PLACES)
def test_code_can_go_on_after_it_was_refused_memory(place: Place, boxes: Boxes) -> None:
    """Not at L4+, where the kernel gives no answer but the end."""
    code = "try:\n    block = bytearray(10**12)\nexcept MemoryError:\n    print('refused')"
    assert boxes.at(place, **SMALL).execute_sync(code).stdout == "refused\n"


# --- Processes --------------------------------------------------------------------------------

FORKING = "import os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(30)\n        os._exit(0)"
THREADS = (
    "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[30], daemon=True).start()"
)
PROGRAMS = (
    "import subprocess, sys\nprocesses = []\n"
    "while True: processes.append(subprocess.Popen([sys.executable, '-ISc', 'import time; time.sleep(30)']))"
)


@at(*WITH_FORK)
@pytest.mark.parametrize("code", [FORKING, THREADS, PROGRAMS], ids=["fork", "threads", "programs"])
def test_processes_and_threads(code: str, place: Place, boxes: Boxes) -> None:
    result = boxes.at(place, **{**SMALL, "max_memory_mb": 512}).execute_sync(code)
    stopped(result, EndedBy.PROCESSES)
    assert result.error == "the limit of 12 processes and threads was reached"


@at(*WITH_FORK)
def test_fewer_processes_than_the_limit_are_left_alone(place: Place, boxes: Boxes) -> None:
    """Other calls, and children that wait, do not count."""
    box = boxes.at(place, **{**SMALL, "pool_size": 4})
    code = """
import os
pids = []
for n in range(9):
    pids.append(os.fork())
    if pids[-1] == 0: os._exit(n)
[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
"""
    for _ in range(3):
        result = box.execute_sync(code)
        assert (result.value, result.stderr) == ("[0, 1, 2, 3, 4, 5, 6, 7, 8]", "")


@at(*PLACES, *USERS)
def test_threads_run_everywhere(place: Place, boxes: Boxes) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(5) as pool: print(sum(pool.map(abs, range(50))))"
    )
    assert boxes.at(place, **SMALL).execute_sync(code).stdout == "1225\n"


# --- Disk and descriptors ---------------------------------------------------------------------


@at(*WITH_MOUNTS)
@pytest.mark.parametrize(
    "code",
    [
        "for n in range(40): open(f'{n}', 'wb').write(bytes(1 << 20))",
        "for n in range(400): open(f'{n}', 'wb').close()",
        "import os\nfor n in range(400): os.mkdir(f'{n}')",
        "for n in range(40): open(f'/dev/shm/{n}', 'wb').write(bytes(1 << 20))",
        "import tempfile\nfile = tempfile.TemporaryFile()\nwhile True: file.write(bytes(1 << 20))",
    ],
    ids=["bytes", "files", "folders", "shared memory", "temporary"],
)
def test_disk(code: str, place: Place, boxes: Boxes) -> None:
    result = boxes.at(place, **SMALL).execute_sync(code)
    stopped(result, EndedBy.DISK)
    assert result.error == "the limit of 8 MiB and 100 files was reached"


@at(*PLACES)
def test_one_file_cannot_be_larger_than_the_disk(place: Place, boxes: Boxes) -> None:
    code = "with open('f', 'wb', 0) as file:\n    while True: file.write(bytes(1 << 20))"
    stopped(boxes.at(place, **SMALL).execute_sync(code), EndedBy.DISK)


@at(*PLACES)
def test_what_fits_on_the_disk_is_left_alone(place: Place, boxes: Boxes) -> None:
    code = "for n in range(60): open(f'{n}', 'wb').write(bytes(100_000))"
    assert boxes.at(place, **SMALL).execute_sync(code).success


@at(*PLACES)
def test_open_files(place: Place, boxes: Boxes) -> None:
    result = boxes.at(place, **SMALL).execute_sync("kept = []\nwhile True: kept.append(open('/dev/null'))")
    assert (result.ended_by, result.exception) == (EndedBy.EXCEPTION, "OSError")
    assert "Too many open files" in result.stderr
    assert result.stderr.count('File "') == 1


# --- Crashes ----------------------------------------------------------------------------------


@at(*PLACES)
def test_a_crash_is_told_from_an_exit(place: Place, boxes: Boxes) -> None:
    box = boxes.at(place, **SMALL)
    result = box.execute_sync("print('so far')\nimport ctypes\nctypes.string_at(0)")
    assert (result.ended_by, result.return_code, result.stdout) == (EndedBy.CRASH, -11, "so far\n")
    assert result.error == "the interpreter was ended by signal 11 (SIGSEGV)"
    assert box.execute_sync("import os\nos.abort()").ended_by is EndedBy.CRASH
    goes_on(boxes, place)


@at(*PLACES)
def test_how_a_call_ended_is_not_taken_from_its_own_words(place: Place, boxes: Boxes) -> None:
    """Code that imitates the reports of limits is an exception like any other, or what it says it met."""
    result = boxes.at(place, **SMALL).execute_sync("raise MemoryError('mine')")
    assert (result.ended_by, result.return_code) == (EndedBy.MEMORY, 1)
    assert boxes.at(place, **SMALL).execute_sync("raise TimeoutError").ended_by is EndedBy.EXCEPTION


# --- Turns ------------------------------------------------------------------------------------


def test_more_calls_than_may_run_at_once_wait_for_their_turn(boxes: Boxes) -> None:
    """D-26."""
    box = boxes.here(max_concurrent_calls=2)
    code = "import time\nbegin = time.monotonic()\ntime.sleep(0.05)\nbegin, time.monotonic()"
    with ThreadPoolExecutor(8) as pool:
        spans = [eval(each.value or "") for each in pool.map(lambda _: box.execute_sync(code), range(8))]
    assert all(sum(begin < at < end for begin, end in spans) <= 2 for at, _ in spans)


def test_a_call_without_a_turn_in_time_is_refused() -> None:
    config = SandboxConfig(max_concurrent_calls=1, pool_size=1, queue_seconds=0.4)
    with PythonSandbox(config) as box, ThreadPoolExecutor(1) as pool:
        box.execute_sync("1")
        first = pool.submit(box.execute_sync, "import time\ntime.sleep(1)\n'first'")
        time.sleep(0.2)
        started = time.monotonic()
        with pytest.raises(SandboxBusy, match="try again"):
            box.execute_sync("1")
        assert 0.3 < time.monotonic() - started < 0.9
        assert first.result().value == "'first'"
        assert box.execute_sync("2").value == "2"


# --- Cancelling and closing -------------------------------------------------------------------


@pytest.mark.parametrize("session", [None, "s"])
async def test_a_cancelled_call_ends_at_once_with_everything_in_it(session: str | None, boxes: Boxes) -> None:
    box = boxes.here(max_concurrent_calls=1)
    code = "import os, time\nfor _ in range(3): os.fork()\ntime.sleep(60)"
    with anyio.fail_after(20):
        await box.execute("kept = 1", session=session)
        started = time.monotonic()
        with anyio.move_on_after(0.2) as scope:
            await box.execute(code, session=session)
        assert scope.cancelled_caught
        assert time.monotonic() - started < 1.2
        # Its place is free again; a session is as it was before the call.
        result = await box.execute("kept" if session else "print('free')", session=session)
    assert result.success
    assert (result.value, result.stdout) == (("1", "") if session else (None, "free\n"))


@pytest.mark.parametrize("session", [None, "s"])
async def test_closing_ends_calls_in_flight(session: str | None) -> None:
    async def call() -> None:
        with pytest.raises(SandboxClosed):
            await box.execute("import time\ntime.sleep(60)", session=session)
        ended.set()

    ended = anyio.Event()
    with anyio.fail_after(20):
        async with PythonSandbox() as box, anyio.create_task_group() as group:
            await box.execute("1", session=session)
            group.start_soon(call)
            await anyio.sleep(0.1)
            await anyio.to_thread.run_sync(box.close)
            await ended.wait()
    with pytest.raises(SandboxClosed):
        await box.execute("1")
    box.close()


# --- What a level cannot do -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "missing"),
    [
        (L4_PLUS, ()),
        (L4, ()),
        (L3, ("max_disk_mb", "max_files")),
        (L2, ("max_disk_mb", "max_files", "max_processes")),
    ],
    ids=str,
)
def test_a_result_says_what_its_level_cannot_enforce(
    place: Place, missing: tuple[str, ...], boxes: Boxes
) -> None:
    result = boxes.at(place, **SMALL).execute_sync("1")
    assert (result.isolation, result.not_enforced) == (place.level, missing)
    assert isinstance(result.isolation, IsolationLevel)
