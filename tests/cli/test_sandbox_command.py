"""`mcp-tools sandbox`: images made on the command line, and what it says when they cannot be."""

from __future__ import annotations

import gc
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_tools.cli.sandbox import DEFAULT_TAG, settings_for
from mcp_tools.config import load_settings
from sandbox.docker import image
from tests.cli.conftest import Run
from tests.docker_engine import Engine, connect


@pytest.fixture
def tag(docker_engine: Engine) -> Iterator[str]:
    """A name for an image, which is removed after the test."""
    name = f"mcp-tools-test-{uuid.uuid4().hex[:12]}:1"
    yield name
    connection = connect(docker_engine.address)
    if any(name in (each["RepoTags"] or ()) for each in connection.ask("images")):
        connection.ask("remove_image", name, force=True)
    connection.close()


def test_without_a_command_it_shows_which_there_are(run: Run) -> None:
    done = run("sandbox")
    assert (done.code, done.out) == (2, "")
    assert "build-image" in done.err


def test_an_image_from_this_host_runs_and_its_settings_are_printed(
    run: Run, docker_engine: Engine, tag: str, tmp_path: Path
) -> None:
    done = run(
        "sandbox", "build-image", "--from-host", "--tag", tag, "--python-engine", docker_engine.address
    )
    assert done.code == 0, done.err
    assert f"{tag} runs: Python 3." in done.err
    (tmp_path / "settings.toml").write_text(done.out)
    settings = load_settings(config_file=str(tmp_path / "settings.toml"), environ={"HOME": str(tmp_path)})
    assert (settings.python_backend, settings.python_image, settings.python_engine) == (
        "docker",
        tag,
        docker_engine.address,
    )


def test_an_image_on_a_base_is_built_by_the_engine_of_the_settings(
    run: Run, docker_engine: Engine, docker_image: str, tag: str, tmp_path: Path
) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(f"python_engine = {json.dumps(docker_engine.address)}\n")
    done = run("sandbox", "build-image", "--base", docker_image, "--tag", tag, "--config", str(config))
    assert done.code == 0, done.err
    assert f"FROM {docker_image}" in done.err
    assert f'python_image = "{tag}"' in done.out
    connection = connect(docker_engine.address)
    assert image.check(connection, tag).packages == {}
    connection.close()


def test_a_build_that_fails_says_where_and_prints_no_settings(
    run: Run, docker_engine: Engine, docker_image: str, tag: str
) -> None:
    engine = ("--python-engine", docker_engine.address)
    done = run("sandbox", "build-image", "numpy", "--base", docker_image, "--tag", tag, *engine)
    assert (done.code, done.out) == (1, "")
    assert "No module named pip" in done.err
    assert "with pip" in done.err


# The SDK drops a socket that could not connect without closing it.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_is_not_there_is_named_with_what_to_do(run: Run, tmp_path: Path) -> None:
    done = run("sandbox", "build-image", "--from-host", "--python-engine", f"unix://{tmp_path}/sock")
    assert (done.code, done.out) == (1, "")
    assert f"unix://{tmp_path}/sock" in done.err
    assert "DOCKER_HOST" in done.err
    gc.collect()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--tag", "UPPER"), "is no name for an image"),
        (("--base", "a b"), "is no name of an image"),
        (("--requirement", "/no/such.txt"), "is no file"),
        (("no/such.whl",), "is no requirement"),
        (("--from-host", "--base", "x"), "not allowed with"),
        (("--from-host", "--pull"), "give one of them"),
        (("--bse", "x"), "did you mean --base?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_makes_no_sense_is_refused(
    run: Run, docker_engine: Engine, arguments: tuple[str, ...], problem: str
) -> None:
    done = run("sandbox", "build-image", *arguments, "--python-engine", docker_engine.address)
    assert (done.code, done.out) == (2, ""), done.err
    assert problem in done.err


def test_the_settings_name_an_engine_only_if_one_was_named() -> None:
    assert settings_for(DEFAULT_TAG, None).splitlines() == [
        'python_backend = "docker"',
        f'python_image = "{DEFAULT_TAG}"',
    ]
