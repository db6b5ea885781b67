"""Which backend `choose` takes: the one that was named, or the strongest; never one below the minimum."""

from __future__ import annotations

from typing import NoReturn

import pytest

from sandbox import IsolationLevel, SandboxConfig, SandboxConfigError, SandboxUnavailable, choose
from sandbox.errors import Missing
from tests.docker_engine import Engine

CONFIG = SandboxConfig(pool_size=1)
NO_EMBEDDED = Missing(level="L2", step="embedded", reason="is not to be had", remedy="Ask for it.")


@pytest.fixture
def without_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host that is no Linux, or where the kernel gives nothing."""

    def refuse(config: SandboxConfig) -> NoReturn:
        raise SandboxUnavailable("the embedded sandbox cannot run here", (NO_EMBEDDED,))

    monkeypatch.setattr("sandbox.select._embedded", refuse)


def test_a_backend_that_is_named_is_taken(docker_engine: Engine, docker_image: str) -> None:
    choice = choose(CONFIG, backend="docker", image=docker_image, engine=docker_engine.address)
    with choice.sandbox:
        assert (choice.backend, choice.level) == ("docker", IsolationLevel.L3)
        result = choice.sandbox.execute_sync("6 * 7")
        assert (result.value, result.backend, result.isolation) == ("42", "docker", choice.level)
    assert [each.level for each in choice.missing] == ["L4"]


def test_the_first_container_may_take_longer_than_a_call_would_wait(
    docker_engine: Engine, docker_image: str
) -> None:
    config = SandboxConfig(pool_size=1, queue_seconds=0.02)
    choice = choose(config, backend="docker", image=docker_image, engine=docker_engine.address)
    with choice.sandbox:
        assert choice.level is IsolationLevel.L3


@pytest.mark.usefixtures("without_embedded")
def test_without_the_embedded_one_containers_are_taken_and_it_is_said_why(
    docker_engine: Engine, docker_image: str
) -> None:
    choice = choose(CONFIG, image=docker_image, engine=docker_engine.address)
    with choice.sandbox:
        assert choice.backend == "docker"
        assert NO_EMBEDDED in choice.missing


@pytest.mark.usefixtures("without_embedded")
def test_a_backend_that_is_named_is_not_replaced_by_another(docker_engine: Engine, docker_image: str) -> None:
    with pytest.raises(SandboxUnavailable) as refused:
        choose(CONFIG, backend="linux", image=docker_image, engine=docker_engine.address)
    assert refused.value.missing == (NO_EMBEDDED,)


@pytest.mark.usefixtures("without_embedded")
@pytest.mark.parametrize("backend", ["auto", "docker"])
def test_what_is_below_the_minimum_is_refused(backend: str, docker_engine: Engine, docker_image: str) -> None:
    config = SandboxConfig(pool_size=1, minimum_level=IsolationLevel.L4_PLUS)
    with pytest.raises(SandboxUnavailable) as refused:
        choose(config, backend=backend, image=docker_image, engine=docker_engine.address)  # type: ignore[arg-type]
    assert any("runsc" in each.remedy for each in refused.value.missing)


@pytest.mark.usefixtures("without_embedded")
def test_an_engine_that_is_not_there_leaves_nothing_to_choose() -> None:
    with pytest.raises(SandboxUnavailable) as refused:
        choose(CONFIG, engine="unix:///nowhere/docker.sock")
    assert NO_EMBEDDED in refused.value.missing
    assert len(refused.value.missing) > 1


def test_a_backend_that_there_is_not_is_refused() -> None:
    with pytest.raises(SandboxConfigError) as refused:
        choose(CONFIG, backend="podman")  # type: ignore[arg-type]
    assert refused.value.field == "backend"
