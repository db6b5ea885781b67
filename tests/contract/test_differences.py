"""What is not the same in the backends: each row of the table in docs/backends.md, shown on both sides."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sandbox import EndedBy, IsolationLevel, Mount, SandboxConfigError, SandboxError, SandboxUnavailable
from tests.contract.backends import SMALL, AnySandbox, Backend, Boxes
from tests.docker_engine import Engine

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs/backends.md"
ROWS: set[str] = set()
AGENT_BYTES = 24 << 20
_Test = TypeVar("_Test", bound=Callable[..., Any])


def row(name: str) -> Callable[[_Test], _Test]:
    """The test shows the row of the table that begins with `name`."""
    ROWS.add(name)
    return lambda test: test


@pytest.fixture(scope="module")
def process(embedded: Backend) -> Iterator[AnySandbox]:
    with Boxes(embedded) as boxes:
        yield boxes()


@pytest.fixture(scope="module")
def container(docker: Backend) -> Iterator[AnySandbox]:
    with Boxes(docker) as boxes:
        yield boxes()


def values(code: str, *boxes: AnySandbox) -> list[Any]:
    """The value of the same code in each."""
    found = []
    for box in boxes:
        result = box.execute_sync(code)
        assert result.success, result.stderr
        found.append(eval(result.value or "None"))
    return found


def own_containers(engine: Engine) -> list[dict[str, Any]]:
    """What the engine says of the containers that sandboxes of this process have now."""
    client = engine.client()
    try:
        labels = {"label": ["mcp-tools.sandbox=1", f"mcp-tools.sandbox.owner={os.getpid()}"]}
        return [each.attrs for each in client.containers.list(filters=labels, ignore_removed=True)]
    finally:
        client.close()


def test_the_document_has_these_rows_and_no_others() -> None:
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| **")]
    assert {line.split("**")[1] for line in lines} == ROWS


@row("Level")
def test_a_container_is_one_wall_and_the_runtime_says_how_thick(
    process: AnySandbox, container: AnySandbox, docker: Backend
) -> None:
    inside = container.execute_sync("1")
    assert (inside.isolation, inside.backend, inside.runtime) == (IsolationLevel.L3, "docker", "runc")
    assert any("runsc" in each.remedy for each in container.missing)
    outside = process.execute_sync("1")
    assert (outside.backend, outside.runtime) == ("linux", None)
    with docker.make(minimum_level=IsolationLevel.L4_PLUS) as box:
        with pytest.raises(SandboxUnavailable) as refused:
            box.execute_sync("print('ran')")
        assert all(each.remedy for each in refused.value.missing)


@row("Level")
def test_under_a_kernel_of_its_own_it_is_level_4(gvisor: Backend) -> None:
    with gvisor.make() as box:
        assert box.execute_sync("1").isolation is IsolationLevel.L4


@row("Interpreter")
def test_the_interpreter_is_the_server_s_or_the_image_s(process: AnySandbox, container: AnySandbox) -> None:
    outside, inside = values("import sys\nsys.executable", process, container)
    assert os.path.realpath(outside) == os.path.realpath(sys.executable)
    assert inside != outside


@row("Packages")
def test_packages_come_from_the_host_or_with_the_image(embedded: Backend, docker: Backend) -> None:
    site = str(Path(pytest.__file__).parents[1])
    with embedded.make(packages=site) as box:
        assert box.execute_sync("import pytest").success
    with pytest.raises(SandboxConfigError, match="mcp-tools sandbox build-image") as refused:
        docker.make(packages=site)
    assert refused.value.field == "packages"


@row("Process number")
def test_the_code_is_the_first_process_or_one_beside_the_agent(
    process: AnySandbox, container: AnySandbox
) -> None:
    first, later = values("import os\nos.getpid()", process, container)
    assert (first, later > 1) == (1, True)
    # The kernel keeps a signal of the code's own from the first process of a namespace.
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n'went on'"
    assert process.execute_sync(code).value == "'went on'"
    killed = container.execute_sync(code)
    assert (killed.ended_by, killed.return_code) == (EndedBy.CRASH, -9)


@row("User namespace")
def test_users_are_of_a_namespace_or_the_host_s(process: AnySandbox, container: AnySandbox) -> None:
    outside, inside = values("import os\nos.readlink('/proc/self/ns/user')", process, container)
    host = os.readlink("/proc/self/ns/user")
    assert outside != host
    assert inside == host


@row("Network namespace")
def test_calls_share_an_empty_network_or_have_one_each(process: AnySandbox, container: AnySandbox) -> None:
    code = "import os, time\ntime.sleep(0.3)\nos.readlink('/proc/self/ns/net')"
    with ThreadPoolExecutor(2) as pool:
        networks = [
            {each.value for each in pool.map(box.execute_sync, [code] * 2)} for box in (process, container)
        ]
    assert list(map(len, networks)) == [1, 2]
    assert repr(os.readlink("/proc/self/ns/net")) not in networks[0] | networks[1]


@row("Network allowed")
def test_the_network_is_the_host_s_or_the_engine_s(embedded: Backend, docker: Backend) -> None:
    host = os.readlink("/proc/self/ns/net")
    with embedded.make(allow_network=True) as outside, docker.make(allow_network=True) as inside:
        found = values("import os\nos.readlink('/proc/self/ns/net')", outside, inside)
    assert (found[0] == host, found[1] == host) == (True, False)


@row("`/proc` and `/sys`")
def test_proc_has_processes_only_or_all_but_what_is_masked(
    process: AnySandbox, container: AnySandbox
) -> None:
    code = "import os\n[os.path.exists(path) for path in ('/proc/meminfo', '/proc/net/dev', '/sys/kernel')]"
    assert values(code, process, container) == [[False] * 3, [True] * 3]
    # What would tell of the host's hardware or change it is hidden or read-only there too.
    masked = "import os\nos.access('/proc/sysrq-trigger', os.W_OK) or open('/proc/keys').read()"
    assert values(masked, container) == [""]


@row("`/dev/shm`")
def test_shared_memory_is_part_of_tmp_or_beside_it(process: AnySandbox, container: AnySandbox) -> None:
    code = "import os\nos.stat('/dev/shm').st_dev == os.stat('/tmp').st_dev"
    assert values(code, process, container) == [True, False]
    fill = "[open(f'{folder}/f', 'wb').write(bytes(6 << 20)) for folder in ('/tmp', '/dev/shm')]"
    assert process.execute_sync(fill).ended_by is EndedBy.DISK
    assert container.execute_sync(fill).success
    size = "import os\nfound = os.statvfs('/dev/shm')\nfound.f_blocks * found.f_frsize"
    assert values(size, container) == [SMALL["max_disk_mb"] << 20]


@row("Memory limit")
def test_the_limit_of_a_container_holds_its_agent_too(
    docker_engine: Engine, process: AnySandbox, container: AnySandbox
) -> None:
    container.execute_sync("1")
    limits = {
        (each["HostConfig"]["Memory"], each["HostConfig"]["MemorySwap"]) for each in _sized(docker_engine)
    }
    expected = (SMALL["max_memory_mb"] << 20) + AGENT_BYTES
    assert limits == {(expected, expected)}
    for box in (process, container):
        code = f"kept = b'x' * ({SMALL['max_memory_mb']} + 30 << 20)"
        assert box.execute_sync(code).ended_by is EndedBy.MEMORY


def _sized(engine: Engine) -> list[dict[str, Any]]:
    """Those of our containers that have the memory of `SMALL`; other tests have others."""
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s:
        size = f"size={SMALL['max_disk_mb']}m,"
        found = [
            each for each in own_containers(engine) if size in each["HostConfig"]["Tmpfs"].get("/tmp", "")
        ]
        if found:
            return found
        time.sleep(0.05)
    return []


@row("Processors")
def test_a_container_has_one_processor(docker_engine: Engine, container: AnySandbox) -> None:
    container.execute_sync("1")
    assert {each["HostConfig"]["NanoCpus"] for each in _sized(docker_engine)} == {10**9}


@row("Hash seed")
def test_calls_share_the_hash_seed_or_have_one_each(process: AnySandbox, container: AnySandbox) -> None:
    found = [{box.execute_sync("hash('text')").value for _ in range(3)} for box in (process, container)]
    assert list(map(len, found)) == [1, 3]


@row("Swapped folders")
def test_a_folder_that_was_swapped_is_the_one_it_was_or_refused(
    embedded: Backend, docker: Backend, shared: Path
) -> None:
    """E-11, and never what was put in its place."""
    for backend in (embedded, docker):
        folder, moved = shared / f"swap-{backend.name}", shared / f"moved-{backend.name}"
        folder.mkdir(mode=0o755)
        (folder / "which").write_text("the right one")
        with backend.make(mounts=(Mount(source=str(folder), target="/data"),), pool_size=1) as box:
            read = "open('/data/which').read()"
            assert values(read, box) == ["the right one"]
            folder.rename(moved)
            folder.mkdir(mode=0o755)
            (folder / "which").write_text("another one")
            if backend is embedded:
                assert values(read, box) == ["the right one"]
                continue
            with pytest.raises(SandboxError, match="is not the folder any more"):
                for _ in range(8):  # containers that wait already have the right one
                    assert values(read, box) == ["the right one"]


@row("Waiting for a new one")
def test_a_call_that_finds_nothing_warm_waits_for_a_process_or_a_container(
    embedded: Backend, docker: Backend
) -> None:
    medians = []
    for backend in (embedded, docker):
        with backend.make(pool_size=1) as box:
            box.execute_sync("1")
            took_s = []
            for _ in range(5):
                began_s = time.monotonic()
                box.execute_sync("1")
                took_s.append(time.monotonic() - began_s)
            medians.append(statistics.median(took_s))
    assert medians[1] > 2 * medians[0]
