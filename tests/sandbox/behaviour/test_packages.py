"""Packages of an environment, and modules that are imported before any call."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import PythonSandbox, SandboxConfig, SandboxConfigError, SandboxUnavailable
from tests.sandbox.levels import L2, L3, L4, L4_PLUS, L4_USER, Boxes, Place, at
from tests.sandbox.places import interpreter_for_all

MODULE = """
import os, random
print("imported")
value = "of the package"
pid = os.getpid()
number = random.random()
"""


def environment(folder: Path) -> Path:
    """A virtual environment with a package in it."""
    subprocess.run([interpreter_for_all(), "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    site = next(folder.glob("lib/python3.*/site-packages"))
    (site / "greeting").mkdir()
    (site / "greeting" / "__init__.py").write_text(MODULE)
    (site / "greeting" / "data.txt").write_text("data")
    (site / "broken.py").write_text("1 / 0")
    (site / "startup.pth").write_text("import os; os.environ['STARTED_BY_PTH'] = '1'")
    (site / "sitecustomize.py").write_text("import os; os.environ['CUSTOMIZED'] = '1'")
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o055 if path.is_dir() else path.stat().st_mode | 0o044)
    return site


@pytest.fixture(scope="module", params=["/tmp", "/var/tmp"])
def site(request: pytest.FixtureRequest) -> Iterator[Path]:
    """In the folder that the sandbox has its own of, and in another."""
    with tempfile.TemporaryDirectory(prefix="packages-", dir=request.param) as folder:
        Path(folder).chmod(0o755)
        yield environment(Path(folder) / "env")


@at(L4_PLUS, L4, L4_USER, L3, L2)
def test_packages_of_an_environment_can_be_imported(place: Place, site: Path, boxes: Boxes) -> None:
    box = boxes.at(place, packages=str(site.parents[2]))
    code = """
import greeting, os, sys
folder = os.path.dirname(greeting.__file__)
variables = [os.environ.get(name) for name in ("STARTED_BY_PTH", "CUSTOMIZED")]
[greeting.value, open(f"{folder}/data.txt").read(), *variables]
"""
    result = box.execute_sync(code)
    assert (result.stdout, result.value) == ("imported\n", "['of the package', 'data', None, None]"), result


@at(L4_PLUS, L4, L4_USER, L3, L2)
def test_packages_cannot_be_changed(place: Place, site: Path, boxes: Boxes) -> None:
    """D-04."""
    box = boxes.at(place, packages=str(site.parents[2]))
    code = """
import greeting, os
folder = os.path.dirname(greeting.__file__)
for attempt in (
    lambda: open(f"{folder}/__init__.py", "a"), lambda: open(f"{folder}/new.py", "w"),
    lambda: os.mkdir(f"{folder}/d"), lambda: os.unlink(f"{folder}/data.txt"),
    lambda: os.rename(folder, "moved"), lambda: os.chmod(folder, 0o777),
):
    try:
        attempt()
    except OSError as error:
        print(type(error).__name__, end=" ")
    else:
        print("changed it", end=" ")
"""
    box.execute_sync(code)
    result = box.execute_sync(code)
    assert "changed it" not in result.stdout
    assert len(result.stdout.split()) == 7
    assert not list(site.glob("**/new*"))


@at(L4_PLUS, L3)
def test_an_interpreter_that_code_starts_has_the_packages_too(place: Place, site: Path, boxes: Boxes) -> None:
    box = boxes.at(place, packages=str(site.parents[2]))
    code = """
