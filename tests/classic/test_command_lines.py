"""Command lines of Vac 3, as administrators, scripts and Puppet type them."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.unit.state_dirs import classic_state
from vac.cli import check_vacd
from vac.cli.main import COMMANDS, command_parser, main, parse, split

ADDRESSES = {"f1.example.org": "192.0.2.1", "f2.example.org": "192.0.2.2", "f3.example.org": "192.0.2.3"}
CONF = "[settings]\nvac_space = vac01.example.org\nfactory_name = f2.example.org\nfactories = f1 f2 f3\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-J machines", {"json": True, "factories": []}),
        ("-t 3 machines", {"timeout": 3.0}),
        ("-s other.example.org -t 2 machines", {"space": "other.example.org", "timeout": 2.0}),
        ("-H -t 3 machines f1.example.org f2", {"timeout": 3.0, "factories": ["f1.example.org", "f2"]}),
        ("--timeout=3 machinetype prod", {"timeout": 3.0, "name": "prod"}),
        ("--timeout 3 machinetype prod", {"timeout": 3.0, "name": "prod"}),
        ("--time 3 machinetype prod f1", {"timeout": 3.0, "name": "prod", "factories": ["f1"]}),
        ("-HJt3 machines", {"json": True, "timeout": 3.0}),
        ("-HJt 3 machines", {"json": True, "timeout": 3.0}),
        ("-J machines -t 3 f1", {"json": True, "timeout": 3.0, "factories": ["f1"]}),
        ("machines f1 -t 3 f2 -J", {"json": True, "timeout": 3.0, "factories": ["f1", "f2"]}),
        ("--json --space=s factories", {"json": True, "space": "s"}),
        ("--include-hs06 machines", {"include_hs06": True}),
        (
            "-c cert.pem -k key.pem proxy-init",
            {"cert": Path("cert.pem"), "key": Path("key.pem"), "legacy": False},
        ),
        ("-l -c cert.pem --key key.pem proxy-init", {"legacy": True, "key": Path("key.pem")}),
        ("proxy-init -c cert.pem -k key.pem", {"cert": Path("cert.pem")}),
        ("squid-conf in out", {"source": Path("in"), "target": Path("out")}),
        ("--config x.conf -J machines --config y.conf", {"config": [Path("x.conf"), Path("y.conf")]}),
    ],
)
def test_options_stand_before_or_after_the_command(line: str, expected: dict[str, Any]) -> None:
    options, name, rest = split(line.split())
    arguments = vars(command_parser(name).parse_intermixed_args([*options, *rest]))
    assert {key: arguments[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "commands ("),
        ("help", "commands ("),
        ("machins", "there is no command 'machins'; do you mean machines?"),
        ("-t machines", "no command is given"),
        ("-t 0 machines", "is not a number of seconds"),
        ("proxy-init", "-c/--cert"),
    ],
)
def test_other_lines_are_explained(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(line.split())
    except SystemExit as end:
        code = end.code
    assert code == (0 if line == "help" else 2)
    assert told in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"Example: vac {name}" in out
    assert COMMANDS[name].does[1:] in out
    parse(name, COMMANDS[name].example.split()[1:])


@pytest.fixture
def squid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of Puppet's exec."""

    def resolve(host: str, *_: object) -> list[tuple[object, ...]]:
        if host not in ADDRESSES:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (ADDRESSES[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    (tmp_path / "vac.conf").write_text(CONF)
    (tmp_path / "in").write_text("http_port 3128\nhttp_access allow localnet")
    paths = [str(tmp_path / name) for name in ("vac.conf", "in", "out")]
    return ["--config", paths[0], "squid-conf", *paths[1:]]


def test_squids_configuration_gets_the_factories(tmp_path: Path, squid: list[str]) -> None:
    assert main(squid) == 0
    assert (tmp_path / "out").read_text() == (
        "http_port 3128\nhttp_access allow localnet\n"
        "acl localnet src 192.0.2.1/32\ncache_peer 192.0.2.1 sibling 3128 3130 default\n"
        "acl localnet src 192.0.2.2/32\n"
        "acl localnet src 192.0.2.3/32\ncache_peer 192.0.2.3 sibling 3128 3130 default\n"
    )
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o644


def test_squids_configuration_is_written_on_a_change_only(tmp_path: Path, squid: list[str]) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    out.chmod(0o640)
    assert main(squid) == 0
    before = out.stat()
    assert stat.S_IMODE(before.st_mode) == 0o640
    assert main(squid) == 1
    assert out.stat() == before
    (tmp_path / "vac.conf").write_text(CONF.replace(" f3", ""))
    assert main(squid) == 0
    assert "192.0.2.3" not in out.read_text()


def test_a_factory_without_address_is_left_out(
    tmp_path: Path, squid: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vac.conf").write_text(CONF.replace(" f3", " gone"))
    assert main(squid) == 0
    assert "gone.example.org is left out: Name or service not known" in capsys.readouterr().err
    assert "192.0.2.1" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    "mistake", ["no source", "no directory", "no configuration", "broken", "no addresses", "same"]
)
def test_errors_of_squid_conf_have_status_2(
    tmp_path: Path, squid: list[str], mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if mistake == "no source":
        (tmp_path / "in").unlink()
    elif mistake == "no directory":
        squid[-1] = str(tmp_path / "none" / "out")
    elif mistake == "no configuration":
        (tmp_path / "vac.conf").unlink()
    elif mistake == "broken":
        (tmp_path / "vac.conf").write_text("[settings]\n")
    elif mistake == "no addresses":
        (tmp_path / "vac.conf").write_text(CONF.replace("f2.example", "f2.elsewhere"))
    else:
        squid[-1] = squid[-2]
    assert main(squid) == 2
    assert "vac" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_machines_that_vac_3_left_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = classic_state(tmp_path)
    (tmp_path / "vac.conf").write_text(
        f"[settings]\nvac_space = vac01.example.org\nfactory_name = vac-85.example.org\nstate_dir = {state.root}\n"
    )
    assert main(["--config", str(tmp_path / "vac.conf"), "machine", "vac-85-06"]) == 0
    assert "type-06" in capsys.readouterr().out
    assert (
        main(["--config", str(tmp_path / "vac.conf"), "machine", "df73ee88-fba7-2073-0da6-5bfc18d9f750"]) == 0
    )
    assert "300 No work available" in capsys.readouterr().out


def test_nagios_line_reads_the_heartbeats_of_vac_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = classic_state(tmp_path)
    for role in ("factory", "responder"):
        state.heartbeat(role).touch()
    assert check_vacd.main(["600", "--state-dir", str(state.root)]) == 0
    assert capsys.readouterr().out.startswith("Factory + responder ok (5/8 5/8) | machines=5;;;0;8")
    old = state.heartbeat("factory").stat().st_mtime - 700
    os.utime(state.heartbeat("factory"), (old, old))
    assert check_vacd.main(["600", "--state-dir", str(state.root)]) == 2
