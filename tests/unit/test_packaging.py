"""Installed files, launchers, systemd units, and limits that no linter keeps."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import vac
from vac.cli import doctor, main
from vac.config import reference
from vac.roles import ROLES

CHECKOUT = Path(__file__).resolve().parents[2]
COMMANDS = {"vac": "vac.cli.main", "vacd": "vac.daemon", "check-vacd": "vac.cli.check_vacd"}
UNITS = sorted((CHECKOUT / "systemd").glob("*.service"))


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return setup.py's arguments to setuptools, which need not be installed for this."""
    arguments: dict[str, Any] = {}
    monkeypatch.chdir(CHECKOUT)
    setuptools: Any = types.ModuleType("setuptools")
    setuptools.setup = arguments.update
    setuptools.find_packages = lambda include: include
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    runpy.run_path(str(CHECKOUT / "setup.py"))
    return arguments


def test_the_distribution_has_the_version_of_the_package(setup_arguments: dict[str, Any]) -> None:
    assert (setup_arguments["name"], setup_arguments["version"]) == ("vac-factory", vac.__version__)


def test_pip_brings_units_and_the_sample(setup_arguments: dict[str, Any]) -> None:
    brought = {Path(path).name for _, paths in setup_arguments["data_files"] for path in paths}
    assert brought == {*(path.name for path in (CHECKOUT / "systemd").iterdir()), reference.SAMPLE_NAME}


def test_the_version_is_written_in_one_place_and_has_a_change_note() -> None:
    sources = [CHECKOUT / "setup.py", CHECKOUT / "pyproject.toml", *CHECKOUT.glob("vac/**/*.py")]
    version = re.compile(rf"(?<![\d.]){re.escape(vac.__version__)}(?![\d.])")
    holders = [path for path in sources if version.search(path.read_text())]
    assert holders == [CHECKOUT / "vac" / "__init__.py"]
    assert re.search(rf"^## {re.escape(vac.__version__)} ", (CHECKOUT / "CHANGELOG.md").read_text(), re.M)


def test_packages_give_vac_numbers_for_machines_once() -> None:
    debian = (CHECKOUT / "packaging/debian/vac-factory.postinst").read_text()
    commands = [line for line in debian.splitlines() if "21000" in line]
    assert len(commands) == 2
    assert set(commands) <= set((CHECKOUT / "packaging/vac-factory.spec").read_text().splitlines())


def test_packages_rotate_the_logs_of_all_processes() -> None:
    text = (CHECKOUT / "packaging/debian/vac-factory.logrotate").read_text()
    names = {Path(word).name for word in text.split() if word.startswith("/var/log/vacd")}
    assert names == {"vacd", *(f"vacd-{role.name}" for role in ROLES)}


