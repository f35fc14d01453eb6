"""Options of all sub-commands; apel-sync, apel-republish and user-data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.state_dirs import ENDED, new_state, running_machine
from vac.accounting import records
from vac.accounting.records import message_fields
from vac.cli.main import COMMANDS, command_parser, main
from vac.machines.layout import StateDir


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "1", "--config", "2", "config", "show", "--json"],
        ["--config", "1", "config", "show", "--config", "2", "--json"],
        ["config", "show", "--json", "--config", "1", "--config=2"],
        ["--config", "1", "config", "--config", "2", "show", "--json"],
    ],
)
def test_config_may_stand_before_the_command_or_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("1").write_text("[settings]\nvac_space = one.example.org\nfactory_name = a.example.org\n")
    Path("2").write_text("[settings]\nvac_space = two.example.org\n")
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "two.example.org" in shown
    assert "a.example.org" in shown


@pytest.mark.parametrize(
    "words", ["machines", "why", "drain", "doctor", "machine x", "pipe show", "simulate"]
)
def test_every_command_takes_it(words: str) -> None:
    name, *more = words.split()
    arguments = command_parser(name).parse_intermixed_args([*more, "--config", "x"])
    assert arguments.config == [Path("x")]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    """A state directory with one record of November 2026; it is the day after."""
    made = new_state(tmp_path)
    records.archive(made, running_machine(made))
    monkeypatch.setattr("time.time", lambda: ENDED + 86400.0)
    return made


def vac(state: StateDir, *words: str, sitename: bool = True) -> int:
    configuration = state.root.parent / "vac.conf"
    lines = [
        "[settings]",
        "vac_space = vac01.example.org",
        "factory_name = node1.example.org",
        f"state_dir = {state.root}",
        "gocdb_sitename = UKI-TEST-SITE" if sitename else "",
    ]
    configuration.write_text("\n".join(lines))
    return main(["--config", str(configuration), *words])


def sent(state: StateDir) -> list[dict[str, str]]:
    return [
        message_fields(path.read_text()) for path in sorted(state.apel_outgoing.rglob("*")) if path.is_file()
    ]


def test_the_sync_record_of_the_month_is_sent(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert vac(state, "apel-sync") == 0
    assert [(fields["NumberOfJobs"], fields["Month"], fields["Year"]) for fields in sent(state)] == [
        ("1", "11", "2026")
    ]
    assert "1 jobs of UKI-TEST-SITE" in capsys.readouterr().out


def test_a_month_without_records_says_so(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert vac(state, "apel-sync", "202610") == 0
    assert not sent(state)
    assert "202610: no records" in capsys.readouterr().out


def test_without_gocdb_sitename_nothing_is_sent(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert vac(state, "apel-sync", sitename=False) == 0
    assert not sent(state)
    assert "gocdb_sitename" in capsys.readouterr().out


def test_a_month_is_published_again(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert vac(state, "apel-republish", "202611", "202612", "--site", "NEW-SITE") == 0
    assert [fields["Site"] for fields in sent(state)] == ["NEW-SITE"]
    assert "1 records of 202611 202612" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("apel-sync", "November"), ("apel-republish",), ("apel-republish", "202613")]
)
def test_months_are_checked(
    state: StateDir, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        vac(state, *words)
    assert left.value.code == 2
    assert "YYYYMM" in capsys.readouterr().err


def test_what_goes_wrong_is_told(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    state.apel_outgoing.rmdir()
    state.apel_outgoing.write_text("in its place")
    assert vac(state, "apel-sync") == 1
    assert "apel-outgoing" in capsys.readouterr().err


CONFIGURATION = """
[settings]
vac_space = vac.example.org
factory_name = factory1.example.org
state_dir = {state}
[machinetype one]
machine_model = docker
root_image = docker://a
user_data = template
user_data_option_token = hunter2
user_data_file_key = key
[machinetype broken]
machine_model = docker
root_image = docker://a
user_data = absent
"""
TEMPLATE = b"\xff##user_data_uuid## ##user_data_machine_hostname##\r\n##user_data_option_token##\0"
TEMPLATE += b"##user_data_file_key##\n##user_data_option_tokn##"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command up to its name."""
    files = tmp_path / "machinetypes/one/files"
    files.mkdir(parents=True)
    (files / "template").write_bytes(TEMPLATE)
    (files / "key").write_bytes(b"PRIVATE\n")
    (tmp_path / "vac.conf").write_text(CONFIGURATION.format(state=tmp_path))
    return ["--config", str(tmp_path / "vac.conf"), "user-data"]


