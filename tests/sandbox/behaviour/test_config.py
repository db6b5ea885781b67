"""A configuration that makes no sense is refused before anything starts, and the field is named."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from sandbox import IsolationLevel, Mount, PythonSandbox, SandboxConfig, SandboxConfigError

NAN, INF = math.nan, math.inf
SECONDS = ("timeout_seconds", "queue_seconds", "session_idle_seconds", "recycle_seconds", "max_cpu_seconds")
LEAST = {
    "max_memory_mb": 16,
    "max_output_bytes": 0,
    "max_processes": 1,
    "max_open_files": 16,
    "max_disk_mb": 1,
    "max_files": 16,
    "pool_size": 1,
    "max_concurrent_calls": 1,
    "max_sessions": 0,
    "max_artifacts": 0,
    "max_artifact_bytes": 0,
    "max_tenants": 1,
    "recycle_calls": 1,
}
WRONG: list[tuple[str, Any]] = [
    *((name, wrong) for name in SECONDS for wrong in (0, -1, NAN, INF, "5", True, 7 * 24 * 3600 + 1)),
    *((name, least - 1) for name, least in LEAST.items()),
    *((name, wrong) for name in LEAST for wrong in (10**15, 1e3, "100", None, True)),
    *((name, None) for name in SECONDS if name != "max_cpu_seconds"),
    ("allow_network", "false"),
    ("allow_network", None),
    ("allow_network", 1),
    ("working_dir", ""),
    ("working_dir", "a\0b"),
    ("working_dir", 5),
    ("packages", ""),
    ("packages", True),
    ("environment", {"": "x"}),
    ("environment", {"A=B": "x"}),
    ("environment", {"A\0": "x"}),
    ("environment", {"A": "x\0"}),
    ("environment", {"A": 5}),
    ("environment", {5: "A"}),
    ("environment", {"A": "\ud800"}),
    ("preload", "numpy"),
    ("preload", ("os; print(1)",)),
    ("preload", ("",)),
    ("preload", (".relative",)),
    ("preload", ("a..b",)),
    ("preload", ("a.",)),
    ("preload", (5,)),
    ("minimum_level", "L4"),
    ("minimum_level", 4),
    ("maximum_level", "L2"),
    ("maximum_level", IsolationLevel.NONE),
    ("mounts", ("/data",)),
    ("mounts", (Mount(source="/srv", target="data"),)),
    ("mounts", (Mount(source="/srv", target="/data/../etc"),)),
    ("mounts", (Mount(source="/srv", target="/data/"),)),
    ("mounts", (Mount(source="/srv", target="/"),)),
    ("mounts", (Mount(source="", target="/data"),)),
    ("mounts", (Mount(source="/srv", target="/data", writable="no"),)),  # type: ignore[arg-type]
    ("mounts", (Mount(source="/srv", target="/data"), Mount(source="/opt", target="/data"))),
    ("mounts", (Mount(source="/srv", target="/data"), Mount(source="/opt", target="/data/inner"))),
    *(
        ("mounts", (Mount(source="/srv", target=target),))
        for target in ("/tmp", "/tmp/a", "/proc", "/dev/shm", "/work", "/work/a", "/usr/lib", "/etc", "/sys")
    ),
    ("mounts", (Mount(source="/"),)),
    ("mounts", (Mount(source="/etc"),)),
]


@pytest.mark.parametrize(("field", "wrong"), WRONG, ids=lambda each: repr(each)[:40])
def test_what_makes_no_sense_is_refused_by_name(field: str, wrong: object) -> None:
    with pytest.raises(SandboxConfigError) as caught:
        SandboxConfig(**{field: wrong})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert str(caught.value).startswith(field)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("field", "right"),
    [
        *((name, right) for name in SECONDS for right in (0.001, 5, 7 * 24 * 3600)),
        *LEAST.items(),
        ("max_cpu_seconds", None),
        ("environment", {"größe": "ß=\n"}),
        ("preload", ("a", "a.b_c", "_x.y1", "größe")),
        ("mounts", (Mount(source="/srv"),)),
        ("mounts", (Mount(source="/srv", target="/data"), Mount(source="/opt", target="/data2"))),
        ("minimum_level", IsolationLevel.L4_PLUS),
        ("minimum_level", IsolationLevel.NONE),
        ("maximum_level", IsolationLevel.L2),
    ],
    ids=lambda each: repr(each)[:40],
)
def test_what_makes_sense_is_kept(field: str, right: object) -> None:
    assert getattr(SandboxConfig(**{field: right}), field) == right  # type: ignore[arg-type]


def test_the_minimum_is_not_above_the_maximum() -> None:
    with pytest.raises(SandboxConfigError, match="is L4, above maximum_level L3"):
        SandboxConfig(minimum_level=IsolationLevel.L4, maximum_level=IsolationLevel.L3)


def test_every_field_is_checked() -> None:
    checked = {field for field, _ in WRONG}
    assert checked == {field.name for field in fields(SandboxConfig)}


def test_the_defaults_make_sense_and_cannot_be_changed() -> None:
    config = SandboxConfig()
    assert (config.allow_network, config.working_dir, dict(config.environment)) == (False, None, {})
    with pytest.raises(FrozenInstanceError):
        config.timeout_seconds = 5  # type: ignore[misc]
    with pytest.raises(SandboxConfigError):
        replace(config, timeout_seconds=0)


@pytest.mark.parametrize("wrong", [0, -1, NAN, INF, "1", True])
def test_the_time_limit_of_a_call_is_checked_too(wrong: Any) -> None:
    with PythonSandbox() as box, pytest.raises(SandboxConfigError) as caught:
        box.execute_sync("1", timeout_seconds=wrong)
    assert caught.value.field == "timeout_seconds"
    assert box.level is None


@pytest.mark.parametrize("code", [b"1", None, 5])
def test_code_is_text(code: Any) -> None:
    with PythonSandbox() as box, pytest.raises(SandboxConfigError) as caught:
        box.execute_sync(code)
    assert caught.value.field == "code"


def test_levels_are_read_and_ordered() -> None:
    levels = [IsolationLevel.parse(text) for text in ("L2", " l3", "L4 ", "L4+")]
    assert levels == sorted(levels)
    assert [str(level) for level in levels] == ["L2", "L3", "L4", "L4+"]
    for text in ("", "none", "L5", "4", "L1"):
        with pytest.raises(ValueError, match="no isolation level"):
            IsolationLevel.parse(text)
