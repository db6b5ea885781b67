"""What code finds around it: variables, folders, descriptors, and a standard library that works."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from sandbox.linux import spec
from tests.sandbox.behaviour.conftest import Run
from tests.sandbox.levels import (
    L4,
    L4_PLUS,
    PLACES,
    USERS,
    WITH_FORK,
    WITH_MOUNTS,
    Box,
    Boxes,
    Place,
    at,
)

SECRET = "BEHAVIOUR_SECRET"


def value(box: Box, code: str, **arguments: Any) -> Any:
    """What the last expression of `code` is, by way of JSON."""
    *lines, last = code.strip().splitlines()
    result = box.execute_sync("\n".join([*lines, f"import json\nprint(json.dumps({last}))"]), **arguments)
    assert (result.stderr, result.success) == ("", True), result
    return json.loads(result.stdout)


# --- Surroundings -----------------------------------------------------------------------------


@at(L4_PLUS, L4)
def test_variables_are_those_that_are_listed_and_no_other(
    place: Place, boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, "of the server")
    monkeypatch.setenv("PYTHONSTARTUP", "/tmp/of-the-server.py")
    environment = {"GREETING": "größe", "EMPTY": "", "PATH": "/nowhere"}
    box = boxes.at(place, environment=environment)
    found = value(box, "import os\ndict(os.environ)")
    assert SECRET not in found
    assert environment.items() <= found.items()
    own = {"SANDBOX_OUT", "PATH", *spec.environment(spec.SandboxConfig())}
    assert set(found) == own | set(environment)
    assert (found["HOME"], found["TMPDIR"], found["SANDBOX_OUT"]) == ("/tmp", "/tmp", "/tmp/out")
    raw = value(box, "open('/proc/self/environ').read().split('\\0')")
    assert not any(SECRET in each for each in raw)


def test_variables_that_code_sets_are_gone_with_it(boxes: Boxes) -> None:
    box = boxes.here()
    assert value(box, "import os\nos.environ.setdefault('MINE', '1')") == "1"
    assert value(box, "import os\nos.environ.get('MINE')") is None


@at(*PLACES, *USERS)
def test_where_code_is(place: Place, boxes: Boxes) -> None:
    code = """
import os, sys
base = os.environ["HOME"]
found = {
    "cwd": os.path.relpath(os.getcwd(), base), "in it": os.listdir("."),
    "out": os.listdir(os.environ["SANDBOX_OUT"]), "tmp": os.path.samefile(base, os.environ["TMPDIR"]),
    "stdin": sys.stdin.read(), "argv": sys.argv, "main": __name__, "site": "site" in sys.modules,
    "root": os.getuid() == 0, "umask": os.umask(0o22), "groups": os.getgroups(),
    "cwd in path": "" in sys.path or os.getcwd() in sys.path,
    "encodings": [sys.stdout.encoding, sys.getfilesystemencoding()],
}
found
"""
    found = value(boxes.at(place), code)
    groups = found.pop("groups")
    assert groups == [] or (place.user or os.geteuid() != 0)
    assert found == {
        "cwd": "work",
        "in it": [],
        "out": [],
        "tmp": True,
        "stdin": "",
        "argv": [""],
        "root": False,
        "umask": 0o22,
        "main": "__main__",
        "cwd in path": False,
        "site": False,
        "encodings": ["utf-8", "utf-8"],
    }


def test_a_module_of_the_working_folder_is_not_imported_unasked(run: Run) -> None:
    """D-05."""
    files = {"json.py": "raise RuntimeError('shadowed')", "mine.py": "x = 5", "sitecustomize.py": "1 / 0"}
    assert run("import json\njson.dumps(1)", files=files).value == "'1'"
    assert run("import mine", files=files).exception == "ModuleNotFoundError"
    assert run("import sys\nsys.path.append('.')\nimport mine\nmine.x", files=files).value == "5"


def test_input_is_at_its_end(run: Run) -> None:
    result = run("input()")
    assert (result.exception, result.stdout) == ("EOFError", "")


@at(*PLACES)
def test_descriptors_are_the_three_and_the_call_s_own(place: Place, boxes: Boxes) -> None:
    """D-03."""
    code = """
import os
found = []
for fd in range(256):
    try: found.append([fd, os.get_inheritable(fd)])
    except OSError: pass
found
"""
    found = value(boxes.at(place), code)
    assert found[:3] == [[0, True], [1, True], [2, True]]
    assert found[3:] == [[3, False]]


def test_a_call_finds_nothing_of_another(boxes: Boxes) -> None:
    box = boxes.here()
    code = "import os, sys\nopen('/tmp/work/a', 'w').close()\nopen('/dev/shm/b', 'w').close()\nsys.mine = 1"
    assert box.execute_sync(code).success
    assert value(box, "import os, sys\n[os.listdir('.'), os.listdir('/dev/shm'), hasattr(sys, 'mine')]") == [
        [],
        [],
        False,
    ]


def test_randomness_of_two_calls_differs(boxes: Boxes) -> None:
    code = """
