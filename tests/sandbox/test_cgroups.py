"""Cgroup slots with real cgroups: each limit holds, its absence shows in the control, nothing is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.linux import cgroup_find, cgroups, libc
from sandbox.linux.cgroups import Home, NoCgroup, Slot

MIB = 1024**2
NOBODY = 65534
PREFIX = f"sandbox-test{os.getpid()}-"  # others may run the same tests meanwhile
MEMORY = 48 * MIB


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    try:
        home = cgroups.find()
    except NoCgroup as failure:
        assert not can_divide_by_hand(), failure
        pytest.skip(f"needs a cgroup that can be divided: {failure}")
    before = open_descriptors()
    yield home
    assert left_by_us(home) == []
    assert open_descriptors() == before


@pytest.fixture
def name(home: Home) -> Iterator[str]:
    name = cgroups.owner_name(PREFIX)
    yield name
    home.remove(name)


@pytest.fixture
def slot(home: Home, name: str) -> Iterator[Slot]:
    (slot,) = home.make(name, 1, memory_bytes=MEMORY, processes=8)
    yield slot
    slot.close()


class TestMemory:
    def test_a_process_over_the_limit_is_killed_and_counted(self, slot: Slot) -> None:
        assert exit_of(lambda: touch(2 * MEMORY)) == 0  # the control

        assert exit_of(lambda: touch(2 * MEMORY), slot) == -signal.SIGKILL

        peak, ooms, refused, _ = slot.read()
        assert (ooms, refused) == (1, 0)
        assert 0.9 * MEMORY < peak <= MEMORY

    def test_what_fits_is_left_alone(self, slot: Slot) -> None:
        assert exit_of(lambda: touch(MEMORY // 2), slot) == 0
        assert slot.read()[1] == 0

    def test_processes_are_counted_together(self, slot: Slot) -> None:
        def three() -> None:
            release, held = os.pipe()
            pids = [fork(lambda: hold(MEMORY // 2, release, held)) for _ in range(3)]
            os.close(release)
            wait_until(lambda: any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) for pid in pids))
            os.close(held)

        exit_of(three, slot)

        assert slot.read()[1] >= 1

    @pytest.mark.parametrize("kind", ["memfd", "tmpfs"])
    def test_files_in_memory_count(self, slot: Slot, kind: str) -> None:
        def fill() -> None:
            if kind == "tmpfs":
                own_mounts()
                libc.mount("tmpfs", "/mnt", "tmpfs", 0, "size=1g")
            fd = os.memfd_create("x") if kind == "memfd" else os.open("/mnt/x", os.O_CREAT | os.O_WRONLY)
            for _ in range(2 * MEMORY // MIB):
                os.write(fd, bytes(MIB))

        if kind == "tmpfs":
            needs_mounts()
        assert exit_of(fill) == 0  # the control

        assert exit_of(fill, slot) == -signal.SIGKILL

        assert slot.read()[1] == 1
        # Also the pages of a tmpfs, once the mount namespace is gone.
        wait_until(lambda: slot.memory_bytes() < 4 * MIB)

    def test_peak_and_cpu_time_are_measured_from_the_reset_on(self, slot: Slot) -> None:
        assert exit_of(lambda: touch(32 * MIB), slot) == 0
        slot.reset()
        assert slot.read()[1:] == (0, 0, 0)

        started = time.monotonic()
        assert exit_of(lambda: spin(cpu_s=0.05, memory=16 * MIB), slot) == 0
        elapsed = time.monotonic() - started

        peak, _, _, cpu_ns = slot.read()
        assert peak == 0 or 16 * MIB < peak < 24 * MIB
        assert 0.05 <= cpu_ns / 1e9 < elapsed + 0.01

    def test_cached_files_of_one_call_are_not_memory_of_the_next(self, slot: Slot, tmp_path: Path) -> None:
        def write() -> None:
            with (tmp_path / "file").open("wb") as file:
                file.write(bytes(24 * MIB))
                os.fsync(file.fileno())

        if on_memory(tmp_path):
            pytest.skip("needs a temporary folder on a disk")
        assert exit_of(write, slot) == 0
        assert slot.memory_bytes() > 16 * MIB

        assert exit_of(lambda: None, slot) == 0

        assert slot.memory_bytes() < 8 * MIB


class TestProcesses:
    def test_forks_over_the_limit_are_refused_and_counted(self, slot: Slot) -> None:
        def bomb() -> None:
            release, held = os.pipe()
            pids = []
            try:
                for _ in range(20):
                    pids.append(fork(lambda: hold(0, release, held)))
            finally:
                os.close(held)
                for pid in pids:
                    os.waitpid(pid, 0)

        assert exit_of(bomb) == 0  # the control

        assert exit_of(bomb, slot) == 1

        assert slot.read()[1:3] == (0, 1)

    def test_threads_count(self, slot: Slot) -> None:
        def bomb() -> None:
            ended = threading.Event()
            threads = [threading.Thread(target=ended.wait) for _ in range(20)]
            try:
                for thread in threads:
                    thread.start()
            finally:
                ended.set()

        assert exit_of(bomb) == 0  # the control
        assert exit_of(bomb, slot) == 1
        assert slot.read()[2] == 1

    def test_another_process_is_moved_and_stays_until_it_is_waited_for(self, slot: Slot) -> None:
        release, held = os.pipe()
        pid = fork(lambda: hold(0, release, held))
        os.close(release)
        assert slot.is_empty()

        slot.enter_pid(pid)

        assert PREFIX in Path(f"/proc/{pid}/cgroup").read_text()
        assert not slot.is_empty()
        os.close(held)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert not slot.is_empty()
        assert os.waitpid(pid, 0) == (pid, 0)
        wait_until(slot.is_empty)

    def test_a_process_that_ended_cannot_be_moved(self, slot: Slot) -> None:
        pid = fork(lambda: None)
        os.waitpid(pid, 0)
        with pytest.raises(ProcessLookupError):
            slot.enter_pid(pid)


class TestDescriptors:
    def test_they_work_for_another_user_without_a_path_to_cgroups(self, slot: Slot, tmp_path: Path) -> None:
        needs_root()

        def become_another() -> None:
            os.chroot(tmp_path)
            os.chdir("/")
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)

        def use() -> None:
            become_another()
            slot.enter()
            slot.reset()
            assert slot.memory_bytes() > 0
            assert not slot.is_empty()
            touch(2 * MEMORY)

        assert exit_of(use) == -signal.SIGKILL
        assert slot.read()[1] == 1

    def test_after_close_none_is_open(self, home: Home, name: str) -> None:
        before = open_descriptors()
        slots = home.make(name, 3, memory_bytes=MEMORY, processes=8)
        assert open_descriptors() > before
        for slot in slots:
            slot.close()
            slot.close()
        assert open_descriptors() == before


class TestRemoval:
    def test_whatever_is_left_in_slots_is_killed(self, home: Home, name: str) -> None:
        def stubborn() -> None:
            os.setsid()
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            os.kill(os.getpid(), signal.SIGSTOP)

        slots = home.make(name, 2, memory_bytes=MEMORY, processes=8)
        pids = [fork(stubborn, slot) for slot in slots for _ in range(3)]
        for pid in pids:
            os.waitpid(pid, os.WUNTRACED)
            os.kill(pid, signal.SIGTERM)  # the control: it ignores what can be ignored
        assert [os.waitpid(pid, os.WNOHANG) for pid in pids] == [(0, 0)] * 6
        for slot in slots:
            slot.close()

        home.remove(name)

        assert [os.waitpid(pid, 0)[1] for pid in pids] == [signal.SIGKILL] * 6
        assert not any(path.name == name for path in folders(home))
        home.remove(name)

    def test_processes_that_keep_forking_are_ended(self, home: Home, name: str) -> None:
        def hop() -> None:
            while True:
                try:
                    if os.fork():
                        os._exit(0)
                except BlockingIOError:
                    continue

        def multiply() -> None:
            while True:
                try:
                    os.fork()
                except BlockingIOError:
                    continue

        def remove_while_they_fork() -> None:
            libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
            (slot,) = home.make(name, 1, memory_bytes=MEMORY, processes=32)
            for run in (hop, hop, multiply):
                fork(run, slot)
            wait_until(lambda: slot.read()[2] > 0)
            started = time.monotonic()
            home.remove(name)
            assert time.monotonic() - started < cgroups.REMOVE_S
            assert not any(path.name == name for path in folders(home))
            with pytest.raises(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)

        assert exit_of(remove_while_they_fork) == 0

    def test_a_sweep_removes_what_dead_owners_left_and_nothing_else(self, home: Home, name: str) -> None:
        code = f"""
