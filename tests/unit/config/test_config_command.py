"""`vac config`: what is printed, with which exit status, and that the printed can be read again."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vac.cli import config_commands
from vac.cli.main import command_parser, split
from vac.config import reference
from vac.config.load import Configuration, ConfigurationError, load
from vac.config.machinetype import Machinetype, VacuumPipe
from vac.config.options import NO_EFFECT, declared
from vac.config.pipe_document import ACCEPTED
from vac.config.settings import Settings
from vac.host.facts import HostFacts

ROOT = Path(__file__).parents[3]
NOTHING = "there is no machinetype with a target_share above 0: nothing will be created"
FIXTURE = ROOT / "tests" / "data" / "fixture-vac.conf"
SAMPLE = ROOT / "etc" / "vac.d" / reference.SAMPLE_NAME
RICH = """
[settings]
vac_space = vac01.example.org
description = ;odd text
factories = a.example.org . b
vacquery_allow = 192.0.2.0/24 2001:db8::/32
hs06_per_processor = 10.25
draining = yes
health_command = /bin/true
docker_host = tcp://me:hunter2@docker.example.org:2376
vacmon_hostport = mon.example.org:8884
machinefeatures_option_rack = row 1

\track 2
user_data_option_password = hunter2
user_data_file_key = /etc/key
[machinetype one]
target_share = 0.5
container_capabilities = none
tmp_binds = /scratch /tmp
image_signing_dn = /CN=cvm-sign01\\.cern\\.ch$
user_data_option_token = -----BEGIN hunter2
  hunter2
[vacuum_pipe two]
vacuum_pipe_url = https://vo.example.org/pipe
target_share = 3
machine_model = docker
user_data_option_x = hunter2
"""


def run(host: HostFacts, *words: str) -> int:
    """Run `vac WORDS…`."""
    options, name, rest = split(words)
    arguments = command_parser(name).parse_intermixed_args([*options, *rest])
    return config_commands.run_config(arguments, host)


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    path = tmp_path / "site.conf"
    path.write_text(RICH)
    return path


def test_check_tells_that_all_is_well(
    host: HostFacts, rich: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(host, "--config", str(rich), "config", "check") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "The configuration can be used (1 machinetype, 1 pipe): 0 errors, 2 warnings."
    assert out[1].startswith(f"warning: {rich}: [machinetype one]")


def test_check_tells_every_problem_and_fails(
    host: HostFacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.conf"
    path.write_text("[settings]\nvac_space = a.b\ncpu_total = x\nvacquery_port = perhaps\n")
    assert run(host, "--config", str(path), "config", "check") == 1
    assert capsys.readouterr().out.splitlines()[:4] == [
        f"error: {path}: [settings] vacquery_port: 'perhaps' is not an integer from 1 to 65535",
        f"error: {path}: [settings] cpu_total: 'x' is not an integer, 1 or more",
        f"warning: {path}: [settings] cpu_total: is deprecated; its name is now total_processors",
        f"warning: {path}: target_share: {NOTHING}",
    ]
    assert run(host, "--config", str(path), "config", "check", "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["valid"], len(content["errors"]), len(content["warnings"])) == (False, 2, 2)
    assert content["errors"][1] == {
        "file": str(path),
        "section": "settings",
        "option": "cpu_total",
        "text": "'x' is not an integer, 1 or more",
    }


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (b"#!/bin/sh\necho ##user_data_option_token## ##user_data_uuid##\n", []),
        (
            b"#!/bin/sh\r\n\n##user_data_option_tokn##\n##user_data_file_other##",
            [
                "line 1: ends in CR LF, as on Windows: the kernel looks for an interpreter of that name; use LF alone",
                "line 3: ##user_data_option_tokn## is removed: user_data_option_tokn isn't set, the nearest is token",
                "line 4: ##user_data_file_other## is removed: user_data_option_other isn't set",
            ],
        ),
    ],
)
def test_check_reads_local_templates(
    host: HostFacts, tmp_path: Path, capsys: pytest.CaptureFixture[str], template: bytes, told: list[str]
) -> None:
    path = tmp_path / "x.conf"
    path.write_text(
        f"[settings]\nvac_space = a.b\nstate_dir = {tmp_path}\n[machinetype one]\ntarget_share = 1\n"
        "machine_model = bubblewrap\nroot_image = /\nuser_data = script\nuser_data_option_token = hunter2\n"
    )
    script = tmp_path / "machinetypes" / "one" / "files" / "script"
    script.parent.mkdir(parents=True)
    script.write_bytes(template)
    assert run(host, "--config", str(path), "config", "check") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.partition("[machinetype one] ")[2] for line in lines] == told
    assert all(str(script) in line for line in lines)
    assert f"{len(told)} warnings" in last


@pytest.mark.parametrize(("model", "warned"), [("docker", True), ("vm-raw", False)])
def test_check_tells_that_scripts_can_not_be_executed(
    host: HostFacts, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, warned: bool
) -> None:
    host = dataclasses.replace(host, noexec_mount={Path("/var/lib/vac"): "/var"}.get)
    path = tmp_path / "x.conf"
    path.write_text(f"[settings]\nvac_space = a.b\n[machinetype one]\nmachine_model = {model}\n")
    assert run(host, "--config", str(path), "config", "check") == 0
    words = f"{path}: [settings] state_dir: /var/lib/vac is on /var, which is mounted noexec"
    assert (words in capsys.readouterr().out) == warned


def test_check_mentions_assumed_processors(
    host: HostFacts, rich: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataclasses.replace(host, assumed=True), "--config", str(rich), "config", "check") == 0
    assert "VAC_ASSUME_PROCESSORS makes this a host of 64 processors" in capsys.readouterr().out


def test_paths_may_be_repeated(host: HostFacts, rich: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(host, "--config", str(FIXTURE), "--config", str(rich), "config", "show", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["machinetypes"]) == 11
    assert content["settings"]["hs06_per_processor"] == "10.25"


def test_show_prints_what_is_in_force_without_secrets(
    host: HostFacts, rich: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["show"], ["show", "--json"], ["check"], ["check", "--json"]):
        assert run(host, "--config", str(rich), "config", *words) == 0
        out = capsys.readouterr().out
        assert "hunter2" not in out
        if words == ["show"]:
            assert "user_data_option_password = (7 characters, not shown)\n" in out
            assert "docker_host = tcp://***@docker.example.org:2376\n" in out
            assert "mb_per_processor = 2048\n" in out
            assert "factories = a.example.org vac-01.example.org b.example.org\n" in out


def test_show_of_a_broken_configuration_fails(
    host: HostFacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.conf").write_text("[settings]\n")
    assert run(host, "--config", str(tmp_path), "config", "show") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "vac_space: is missing" in captured.err


def test_show_keeps_bytes_that_are_not_utf8(
    host: HostFacts, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "x.conf").write_bytes(b"[settings]\nvac_space = a.b\ndescription = Gen\xe8ve\n")
    assert run(host, "--config", str(tmp_path), "config", "show") == 0
    assert b"description = Gen\xe8ve\n" in capfdbinary.readouterr().out


def without_secrets(configuration: Configuration) -> Configuration:
    """Return a configuration without what `show` leaves out, and without the files' names."""
    settings_ = dataclasses.replace(configuration.settings, user_data_options={}, docker_host="")
    kinds = {
        name: dataclasses.replace(kind, user_data_options={})
        for name, kind in configuration.machinetypes.items()
    }
    pipes = {
        name: dataclasses.replace(pipe, user_data_options={}) for name, pipe in configuration.pipes.items()
    }
    return dataclasses.replace(
        configuration, settings=settings_, machinetypes=kinds, pipes=pipes, warnings=()
    )


