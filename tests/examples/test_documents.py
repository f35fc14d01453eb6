"""The examples' pipes and scripts are as right as can be told without running them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.examples.scripts import EXAMPLES
from vac.cli.config_commands import examine

PIPES = sorted(EXAMPLES.glob("*/vacuum.pipe"))
SCRIPTS = sorted(EXAMPLES.glob("*/*.sh"))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("path", PIPES, ids=name)
def test_pipes_have_no_flaw(path: Path) -> None:
    verdict = examine(path.read_bytes())
    assert verdict.flaws == ()
    assert len(verdict.suffixes) >= 2


@pytest.mark.parametrize("path", PIPES, ids=name)
def test_pipe_and_script_agree(path: Path) -> None:
    """On the heartbeat's name, and on options that the script knows."""
    document = examine(path.read_bytes()).document
    assert document is not None
    (script,) = path.parent.glob("*.sh")
    text = script.read_text()
    for entry in document.entries:
        assert str(entry.values["user_data"]).endswith(f"/{script.name}")
        assert f"\nheartbeat_file={entry.values['heartbeat_file']} " in text
        for option in (*entry.user_data_options, *entry.user_data_files):
            assert f"##user_data_option_{option}##" in text
    assert set(re.findall("##(user_data_.*?)##", text)) <= {
        *(f"user_data_option_{key}" for key in re.findall("user_data_option_([a-z_]+)  ?", text)),
        "user_data_uuid",
        "user_data_machinetype",
        "user_data_machine_hostname",
        "user_data_jobfeatures_url",
        "user_data_joboutputs_url",
    }


@pytest.mark.parametrize("path", PIPES, ids=name)
def test_urls_are_placeholders_that_say_so(path: Path) -> None:
    """Real images have versions, and may be gone one day."""
    hosts = re.findall('"https?://([^/:"]*)', path.read_text())
    assert hosts and all(host.endswith(".example.org") for host in hosts)


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_are_posix_sh(path: Path) -> None:
    for command in (["sh", "-n"], [require_tool("busybox"), "sh", "-n"], [require_tool("shellcheck")]):
        subprocess.run([*command, path], check=True)


def test_there_are_examples() -> None:
    assert [name(path) for path in PIPES] == ["htcondor/vacuum.pipe", "taskqueue/vacuum.pipe"]
    assert [name(path) for path in SCRIPTS] == ["htcondor/node.sh", "taskqueue/pilot.sh"]