import sys, time
from sandbox.linux import cgroups
home = cgroups.find()
names = [cgroups.owner_name(prefix) for prefix in ({PREFIX!r}, {PREFIX!r}, "other-" + {PREFIX!r})]
for name in names:
    home.make(name, 1, memory_bytes={MEMORY}, processes=8)
print(*names, flush=True)
time.sleep(60)
"""
        (mine,) = home.make(name, 1, memory_bytes=MEMORY, processes=8)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            first, second, other = owner.stdout.readline().split()
            pid = fork(lambda: time.sleep(60))
            for base in home._bases:
                (Path(base) / first / "0" / "cgroup.procs").write_text(str(pid))
            home.sweep(prefix=PREFIX)
            assert {first, second, other, name} <= {path.name for path in folders(home)}  # it lives

            owner.kill()
            os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # a zombie is dead too
            home.sweep(prefix=PREFIX)

            left = {path.name for path in folders(home)}
            assert {other, name} <= left
            assert not {first, second} & left
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL
            home.remove(other)
        mine.close()

    def test_a_name_with_the_pid_of_a_later_process_is_dead(self, home: Home) -> None:
        pid, started, random = cgroups.owner_name(PREFIX).removeprefix(PREFIX).split("-")
        reused = f"{PREFIX}{pid}-{int(started) - 1}-{random}"
        foreign = f"{PREFIX}{pid}-{int(started) - 1}-1{random}"  # another pid namespace
        for each in (reused, foreign):
            home.make(each, 0, memory_bytes=MEMORY, processes=8)

        home.sweep(prefix=PREFIX)

        left = {path.name for path in folders(home)}
        assert reused not in left
        assert foreign in left
        home.remove(foreign)

    def test_a_refused_limit_leaves_nothing(self, home: Home, name: str) -> None:
        before = open_descriptors()
        with pytest.raises(NoCgroup, match=r"pids\.max"):
            home.make(name, 1, memory_bytes=MEMORY, processes=-1)
        assert not any(path.name == name for path in folders(home))
        assert open_descriptors() == before


class TestFinding:
    def test_without_the_right_it_names_the_folder_the_user_and_a_remedy(self, home: Home) -> None:
        needs_root()

        def ask() -> str:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            return refusal()

        said = answer_of(ask)
        assert "/sys/fs/cgroup/" in said
        assert f"cannot be written by uid {NOBODY}: Permission denied; start the server " in said

    def test_where_cgroups_are_mounted_read_only_it_names_the_option_of_containers(self, home: Home) -> None:
        needs_mounts()

        def ask() -> str:
            own_mounts()
            for point in mount_points():
                remount, read_only = 32, 1
                read_only |= libc.MS_BIND | remount
                libc.mount(None, point, None, read_only)
            return refusal()

        assert "Read-only file system; start the container with --security-opt" in answer_of(ask)

    def test_where_cgroups_are_not_mounted_it_says_so(self, home: Home) -> None:
        needs_mounts()

        def ask() -> str:
            own_mounts()
            for point in mount_points():
                libc.umount(point, libc.MNT_DETACH)
            return refusal()

        assert "not mounted" in answer_of(ask)

    def test_a_part_of_the_hierarchy_mounted_elsewhere_is_found(self, home: Home, tmp_path: Path) -> None:
        needs_mounts()

        def ask() -> str:
            own_mounts()
            points = mount_points()
            for number, base in enumerate(home._bases):
                point = tmp_path / f"{number} ü\t\\"
                point.mkdir()
                libc.mount(base, str(point), None, libc.MS_BIND)
            for point in points:
                libc.umount(point, libc.MNT_DETACH)
            found = cgroups.find()
            assert found.version == home.version
            return "\n".join(found._bases)

        assert answer_of(ask) == "\n".join(f"{tmp_path}/{n} ü\t\\" for n in range(len(home._bases)))

    def test_it_leaves_nothing(self, home: Home) -> None:
        before = open_descriptors()
        cgroups.find()
        assert open_descriptors() == before
        assert left_by_us(home) == []


class TestMounts:
    LINES = (
        "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "31 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct\n"
        "32 25 0:29 /docker/ab\\040c /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        "33 25 0:30 /../.. /mnt/a\\134b rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    )

    def test_lines_with_optional_fields_and_escapes(self) -> None:
        assert cgroup_find.cgroup_mounts(self.LINES) == [
            ("cgroup", "/", "/sys/fs/cgroup/cpu,cpuacct", ["rw", "cpu", "cpuacct"]),
            ("cgroup", "/docker/ab c", "/sys/fs/cgroup/memory", ["rw", "memory"]),
            ("cgroup2", "/../..", "/mnt/a\\b", ["rw", "nsdelegate"]),
        ]

    @pytest.mark.parametrize(
        ("root", "path", "inside"),
        [
            ("/", "/", ""),
            ("/", "/a/b", "a/b"),
            ("/a", "/a", ""),
            ("/a", "/a/b", "b"),
            ("/a", "/ab", None),
            ("/a/b", "/a", None),
            ("/", "/../a", None),
            ("/", "/gone", None),
        ],
    )
    def test_the_folder_of_a_cgroup(self, tmp_path: Path, root: str, path: str, inside: str | None) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "b").mkdir()
        mounts = [("cgroup", root, str(tmp_path), ["rw", "memory"])]
        expected = None if inside is None else str(tmp_path / inside)
        assert cgroup_find.folder_of(mounts, "cgroup", "memory", path) == expected
        assert cgroup_find.folder_of(mounts, "cgroup", "pids", path) is None
        assert cgroup_find.folder_of(mounts, "cgroup2", "", path) is None


class TestVersion2:
    """Processes beside divided cgroups, which only version 2 forbids."""

    def test_our_own_processes_are_moved_aside_once(self, home: Home, inhabited: Path) -> None:
        code = "print(cgroups.find()._folders['memory'], own())"
        found = run_inside(inhabited, code)
        again = run_inside(inhabited / "sandbox-server", code)
        assert found == again == f"{inhabited} sandbox-server\n"

    def test_all_processes_of_a_container_are(
        self, home: Home, inhabited: Path, tmp_path: Path, foreign: int
    ) -> None:
        needs_mounts()
        (inhabited / "cgroup.procs").write_text(str(foreign))

        def ask() -> str:
            (inhabited / "cgroup.procs").write_text("0")
            libc.unshare(libc.CLONE_NEWCGROUP, "CLONE_NEWCGROUP")
            own_mounts()
            libc.mount("cgroup2", str(tmp_path), "cgroup2", 0)
            assert cgroups.find()._folders["memory"] == str(tmp_path)
            return cgroup_find.own_cgroups()[""]

        assert answer_of(ask) == "/sandbox-server"

    def test_foreign_processes_are_not(self, home: Home, inhabited: Path, foreign: int) -> None:
        (inhabited / "cgroup.procs").write_text(str(foreign))
        code = "try: cgroups.find()\nexcept cgroups.NoCgroup as failure: print(failure, own())"
        said = run_inside(inhabited, code)
        assert f"the cgroup {inhabited} holds processes that are not the server's, such as {foreign};" in said
        assert "-p Delegate=yes" in said
        assert said.endswith(f" {inhabited.name}\n")

        os.setxattr(inhabited, "user.delegate", b"1")
        assert run_inside(inhabited, code + "\nelse: print(own())") == "sandbox-server\n"

    def test_a_missing_controller_is_named(self, home: Home, inhabited: Path) -> None:
        inner = inhabited / "inner"
        inner.mkdir()
        code = "try: cgroups.find()\nexcept cgroups.NoCgroup as failure: print(failure)"
        said = run_inside(inner, code)
        assert f"controller memory and pids is not enabled in {inner}" in said

    @pytest.fixture
    def inhabited(self, home: Home) -> Iterator[Path]:
        if home.version != 2:
            pytest.skip("needs the memory and pids controllers in cgroup version 2")
        folder = Path(home._folders["memory"]) / cgroups.owner_name(PREFIX)
        folder.mkdir()
        yield folder
        home.remove(folder.name)

    @pytest.fixture
    def foreign(self) -> Iterator[int]:
        pid = fork(lambda: time.sleep(60))
        yield pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


STARTER = """
import subprocess, sys
sys.stdin.read(1)
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""
OWN = """
import os
from sandbox.linux import cgroups
def own(): return os.path.basename(open("/proc/self/cgroup").read().rpartition("::")[2].strip())
"""