import os, random, secrets, ssl, uuid
found = [random.random(), random.SystemRandom().random(), secrets.token_hex(), str(uuid.uuid4())]
[*found, ssl.RAND_bytes(8).hex(), os.urandom(8).hex()]
"""
    found = [value(boxes.here(), code) for _ in range(6)]
    for kind in zip(*found, strict=True):
        assert len(set(kind)) == len(found)


# --- The standard library ---------------------------------------------------------------------

EVERYWHERE = {
    "asyncio": (
        "import asyncio\nasync def f(n):\n    await asyncio.sleep(0.01)\n    return n\n"
        "async def main(): return await asyncio.gather(f(1), f(2), asyncio.to_thread(abs, -3))\n"
        "asyncio.run(main())",
        [1, 2, 3],
    ),
    "sqlite3": (
        "import sqlite3\nbase = sqlite3.connect('a.db')\nwith base: base.execute('create table t (x)')\n"
        "with base: base.execute('insert into t values (5)')\nbase.execute('select x from t').fetchall()",
        [[5]],
    ),
    "ssl": (
        "import hashlib, ssl\n"
        "[ssl.create_default_context().check_hostname, hashlib.sha256(b'').hexdigest()[:4]]",
        [True, "e3b0"],
    ),
    "zoneinfo": (
        "import datetime, zoneinfo\n"
        "datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')).isoformat()",
        "2024-07-01T00:00:00+02:00",
    ),
    "time": ("import time\n[time.strftime('%Z', time.localtime(0)), time.localtime(0).tm_hour]", ["UTC", 0]),
    "tempfile": (
        "import os, tempfile\n"
        "with tempfile.TemporaryDirectory() as d, tempfile.NamedTemporaryFile(dir=d) as f:\n"
        "    found = [os.path.dirname(d) == os.environ['TMPDIR'], os.path.exists(f.name)]\n"
        "found + [os.path.exists(d)]",
        [True, True, False],
    ),
    "threads": (
        "import queue, threading\nq = queue.Queue()\n"
        "threads = [threading.Thread(target=q.put, args=[n]) for n in range(3)]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]\nsorted(q.get() for _ in threads)",
        [0, 1, 2],
    ),
    "pickle": (
        "import dataclasses, pickle\n@dataclasses.dataclass\nclass P:\n    x: int\n"
        "pickle.loads(pickle.dumps(P(3))).x",
        3,
    ),
    "inspect": ("import inspect\ndef f():\n    return 1\ninspect.getsource(f)", "def f():\n    return 1\n"),
    "archives": (
        "import gzip, io, lzma, shutil, tarfile, zipfile, os\nos.mkdir('d')\nopen('d/f', 'w').write('x')\n"
        "names = [os.path.basename(shutil.make_archive('a', kind, 'd')) for kind in ('zip', 'gztar')]\n"
        "names + zipfile.ZipFile('a.zip').namelist()",
        ["a.zip", "a.tar.gz", "f"],
    ),
    "links and moves": (
        "import os, pathlib, shutil\n"
        "pathlib.Path('a').write_text('x')\nos.symlink('a', 'l')\nos.link('a', 'h')\n"
        "shutil.copyfile('a', 'c')\nos.replace('c', 'd')\nshutil.move('d', 'e')\nsorted(os.listdir())",
        ["a", "e", "h", "l"],
    ),
    "ctypes": ("import ctypes\nctypes.CDLL(None).abs(-4)", 4),
    "decimal, csv, re, xml": (
        "import csv, decimal, io, re, xml.etree.ElementTree as E\n"
        "[str(decimal.Decimal('0.1') * 3), next(csv.reader(io.StringIO('a,b'))), re.sub('a+', 'b', 'caat'), "
        "E.fromstring('<a>t</a>').text]",
        ["0.3", ["a", "b"], "cbt", "t"],
    ),
    "large numbers": ("str(2**4000)[:4]", "1318"),
    "logging": ("import io, logging\nlogging.getLogger().addHandler(logging.NullHandler())\n1", 1),
    "unittest": (
        "import io, unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(1, 1)\n"
        "suite = unittest.defaultTestLoader.loadTestsFromTestCase(T)\n"
        "unittest.TextTestRunner(stream=io.StringIO()).run(suite).wasSuccessful()",
        True,
    ),
    "argparse": (
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--n', default=5)\n"
        "parser.parse_args().n",
        5,
    ),
    "memory files": ("import mmap, os\nm = mmap.mmap(-1, 8192)\nm[:2] = b'ab'\nm[:2].decode()", "ab"),
    "signals": (
        "import signal\ngot = []\nsignal.signal(signal.SIGUSR1, lambda n, f: got.append(n))\n"
        "signal.raise_signal(signal.SIGUSR1)\ngot",
        [10],
    ),
}


@at(*PLACES)
@pytest.mark.parametrize(("code", "expected"), EVERYWHERE.values(), ids=EVERYWHERE)
def test_the_standard_library_works(code: str, expected: object, place: Place, boxes: Boxes) -> None:
    assert value(boxes.at(place), code) == expected


WITH_PROCESSES = {
    "another interpreter": (
        "import subprocess, sys\nscript = 'import sys; print(sys.stdin.read()); print(5, file=sys.stderr)'\n"
        "done = subprocess.run([sys.executable, '-c', script], input='in', capture_output=True, text=True)\n"
        "[done.stdout, done.stderr, done.returncode]",
        ["in\n", "5\n", 0],
    ),
    "its script": (
        "import subprocess, sys\n"
        "open('s.py', 'w').write('import os; print(os.getcwd().endswith(\"/work\"))')\n"
        "subprocess.check_output([sys.executable, 's.py'], text=True)",
        "True\n",
    ),
    "pipes between processes": (
        "import subprocess, sys\n"
        "first = subprocess.Popen([sys.executable, '-c', 'print(4)'], stdout=subprocess.PIPE)\n"
        "second = [sys.executable, '-c', 'print(int(input()) + 1)']\n"
        "subprocess.check_output(second, stdin=first.stdout, text=True)",
        "5\n",
    ),
    "asyncio": (
        "import asyncio, sys\nasync def main():\n"
        "    process = await asyncio.create_subprocess_exec(sys.executable, '-c', 'print(6)', stdout=-1)\n"
        "    return (await process.communicate())[0].decode()\nasyncio.run(main())",
        "6\n",
    ),
    "fork": ("import os\npid = os.fork()\nif pid == 0: os._exit(7)\nos.waitpid(pid, 0)[1] >> 8", 7),
}


@at(*WITH_FORK)
@pytest.mark.parametrize(("code", "expected"), WITH_PROCESSES.values(), ids=WITH_PROCESSES)
def test_other_processes_work(code: str, expected: object, place: Place, boxes: Boxes) -> None:
    assert value(boxes.at(place), code) == expected


def test_output_of_other_processes_comes_back(run: Run) -> None:
    result = run("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(5)']).returncode")
    assert (result.stdout, result.value) == ("5\n", "0")


WITH_SEMAPHORES = {
    "a pool": (
        "import multiprocessing\ndef f(x): return x * x\n"
        "with multiprocessing.Pool(2) as pool: found = pool.map(f, range(4))\nfound",
        [0, 1, 4, 9],
    ),
    "an executor": (
        "from concurrent.futures import ProcessPoolExecutor\ndef f(x): return x + 1\n"
        "with ProcessPoolExecutor(2) as pool: found = list(pool.map(f, range(3)))\nfound",
        [1, 2, 3],
    ),
    "a queue": (
        "import multiprocessing\nqueue = multiprocessing.Queue()\n"
        "process = multiprocessing.Process(target=queue.put, args=[5])\n"
        "process.start()\nfound = queue.get()\n"
        "process.join()\nfound",
        5,
    ),
    "shared memory": (
        "from multiprocessing import shared_memory\n"
        "block = shared_memory.SharedMemory(create=True, size=10)\n"
        "block.buf[0] = 7\nother = shared_memory.SharedMemory(block.name)\nfound = other.buf[0]\n"
        "other.close()\nblock.close()\nblock.unlink()\nfound",
        7,
    ),
}
WITH_METADATA = {
    "copy": (
        "import os, shutil\nopen('a', 'w').write('x')\nshutil.copy('a', 'b')\nshutil.copy2('a', 'c')\n"
        "os.chmod('a', 0o600)\n"
        "os.utime('a', (5, 5))\nos.mkfifo('p')\n[os.stat('a').st_mtime, sorted(os.listdir())]",
        [5.0, ["a", "b", "c", "p"]],
    ),
    "trees": (
        "import os, shutil\nos.makedirs('d/e')\nopen('d/e/f', 'w').close()\nshutil.copytree('d', 'g')\n"
        "shutil.rmtree('d')\n[os.path.exists('g/e/f'), os.path.exists('d')]",
        [True, False],
    ),
    "its user": (
        "import getpass, os, pwd\n[getpass.getuser(), pwd.getpwuid(os.getuid()).pw_dir]",
        ["sandbox", "/tmp"],
    ),
    "its host": ("import os, socket\n[socket.gethostname(), os.getpid()]", ["sandbox", 1]),
}


@at(*WITH_MOUNTS)
@pytest.mark.parametrize(
    ("code", "expected"),
    {**WITH_SEMAPHORES, **WITH_METADATA}.values(),
    ids={**WITH_SEMAPHORES, **WITH_METADATA},
)
def test_what_needs_folders_of_its_own_works_where_calls_have_them(
    code: str, expected: object, place: Place, boxes: Boxes
) -> None:
    assert value(boxes.at(place), code) == expected


def test_imports_use_compiled_files(run: Run) -> None:
    """Compiling what `asyncio` needs takes ten times as long as loading it."""
    result = run(IMPORTED)
    assert (result.value, result.stderr) == ("[]", "")


IMPORTED = """
import asyncio, os, sys
files = {name: getattr(module, "__cached__", None) for name, module in sys.modules.items()}
[name for name, file in files.items() if file and name[:7] != "sandbox" and not os.path.exists(file)]
"""