@pytest.mark.parametrize(
    ("option", "token", "key"),
    [
        (
            [],
            rb"\(user_data_option_token: 7 bytes, not shown\)",
            rb"\(user_data_file_key: 8 bytes, not shown\)",
        ),
        (["--secrets"], b"hunter2", rb"PRIVATE\n"),
    ],
)
def test_what_a_machine_would_get_is_printed_byte_for_byte(
    words: list[str], capfdbinary: pytest.CaptureFixture[bytes], option: list[str], token: bytes, key: bytes
) -> None:
    assert main([*words, "one", *option]) == 0
    told, warned = capfdbinary.readouterr()
    assert warned == b"vac: warning: user_data: line 3: ##user_data_option_tokn## is removed: %s\n" % (
        b"user_data_option_tokn isn't set, the nearest is token"
    )
    assert re.fullmatch(
        rb"\xff[0-9a-f-]{36} factory1-00.example.org\r\n" + token + rb"\0" + key + rb"\n", told
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "broken",
            r"vac: broken: user_data: .*/broken/files/absent can't be read: No such file or directory",
        ),
        ("none", "vac: no machinetype none is configured; there are: broken one"),
    ],
)
def test_why_there_is_none_is_told(
    words: list[str], capfdbinary: pytest.CaptureFixture[bytes], name: str, reason: str
) -> None:
    assert main([*words, name]) == 1
    told = capfdbinary.readouterr()
    assert told.out == b""
    assert re.fullmatch(reason, told.err.decode().strip())


def run_into(output: str, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Python whose standard output is a full disk, or a pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    target = os.open("/dev/full", os.O_WRONLY) if output == "full" else write
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        return subprocess.run(
            [sys.executable, "-c", script, *words],
            stdout=target,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**environment, "LC_ALL": "C"},
        )
    finally:
        for each in {write, target}:
            os.close(each)


@pytest.mark.allow_subprocess
@pytest.mark.parametrize("output", ["full", "closed", "interrupted"])
def test_output_that_can_not_be_written_is_one_sentence(output: str) -> None:
    script = "import sys, vac.cli.main as m; sys.exit(m.main(sys.argv[1:]))"
    if output == "interrupted":
        script = (
            "import sys, vac.cli.main as m, vac.cli.config_commands as c\n"
            "def interrupt(*_): raise KeyboardInterrupt\n"
            "c.run_config = interrupt; sys.exit(m.main(sys.argv[1:]))"
        )
    done = run_into("closed" if output == "closed" else "full", script, "config", "options")
    assert done.returncode == (130 if output == "interrupted" else 1)
    assert done.stderr == ("vac: standard output: No space left on device\n" if output == "full" else "")


@pytest.mark.allow_subprocess
@pytest.mark.parametrize("output", ["full", "closed"])
def test_a_failure_after_output_that_can_not_be_written(output: str) -> None:
    script = (
        "import sys, vac.cli.main as m, vac.cli.config_commands as c\n"
        "def fail(*_): print('some'); raise c.CommandFailed('why', 2)\n"
        "c.run_config = fail; sys.exit(m.main(['config', 'check']))"
    )
    done = run_into(output, script)
    assert done.returncode == 1
    problem = "vac: standard output: No space left on device\n" if output == "full" else ""
    assert done.stderr == f"why\n{problem}"


@pytest.mark.allow_subprocess
def test_without_standard_output_nothing_breaks() -> None:
    script = "import os, sys, vac.cli.main as m; sys.exit(m.main(['config', 'options']))"
    words = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", script]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_of_a_command_may_be_asked_for_in_both_orders(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help", "logs"], ["logs", "--help"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
        assert capsys.readouterr().out.startswith("usage: vac logs ")


def test_completion_knows_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 0
    cases = dict(
        re.findall(r"^ +([\w'-]+)\) words=[\"'](.*)[\"'] ;;$", capsys.readouterr().out, re.MULTILINE)
    )
    assert set(cases) == {"''", *COMMANDS}
    assert set(COMMANDS) < set(cases["''"].split())
    assert {"-f", "--follow", "-n", "--lines", "--config", "--help"} < set(cases["logs"].split())
    assert {"check", "show", "options", "--json"} < set(cases["config"].split())
