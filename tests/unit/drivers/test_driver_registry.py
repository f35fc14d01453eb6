"""Drivers are loaded when needed; what isn't there is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vac.config.machinetype import MODELS
from vac.config.settings import Settings
from vac.drivers import registry
from vac.drivers.base import EngineUnavailable


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_an_engine(model: str) -> None:
    assert registry.engine_name(model) in registry.MODULES


def test_singularity_and_bubblewrap_share_an_engine() -> None:
    assert registry.engine_name("singularity") == registry.engine_name("bubblewrap") == "processes"


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("vac.drivers.docker.docker_driver", "machine_model docker is not available in this version"),
        ("docker", "install python3-docker"),
    ],
)
def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, missing: str, reason: str) -> None:
    def import_module(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("importlib.import_module", import_module)
    with pytest.raises(EngineUnavailable, match=reason):
        registry.driver_for("docker", Settings())


def test_a_model_that_is_not_known_has_an_engine_that_cannot_be_reached() -> None:
    assert registry.engine_name("lxc") == "lxc"
    with pytest.raises(EngineUnavailable, match="machine_model lxc is not known to this version"):
        registry.driver_for("lxc", Settings())


@pytest.mark.allow_subprocess
def test_nothing_is_loaded_before_it_is_needed() -> None:
    """In a Python of its own, for other tests here may have loaded any of them."""
    loaded = "import sys, vac.factory.process, vac.drivers.registry; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", loaded], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "vac.drivers.registry" in modules
    assert not {"libvirt", "docker", "waitress"}.intersection(modules)