def test_doctor_proposes_the_numbers_that_packages_give(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = (CHECKOUT / "packaging/vac-factory.spec").read_text()
    user = types.SimpleNamespace(pw_name="vacmachine", pw_uid=1)
    monkeypatch.setattr(doctor, "account", lambda settings: user)
    monkeypatch.setattr(doctor, "subordinate_ids", lambda: range(0))
    settings: Any = types.SimpleNamespace(host_processors=64, slot_uids=None, factory_name="none")
    told = {what: problem for what, problem, _ in doctor._process_containers(settings)}
    assert re.findall("usermod .* vac", spec) == re.findall(
        "usermod .* vac", str(told["a uid for each slot"])
    )


def pinned(lock: str) -> dict[str, set[str]]:
    """Versions in a file of requirements/ for each distribution; some differ between Pythons."""
    versions: dict[str, set[str]] = {}
    for line in (CHECKOUT / "requirements" / lock).read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split(" ; ")[0].split("==")
            versions.setdefault(name, set()).add(version)
    return versions


@pytest.mark.parametrize(
    ("lock", "extras"), [("checkout", ["dev"]), ("newest", ["test"]), ("oldest", ["test"])]
)
def test_locks_have_what_setup_py_asks_for(
    lock: str, extras: list[str], setup_arguments: dict[str, Any]
) -> None:
    asked = [*setup_arguments["install_requires"]]
    for extra in extras:
        asked += setup_arguments["extras_require"][extra]
    names = {re.split("[<>=]", requirement)[0] for requirement in asked} | {"setuptools", "wheel"}
    assert names - set(pinned(f"{lock}.lock")) == set()


def test_oldest_lock_has_the_lower_bounds(setup_arguments: dict[str, Any]) -> None:
    asked = [*setup_arguments["install_requires"], *setup_arguments["extras_require"]["test"]]
    bounds = dict(re.split(">=", requirement.split(",")[0]) for requirement in asked)
    versions = pinned("oldest.lock")
    del bounds["libvirt-python"]  # which must not be older than the host's libvirt
    for name, bound in bounds.items():
        assert all((version + ".").startswith(bound + ".") for version in versions[name]), name


def test_every_directory_with_modules_is_a_package_that_gets_installed() -> None:
    directories = {path.parent for path in CHECKOUT.glob("vac/**/*.py")}
    assert [path for path in directories if not (path / "__init__.py").exists()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_leads_to_a_callable_main(command: str, setup_arguments: dict[str, Any]) -> None:
    scripts = dict(line.split(" = ") for line in setup_arguments["entry_points"]["console_scripts"])
    assert scripts[command] == f"{COMMANDS[command]}:main"
    assert callable(importlib.import_module(COMMANDS[command]).main)


@pytest.mark.allow_subprocess
@pytest.mark.parametrize("command", COMMANDS)
def test_a_launcher_finds_its_checkout_from_anywhere_and_through_links(command: str, tmp_path: Path) -> None:
    checkout = tmp_path / "a check out"
    installed = checkout / ".venv" / "bin" / command
    installed.parent.mkdir(parents=True)
    installed.write_text('#!/bin/sh\necho "$(basename "$0") in $PWD: $#, $3"\nexit 7\n')
    installed.chmod(0o755)
    shutil.copytree(CHECKOUT / "bin", checkout / "bin")
    (tmp_path / "link").symlink_to("again")
    (tmp_path / "again").symlink_to(checkout / "bin" / command)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for launcher in (checkout / "bin" / command, tmp_path / "link", Path("../link")):
        done = subprocess.run(
            [launcher, "--json", "machine", "two words"],
            cwd=elsewhere,
            text=True,
            capture_output=True,
            check=False,
        )
        expected = (f"{command} in {elsewhere}: 3, two words\n", "", 7)
        assert (done.stdout, done.stderr, done.returncode) == expected


def test_launchers_are_three_lines_and_executable() -> None:
    for path in (CHECKOUT / "bin").iterdir():
        assert len(path.read_text().splitlines()) == 3, path
        assert path.stat().st_mode & stat.S_IXOTH, path
    assert {path.name for path in (CHECKOUT / "bin").iterdir()} == set(COMMANDS)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_name_commands_that_exist(unit: Path) -> None:
    lines = re.findall(r"^Exec\w+=(\S+)", unit.read_text(), re.MULTILINE)
    assert lines
    base_system = {"/bin/sh", "/usr/bin/sleep"}
    assert set(lines) <= {f"/usr/bin/{command}" for command in COMMANDS} | base_system


def test_units_name_units_that_exist() -> None:
    names = {path.name for path in (CHECKOUT / "systemd").iterdir()}
    for unit in UNITS:
        assert set(re.findall(r"\bvac[\w.-]*\.(?:service|slice)\b", unit.read_text())) <= names, unit


def test_no_module_is_longer_than_500_lines() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in CHECKOUT.glob("vac/**/*.py")}
    assert {os.fspath(path): length for path, length in lengths.items() if length > 500} == {}


def test_each_row_of_the_fault_matrix_names_tests_that_there_are() -> None:
    page = (CHECKOUT / "docs/reliability.md").read_text()
    code = "\n".join(path.read_text() for path in (CHECKOUT / "tests").rglob("*.py"))
    there = set(re.findall(r"^\s*def (test_\w+)", code, re.MULTILINE))
    rows = [line for line in page.splitlines() if line.startswith("|") and line.count("|") >= 5]
    assert len(rows) > 50
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named or row.startswith(("| fault |", "| --- |")), row
        assert set(named) <= there, row


def test_the_manual_has_every_command_and_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["man_pages.py", str(tmp_path)])
    for name, value in (("SOURCE_DATE_EPOCH", "0"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    runpy.run_path(str(CHECKOUT / "packaging" / "man_pages.py"), run_name="__main__")
    pages = {path.name: path.read_text().replace("\\-", "-") for path in tmp_path.iterdir()}
    assert set(pages) == {"vac.1", "vacd.8", "check-vacd.8", "vac.conf.5", "vacuum-pipe.5"}
    for name in main.COMMANDS:
        assert f".SS {name}\n" in pages["vac.1"]
    for entry in reference.entries():
        assert f".B {entry.name}\n" in pages["vac.conf.5"]
    kinds = [entry for entry in reference.entries() if entry.section == "machinetype NAME"]
    assert {entry.name for entry in kinds if f".B {entry.name}\n" in pages["vacuum-pipe.5"]} == {
        entry.name for entry in kinds if entry.pipe
    }
    for page in pages.values():
        assert page.startswith(".TH ")
        assert " 1970-01-01 " in page.partition("\n")[0]
