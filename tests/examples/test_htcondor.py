"""The HTCondor node of the examples, with a stand-in for condor_master: its configuration, and how it ends."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.examples.scripts import EXAMPLES, FeaturesServer, Place, wait_for_file
from tests.waiting import PATIENCE_SECONDS

NODE = EXAMPLES / "htcondor" / "node.sh"
LEAVES = """cp "$CONDOR_CONFIG" {home}/condor_config
cp "$(dirname "$CONDOR_CONFIG")/tokens/pool" {home}/token
echo started > "$(dirname "$CONDOR_CONFIG")/log/MasterLog"
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    (place.jobfeatures / "allocated_cpu").write_text("4")
    (place.jobfeatures / "max_rss_bytes").write_text(str(8 * 1024**3))
    return place


def master(place: Place, more: str = "") -> None:
    """Let there be a condor_master that shows what it was given and does a little more."""
    place.add_program("condor_master", LEAVES.format(home=place.home) + more)


def script(place: Place, **options: str) -> Path:
    return place.script(NODE, condor_host="cm.example.org", condor_token="eyJ.to$(id).ken", **options)


def configuration(place: Place) -> dict[str, str]:
    lines = (place.home / "condor_config").read_text().splitlines()
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def test_the_node_knows_its_pool_its_size_and_its_end(place: Place) -> None:
    stop = int(time.time()) + 50_000
    place.set_shutdown_time(stop)
    master(place)
    place.run(script(place, idle_seconds="60", job_seconds="1000"))
    found = configuration(place)
    expected = {
        "CONDOR_HOST": "cm.example.org",
        "DAEMON_LIST": "MASTER STARTD",
        "NUM_CPUS": "4",
        "MEMORY": "8192",
        "SLOT_TYPE_1_PARTITIONABLE": "True",
        "STARTD_NAME": "vac-01-00.example.org",
        "STARTD_NOCLAIM_SHUTDOWN": "60",
        "START": "time() + 1000 < MachineStopTime",
        "MachineStopTime": str(stop - 300),
        "SEC_USE_FAMILY_SESSION": "False",
        "MASTER_NAME": "vac-01-00.example.org",
        "CCB_ADDRESS": "$(COLLECTOR_HOST)",
        "VacMachinetype": '"vo-docker"',
    }
    assert {key: found[key] for key in expected} == expected
    assert found["SEC_TOKEN_DIRECTORY"].startswith(str(place.temporary))
    assert (place.home / "token").read_text() == "eyJ.to$(id).ken\n"


def test_defaults(place: Place) -> None:
    for path in place.jobfeatures.iterdir():
        path.unlink()
    master(place)
    place.run(script(place))
    found = configuration(place)
    assert (found["NUM_CPUS"], found["MEMORY"], found["STARTD_NOCLAIM_SHUTDOWN"]) == ("1", "2048", "600")
    assert abs(int(found["MachineStopTime"]) - time.time() - 86400) < 2 * PATIENCE_SECONDS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "300 No job for this node"),
        ('touch "$(dirname "$CONDOR_CONFIG")/log/StarterLog"', "300 No job for this node"),
        ('touch "$(dirname "$CONDOR_CONFIG")/log/StarterLog.slot1_1"', "200 Success"),
        ("echo 'ERROR: no' ; exit 4", "700 condor_master ended with status 4: ERROR: no"),
        ("exit 4", "700 condor_master ended with status 4: started"),
    ],
)
def test_the_message_says_whether_there_were_jobs(place: Place, more: str, message: str) -> None:
    master(place, more)
    assert place.run(script(place)) == message
    assert (place.joboutputs / "condor-heartbeat").exists()
    assert (place.joboutputs / "MasterLog").read_text() == "started\n"


def test_what_is_missing_is_told(place: Place) -> None:
    assert place.run(script(place)) == "700 The image has no condor_master"
    assert place.run(place.script(NODE)) == "700 user_data_option_condor_host is not set"


def test_the_node_leaves_when_its_end_is_moved_closer(place: Place) -> None:
    master(place, f"touch {place.home}/up\nexec sleep 600")
    with place.start(script(place)) as process:
        wait_for_file(place.home / "up")
        place.set_shutdown_time(time.time())
        assert process.wait(PATIENCE_SECONDS) == 0
    assert place.message() == "100 Time is up"


def test_a_new_end_is_told_to_htcondor(place: Place) -> None:
    stop = int(time.time()) + 50_000
    again = f"cp $CONDOR_CONFIG {place.home}/new; mv {place.home}/new {place.home}/again"
    master(place, f"trap '{again}' HUP\ntouch {place.home}/up\nwhile true; do sleep 0.1; done")
    with place.start(script(place)) as process:
        wait_for_file(place.home / "up")
        place.set_shutdown_time(stop)
        wait_for_file(place.home / "again")
        place.set_shutdown_time(time.time())
        assert process.wait(PATIENCE_SECONDS) == 0
    assert f"\nMachineStopTime = {stop - 300}\n" in (place.home / "again").read_text()


def test_more_configuration_comes_last_as_it_is(place: Place) -> None:
    master(place)
    place.run(script(place, condor_config="UPDATE_INTERVAL = 5\nA = $(B) `c`"))
    found = (place.home / "condor_config").read_text()
    assert found.endswith("\nUPDATE_INTERVAL = 5\nA = $(B) `c`\n")


def test_the_node_leaves_when_it_is_told_to(place: Place) -> None:
    master(place, f"touch {place.home}/up\nexec sleep 600")
    with place.start(script(place)) as process:
        wait_for_file(place.home / "up")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    assert place.message() == "100 Told to end"


def test_in_a_virtual_machine_features_and_outputs_go_over_http(place: Place) -> None:
    (place.programs / "curl").symlink_to(require_tool("curl"))
    master(place)
    with contextlib.closing(FeaturesServer(place.home)) as server:
        path = place.script(
            NODE, f"{server.url}/jobfeatures", f"{server.url}/joboutputs", condor_host="cm.example.org"
        )
        assert place.run(path) == "300 No job for this node"
    assert configuration(place)["NUM_CPUS"] == "4"
    assert (place.home / "off").exists()
