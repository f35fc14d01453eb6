"""An administrator's actions on a factory whose machines run: by bin/vac, and by breaking its files."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.conftest import require_tool
from tests.engines.factory_fixture import AT_ONCE, ROOT, FactorySite, Kind, factory_site
from tests.engines.process_site import make_tree
from vac.machines.machine import Machine

pytestmark = pytest.mark.engine

LASTING = {"lasting": Kind("sleep 600", {"target_share": 1})}
OBEDIENT = """
until [ "$(cat /tmp/machinefeatures/shutdowntime)" -le "$(( $(date +%s) + 20 ))" ]; do sleep 0.2; done
echo '100 told to end' > /tmp/joboutputs/shutdown_message
"""
STUBBORN = "sleep 600"


@pytest.fixture
def site() -> Iterator[FactorySite]:
    """Two lasting machines in two slots."""
    with factory_site(LASTING, processors=2, grace_secs=4, machines_per_cycle=AT_ONCE) as site:
        site.wait_for(lambda: len(site.running()) == 2, "two machines run")
        yield site


def uuids(site: FactorySite) -> set[str]:
    return {machine.uuid for machine in site.running()}


def test_a_broken_configuration_harms_no_machine(site: FactorySite) -> None:
    before, good = uuids(site), site.config.read_text()
    site.config.write_text(good + "\n[settings]\nmb_per_processor = much\n")
    site.wake()
    site.wait_for(lambda: site.status().problems, "the factory says what is wrong")
    assert "mb_per_processor" in site.status().problems[0]
    assert "vac.conf" in site.status().problems[0]
    checked = site.vac("config", "check")
    assert checked.returncode == 1
    assert "mb_per_processor" in checked.stdout + checked.stderr
    assert uuids(site) == before
    victim = sorted(site.machines())[0]
    assert site.vac("destroy", victim).returncode == 0
    site.wait_for(lambda: len(site.running()) == 1, "the destroyed machine has ended")
    assert "configuration" in site.vac("why").stdout
    assert uuids(site) < before
    site.config.write_text(good)
    site.wake()
    site.wait_for(lambda: len(site.running()) == 2, "there are two machines again")
    site.wait_for(lambda: not site.status().problems, "nothing is wrong any more")
    assert len(uuids(site) & before) == 1


def test_a_start_with_a_broken_configuration_finds_machines(site: FactorySite) -> None:
    before, good = uuids(site), site.config.read_text()
    assert site.stop() == 0
    site.config.write_text(good + "\n[settings]\nmb_per_processor = spaceship\n")
    site.start()
    site.wait_for(lambda: site.status().problems, "the factory says what is wrong")
    assert "spaceship" in site.status().problems[0]
    assert uuids(site) == before
    victim = site.running()[0]
    site.wait_for(lambda: _age(victim) > 4, "it has outlived fizzle_seconds")
    assert site.vac("destroy", victim.name).returncode == 0
    site.wait_for(lambda: len(site.running()) == 1, "the destroyed machine has ended")
    assert len(list(site.state.apel_archive.glob("*/*"))) == 1


def test_drain_lasts_until_undrain_across_a_restart(site: FactorySite) -> None:
    drained = site.vac("drain", "--reason", "new disks")
    assert drained.returncode == 0, drained.stderr
    site.wait_for(lambda: site.status().drain is not None, "the factory drains")
    site.vac("destroy", sorted(site.machines())[0])
    site.wait_for(lambda: len(site.running()) == 1, "the destroyed machine has ended")
    assert site.stop() == 0
    restarted = time.time()
    site.start()
    site.wait_for(lambda: site.status().time > restarted, "it reports again")
    why = site.vac("why").stdout
    assert "draining" in why
    assert "new disks" in why
    assert len(site.running()) == 1
    assert site.vac("undrain").returncode == 0
    site.wait_for(lambda: len(site.running()) == 2, "the free slot is filled")
    site.wait_for(lambda: site.status().drain is None, "the factory says so")
    assert "draining" not in site.vac("why").stdout


def test_drain_with_wait_returns_when_the_last_machine_has_ended() -> None:
    script = """
    until [ -e /tmp/joboutputs/end ]; do sleep 0.1; done
    echo '200 done' > /tmp/joboutputs/shutdown_message
    """
    with factory_site({"short": Kind(script)}) as site:
        site.wait_for(site.running, "one runs")
        words = [str(ROOT / "bin" / "vac"), "--config", str(site.config), "drain", "--wait"]
        with subprocess.Popen(words, env=site.environment, stdout=subprocess.PIPE, text=True) as waiting:
            assert waiting.stdout is not None
            assert any("1 left" in line for line in waiting.stdout)
            (site.lives()[0].directory / "joboutputs" / "end").touch()
        assert waiting.returncode == 0
        assert site.running() == []
        assert len(site.lives()) == 1


def test_finish_lets_the_machine_end_by_itself() -> None:
    kinds = {"obedient": Kind(OBEDIENT), "stubborn": Kind(STUBBORN)}
    with factory_site(kinds, processors=2, grace_secs=15, machines_per_cycle=AT_ONCE) as site:
        site.wait_for(lambda: len(site.running()) == 2, "two machines run")
        machines = {machine.machinetype: machine for machine in site.running()}
        assert set(machines) == set(kinds)
        site.vac("drain")
        for machine in machines.values():
            asked = site.vac("finish", machine.name)
            assert asked.returncode == 0, asked.stderr
        for machine in machines.values():
            ended = machine.directory / "finished"
            site.wait_for(ended.exists, f"{machine.machinetype} ends")
        assert _message(machines["obedient"]) == "100 told to end"
        assert _message(machines["stubborn"]) == "100 Shutdown time reached"


def test_destroy_ends_a_machine_with_record_and_message(site: FactorySite) -> None:
    victim = site.running()[0]
    site.wait_for(lambda: _age(victim) > 4, "it has outlived fizzle_seconds")
    assert site.vac("destroy", victim.name.partition(".")[0]).returncode == 0
    seconds = site.wait_for((victim.directory / "finished").exists, "it has ended")
    assert seconds < 50, "not before the next cycle"
    assert _message(victim) == "100 Destroyed by the administrator"
    records = list(site.state.apel_archive.glob("*/*"))
    assert [victim.uuid in record.read_text() for record in records] == [True]
    again = site.vac("destroy", "no-such-machine")
    assert again.returncode == 1
    assert "no-such-machine" in again.stderr


def test_machine_tells_all_that_is_known_of_it(site: FactorySite) -> None:
    machine = site.running()[0]
    told = json.loads(site.vac("machine", "--json", machine.name).stdout)
    assert told["uuid"] == machine.uuid
    assert told["state"] == "Running"
    assert told["machinetype"] == "lasting"


def _message(machine: Machine) -> str:
    return (machine.directory / "shutdown_message").read_text().strip()


def _age(machine: Machine) -> float:
    assert machine.started_time is not None
    return time.time() - machine.started_time


def test_a_failing_user_data_is_understood_from_why_and_machine() -> None:
    script = "echo looking for work; ls /no-such-disk || exit 7"
    with factory_site({"broken": Kind(script)}) as site:
        site.wait_for(lambda: site.vac("history").stdout, "one has failed")
        site.vac("drain")
        site.wait_for(lambda: not site.running(), "none runs")
        machine = json.loads(site.vac("history", "--failed", "--json").stdout)[-1]
        assert "exit code 7 after" in site.vac("why", "broken").stdout
        for word in (machine["machine"], machine["uuid"], machine["directory"]):
            told = site.vac("machine", word).stdout
            assert "exit code 7 after" in told
            assert "/no-such-disk" in told
        assert "looking for work\n" in site.vac("logs", machine["uuid"]).stdout


def test_the_console_is_followed_until_the_machine_ends() -> None:
    script = "echo begun; until [ -e /tmp/joboutputs/end ]; do sleep 0.1; done; echo over"
    with factory_site({"talker": Kind(script)}) as site:
        site.wait_for(site.running, "one runs")
        site.vac("drain")
        end = site.lives()[0].directory / "joboutputs" / "end"
        assert site.follow_console(site.running()[0], end.touch) == ["begun\n", "over\n"]


@pytest.mark.parametrize("model", ["bubblewrap", "singularity"])
def test_a_command_in_a_machine_has_no_more_rights_than_the_machine(model: str) -> None:
    inside = (
        "head -c 4000 /proc/self/status /proc/1/status; id; pwd; ls -l /proc/self/fd; cat /tmp/mine; exit 5"
    )
    script = "echo inside > /tmp/mine; cat /proc/self/cgroup > /tmp/joboutputs/group; sleep 600"
    with factory_site({}, processors=1, start=False) as site:
        image = site.home / "image"
        make_tree(image)
        options = {"machine_model": model, "root_image": "/" if model == "bubblewrap" else image}
        site.configure({"lasting": Kind(script, options)}, singularity_user="nobody")
        site.start()
        site.wait_for(lambda: site.running() and site.lives()[0].output("group"), "one runs")
        machine = site.running()[0]
        done = site.vac("exec", machine.name.partition(".")[0], "--", "sh", "-c", inside)
        assert done.returncode == 5, done.stderr
        told = done.stdout
        assert told.count("NoNewPrivs:\t1") == 2
        assert "Seccomp:\t2" in told
        assert told.count("CapEff:\t0000000000000000") == 2
        assert re.search(r"uid=\d+", told) and "uid=0" not in told and "groups=0" not in told
        assert "\n/\n" in told and "inside\n" in told
        assert set(re.findall(r" ([0-9]+) -> ", told)) <= {*"0123"}, "input, outputs and the directory itself"
        groups = {
            line.partition("::")[2] or line.split(":", 2)[2]
            for line in site.lives()[0].output("group").split()
        }
        seen = site.vac("exec", machine.uuid, "cat", "/proc/self/cgroup").stdout.split()
        assert {line.partition("::")[2] or line.split(":", 2)[2] for line in seen} & groups
        log = (machine.directory / "exec.log").read_text()
        assert f"root: sh -c '{inside}'" in log and "cat /proc/self/cgroup" in log
        assert site.vac("exec", machine.name, "no-such-program").returncode == 126
        assert len(site.running()) == 1
        site.vac("drain")
        site.vac("destroy", machine.name)
        site.wait_for(lambda: not site.running(), "it has ended")
        assert "doesn't run" in site.vac("exec", machine.uuid).stderr


def test_an_interactive_shell_has_a_terminal_of_its_own(site: FactorySite) -> None:
    typed = b"echo terminal:$(readlink /proc/self/fd/0):; exit 3\n"
    code, told, terminal = site.type_into_shell(site.running()[0], typed)
    assert code == 3, told
    found = re.search(r"terminal:(/\S+):\s", told)
    assert found and found[1] != terminal, told


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    typed = "COMP_WORDS=(vac logs --fol); COMP_CWORD=2; _vac; echo ${COMPREPLY[@]}"
    begin = "autoload -U compinit; compinit -u -D; emulate sh; " if shell == "zsh" else ""
    words = [require_tool(shell), "-c", f"{begin}source <({ROOT}/bin/vac completion); {typed}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    offered = done.stdout.split()
    assert offered == ["--follow"] if shell == "bash" else "--follow" in offered, (
        "zsh itself chooses among these"
    )