import subprocess, sys
code = "import greeting; print(greeting.value)"
subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
"""
    assert "imported\\nof the package\\n" in (box.execute_sync(code).value or "")


def test_a_folder_of_packages_is_enough(site: Path) -> None:
    with PythonSandbox(SandboxConfig(packages=str(site), pool_size=1)) as box:
        result = box.execute_sync("import greeting, sys\ngreeting.value, sys.version_info[:2]")
    assert result.value == repr(("of the package", sys.version_info[:2]))


def test_without_packages_there_is_the_standard_library_only(boxes: Boxes) -> None:
    for module in ("pytest", "anyio", "pip", "setuptools", "mcp_tools"):
        assert boxes.here().execute_sync(f"import {module}").exception == "ModuleNotFoundError", module


def test_what_is_no_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxConfigError, match="is no folder") as caught:
        PythonSandbox(SandboxConfig(packages=str(tmp_path / "nowhere")))
    assert caught.value.field == "packages"
    (tmp_path / "pyvenv.cfg").touch()
    with pytest.raises(SandboxConfigError, match="without an interpreter"):
        PythonSandbox(SandboxConfig(packages=str(tmp_path)))


@pytest.mark.parametrize(
    ("version", "said"), [("python3.9", "needs 3.11"), ("python2.7", "python3"), (None, "python3")]
)
def test_an_environment_of_another_version_is_refused(version: str | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    if version:
        (tmp_path / "lib" / version / "site-packages").mkdir(parents=True)
    with pytest.raises(SandboxConfigError, match=said) as caught:
        PythonSandbox(SandboxConfig(packages=str(tmp_path)))
    assert caught.value.field == "packages"


# --- Preloaded modules ------------------------------------------------------------------------


@at(L4_PLUS, L4, L4_USER, L3, L2)
def test_a_preloaded_module_is_there_and_was_imported_once(place: Place, site: Path, boxes: Boxes) -> None:
    box = boxes.at(place, packages=str(site.parents[2]), preload=("greeting", "decimal"))
    code = "import sys\n'greeting' in sys.modules, 'decimal' in sys.modules, sys.modules['greeting'].number"
    first, second = (box.execute_sync(code) for _ in range(2))
    assert (first.stdout, first.value) == ("", second.value)
    assert (first.value or "").startswith("(True, True, 0.")
    assert box.execute_sync("import greeting, os\ngreeting.pid == os.getpid()").value == "False"


@at(L4_PLUS, L3, L2)
@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("broken", "the module broken cannot be imported: ZeroDivisionError: division by zero"),
        ("nowhere", "the module nowhere cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_what_cannot_be_preloaded_is_said(
    module: str, said: str, place: Place, site: Path, boxes: Boxes
) -> None:
    with pytest.raises((SandboxUnavailable, pytest.skip.Exception)) as caught:
        boxes.at(place, packages=str(site.parents[2]), preload=(module,)).execute_sync("1")
    assert said in str(caught.value)
    assert "leave it out of `preload`" in str(caught.value)


def test_a_preloaded_module_cannot_be_changed_for_the_next_call(site: Path, boxes: Boxes) -> None:
    box = boxes.here(packages=str(site.parents[2]), preload=("greeting",))
    assert (
        box.execute_sync("import greeting\ngreeting.value = 'changed'\ngreeting.value").value == "'changed'"
    )
    assert box.execute_sync("import greeting\ngreeting.value").value == "'of the package'"


def test_numpy_is_random_in_each_call(boxes: Boxes) -> None:
    """Its own state is not begun anew in a fork, as Python's is."""
    numpy = pytest.importorskip("numpy")
    packages = str(Path(numpy.__file__).parents[1])
    code = "import numpy\n[float(numpy.random.random()), float(numpy.random.default_rng().random())]"
    for preload in ((), ("numpy",)):
        box = boxes.here(packages=packages, preload=preload, max_memory_mb=512)
        found = [eval(box.execute_sync(code).value or "[]") for _ in range(4)]
        for kind in zip(*found, strict=True):
            assert len(set(kind)) == 4


def test_a_preloaded_library_is_fast(boxes: Boxes) -> None:
    packages = str(Path(pytest.importorskip("pandas").__file__).parents[1])
    cold = boxes.here(packages=packages, max_memory_mb=512)
    warm = boxes.here(packages=packages, preload=("pandas",), max_memory_mb=512)
    code = "import pandas\nint(pandas.DataFrame({'a': [1, 2]}).a.sum())"
    for box in (cold, warm):
        assert box.execute_sync(code).value == "3"
    assert warm.execute_sync(code).cpu_ms < cold.execute_sync(code).cpu_ms / 3
