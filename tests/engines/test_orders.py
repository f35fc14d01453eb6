"""An administrator's actions on a factory whose machines run: by bin/vac, and by breaking its files."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.engines.factory_fixture import AT_ONCE, ROOT, FactorySite, Kind, factory_site
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
        words = [
            str(ROOT / "bin" / "vac"),
            "--config",
            str(site.config),
            "logs",
            "-f",
            site.running()[0].name,
        ]
        with subprocess.Popen(words, env=site.environment, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            assert following.stdout.readline() == "begun\n"
            (site.lives()[0].directory / "joboutputs" / "end").touch()
            assert following.stdout.read() == "over\n"
        assert following.returncode == 0