@pytest.mark.parametrize(
    "text", [RICH, FIXTURE.read_text(), SAMPLE.read_text()], ids=["rich", "classic", "sample"]
)
def test_what_show_prints_can_be_read_again(tmp_path: Path, host: HostFacts, text: str) -> None:
    path = tmp_path / "x.conf"
    path.write_text(text)
    before = load([path], host)
    path.write_text(reference.shown(before))
    assert without_secrets(load([path], host)) == without_secrets(before)


@example("", "\n =")
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text("ab;# =[]rem\n\t"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_that_is_read_is_shown_so_that_it_is_read_again(
    tmp_path: Path, host: HostFacts, one: str, two: str
) -> None:
    path = tmp_path / "x.conf"
    lines = (
        f"description = {one}\nmachinefeatures_option_x = {two}\n[machinetype one]\naccounting_fqan = {two}\n"
    )
    path.write_bytes(f"[settings]\nvac_space = a.b\n{lines}".encode())
    try:
        before = load([path], host)
    except ConfigurationError:
        return
    path.write_bytes(reference.shown(before).encode())
    assert without_secrets(load([path], host)) == without_secrets(before)


def test_the_reference_has_every_option_once(host: HostFacts, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(host, "config", "options") == 0
    out = capsys.readouterr().out
    assert run(host, "config", "options", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    for title, holder in (
        ("settings", Settings),
        ("machinetype NAME", Machinetype),
        ("vacuum_pipe PREFIX", VacuumPipe),
    ):
        names = [entry["name"] for entry in listed if entry["section"] == title]
        assert [name for name in names if "XXX" not in name] == list(declared(holder))
        assert all(f"\n{name}\n" in out for name in names)
    assert "Formerly: cpu_total." in out
    assert "Where these go (has no effect in this version).\n" in out
    assert max(map(len, out.splitlines())) <= 110
    blocks = [" ".join(block.split()) for block in out.split("\n\n")]
    told = {block.split()[0] for block in blocks if "A pipe's document may set it." in block}
    assert told == {*ACCEPTED, "user_data_option_XXX", "user_data_file_XXX"}


def test_the_installed_sample_is_the_tables(host: HostFacts, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(host, "config", "options", "--sample") == 0
    assert capsys.readouterr().out.rstrip() == SAMPLE.read_text().rstrip()
    assert not SAMPLE.name.endswith(".conf")


def test_the_sample_makes_new_machinetypes_drop_all_capabilities(host: HostFacts) -> None:
    configuration = load([SAMPLE], host)
    assert configuration.warnings == ()
    (kind,) = configuration.machinetypes.values()
    assert kind.container_capabilities == ()


def test_the_sample_with_every_option_in_force_is_right_too(tmp_path: Path, host: HostFacts) -> None:
    path = tmp_path / "x.conf"
    path.write_text(re.sub("^# ", "", SAMPLE.read_text().partition("[settings]")[2], flags=re.MULTILINE))
    for_vms = ("image_signing_dn",)  # contradicts the container that the rest is about
    lines = [
        line for line in path.read_text().replace("_XXX", "_xxx").split("\n") if not line.startswith(for_vms)
    ]
    path.write_text("\n".join(["[settings]", *lines]))
    configuration = load([path], host)
    assert {warning.text for warning in configuration.warnings} == {NO_EFFECT}
    unused = {name for name, option in declared(Settings).items() if option.no_effect}
    defaults = {"version_logger"}
    assert {warning.option for warning in configuration.warnings} == unused - defaults
    assert list(configuration.pipes) == ["example"]


def test_the_host_is_asked_when_nobody_tells(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.Namespace(action="check", config=[FIXTURE / "missing"], json=True)
    assert config_commands.run_config(arguments) == 1
    assert json.loads(capsys.readouterr().out)["errors"]
