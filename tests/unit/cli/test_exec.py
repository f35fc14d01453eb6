"""`vac exec`: how each machine model is entered, and what is logged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.state_dirs import NAME, UUID, machinetype_of, new_state, running_machine, settings_of
from vac.cli import machine_commands
from vac.cli.main import main
from vac.drivers.base import EngineUnavailable
from vac.drivers.processes import launch
from vac.machines.layout import StateDir
from vac.machines.outputs import note_details


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return new_state(tmp_path)


@pytest.mark.parametrize(
    ("host", "installed", "words"),
    [
        ("unix:///var/run/docker.sock", "docker podman", ["docker", "--host", "unix:///var/run/docker.sock"]),
        (
            "unix:///run/podman/podman.sock",
            "docker podman",
            ["podman", "--url", "unix:///run/podman/podman.sock"],
        ),
        ("unix:///run/podman/podman.sock", "docker", ["docker", "--host", "unix:///run/podman/podman.sock"]),
    ],
)
def test_containers_of_engines_are_entered_by_their_own_exec(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, host: str, installed: str, words: list[str]
) -> None:
    machine = running_machine(state, machinetype=machinetype_of(machine_model="docker"))
    note_details(state, machine, {"container": "abc123"})
    settings = settings_of(state, docker_host=host)
    monkeypatch.setattr("shutil.which", lambda name: name if name in installed.split() else None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    found = machine_commands._entering(machine, settings, ["ls", "-l"])
    assert found == [*words, "exec", "-it", "abc123", "ls", "-l"]
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(EngineUnavailable, match="isn't installed"):
        machine_commands._entering(machine, settings, ["ls"])


def test_of_a_vm_it_is_said_how(state: StateDir) -> None:
    machine = running_machine(state, machinetype=machinetype_of(machine_model="vm-raw"))
    with pytest.raises(
        EngineUnavailable, match=rf"virsh -c \S+ console {NAME}.*169\.254\.169\.0 with the key"
    ):
        machine_commands._entering(machine, settings_of(state), ["ls"])


def test_who_ran_what_is_kept_with_the_machine(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = running_machine(state)
    said: list[str] = []
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setattr("syslog.syslog", lambda level, text: said.append(text))
    machine_commands._note_command(machine, ["sh", "-c", "ls; \x1b[2J\n"])
    log = (machine.directory / "exec.log").read_text()
    assert "alice: sh -c 'ls; \\x1b[2J\\n'" in log and "\x1b" not in log
    assert said == [f"alice runs in {NAME} ({UUID}): sh -c 'ls; \\x1b[2J\\n'"]


def test_what_does_not_run_cannot_be_entered(
    state: StateDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = running_machine(state)
    (machine.directory / "finished").touch()
    (tmp_path / "vac.conf").write_text(
        f"[settings]\nvac_space = a.example.org\nfactory_name = node1.example.org\nstate_dir = {state.root}\n"
    )
    assert main(["--config", str(tmp_path / "vac.conf"), "exec", NAME, "ls", "-l"]) == 1
    assert capsys.readouterr().err == f"vac exec: {NAME}: it doesn't run\n"
    assert not (machine.directory / "exec.log").exists()


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.integers(1, 2**16), st.integers(0, 2**16))
def test_users_are_named_as_their_namespace_names_them(
    inside: int, outside: int, length: int, beyond: int
) -> None:
    mapping = f"{inside:>10} {outside:>10} {length:>10}\n"
    if beyond < length:
        assert launch.inner(mapping, outside + beyond) == inside + beyond
    else:
        with pytest.raises(OSError, match="not mapped"):
            launch.inner(mapping, outside + beyond)


def test_the_first_process_is_that_of_the_machines_own_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {
        "self": ["5"],
        "10": ["10"],
        "11": ["11", "1"],
        "12": ["12", "2"],
        "13": ["13", "3", "1"],
        "14": [],
    }
    monkeypatch.setattr(launch, "_numbers", numbers.__getitem__)
    assert launch.first_process([10, 14, 13, 12, 11]) == 11
    assert launch.first_process([10, 12, 13]) is None