def run_inside(folder: Path, code: str) -> str:
    """What `code` prints in a process of its own in the cgroup `folder`, started by another one in it."""
    arguments = [sys.executable, "-c", STARTER, OWN + code]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) as process:
        (folder / "cgroup.procs").write_text(str(process.pid))
        return process.communicate("x", timeout=20)[0]


def can_divide_by_hand() -> bool:
    """Whether a folder can be made where the cgroups of this process usually are, to not skip by mistake."""
    own = cgroup_find.own_cgroups()
    for controller in ("memory", "pids"):
        trial = Path(f"/sys/fs/cgroup/{controller}{own.get(controller, '/none')}/{PREFIX}by-hand")
        try:
            trial.mkdir()
        except OSError:
            return False
        trial.rmdir()
    return True


def folders(home: Home) -> list[Path]:
    return [path for base in home._bases for path in Path(base).iterdir() if path.is_dir()]


def left_by_us(home: Home) -> list[Path]:
    ours = (PREFIX, f"{cgroups.TRIAL}{os.getpid()}-")
    return [path for path in folders(home) if path.name.startswith(ours)]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def fork(run: Callable[[], object], slot: Slot | None = None) -> int:
    """A process, in `slot`, that runs `run` and exits with 0, or with 1 where that raises."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if slot is not None:
            slot.enter()
        run()
        status = 0
    finally:
        os._exit(status)


def exit_of(run: Callable[[], object], slot: Slot | None = None) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(fork(run, slot), 0)[1])


def answer_of(ask: Callable[[], str]) -> str:
    """What `ask` says in a process of its own."""
    ours, theirs = os.pipe()
    pid = fork(lambda: os.write(theirs, ask().encode()))
    os.close(theirs)
    with open(ours, encoding="utf-8") as answer:
        text = answer.read()
    assert os.waitpid(pid, 0)[1] == 0
    return text


def refusal() -> str:
    try:
        cgroups.find()
    except NoCgroup as failure:
        assert str(failure) == f"{failure.reason}; {failure.remedy}"
        return str(failure)
    return "no refusal"


def touch(size: int) -> None:
    bytearray(b"x" * MIB) * (size // MIB)


def hold(size: int, until_closed: int, other_end: int) -> None:
    os.close(other_end)
    kept = bytearray(b"x" * MIB) * (size // MIB)
    select.select([until_closed], [], [], 10)
    del kept


def spin(*, cpu_s: float, memory: int) -> None:
    touch(memory)
    while time.process_time() < cpu_s:
        pass


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def own_mounts() -> None:
    libc.unshare(libc.CLONE_NEWNS, "CLONE_NEWNS")
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)


def mount_points() -> list[str]:
    mounts = cgroup_find.cgroup_mounts(Path("/proc/self/mountinfo").read_text())
    return [point for _, _, point, _ in mounts]


def on_memory(path: Path) -> bool:
    own = os.stat(path).st_dev
    lines = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = {fields[2]: fields[fields.index("-") + 1] for fields in lines}
    return kinds.get(f"{os.major(own)}:{os.minor(own)}") in ("tmpfs", "ramfs")


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: another user is tried")


def needs_mounts() -> None:
    if exit_of(own_mounts) != 0:
        pytest.skip("needs the right to mount")
