"""The HTCondor node of the examples in a pool: its central manager tells what nodes and jobs there are."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engines.condor_pool import COMPLETED, IDLE, RUNNING, Pool, condor_root
from tests.engines.docker_fixture import PrivateDocker
from tests.engines.factory_fixture import AT_ONCE, FactorySite, Kind, Option, factory_site
from tests.space.hosts import Network

pytestmark = [pytest.mark.engine, pytest.mark.slow]

EXAMPLE = Path(__file__).parents[2] / "examples" / "htcondor"
CENTRAL, NODE = "cm.example.org", "node.example.org"
ADDRESSES = {CENTRAL: "10.77.0.1", NODE: "10.77.0.2"}
DOCKER_ADDRESS = "10.77.0.3"
MARGIN_SECONDS, GRACE_SECONDS, IDLE_SECONDS = 60, 80, 15
OWN: dict[str, Option] = {
    "user_data_option_condor_host": ADDRESSES[CENTRAL],
    "user_data_option_idle_seconds": IDLE_SECONDS,
    "user_data_option_job_seconds": 300,
    "user_data_option_condor_config": "UPDATE_INTERVAL = 5",
    "fizzle_seconds": 200,
    "backoff_seconds": 5,
    "max_processors": 1,
}
"""In place of the example's values, for a test of minutes."""
SHORT_JOB = "hostname; exec sleep 1"
STUBBORN_JOB = "trap : TERM; while true; do sleep 1; done"


@pytest.fixture
def network() -> Iterator[Network]:
    with tempfile.TemporaryDirectory() as home:
        network = Network(Path(home, "hosts"), ADDRESSES)
        yield network
        network.close()


@pytest.fixture
def pool(network: Network) -> Iterator[Pool]:
    with tempfile.TemporaryDirectory(prefix="vac-condor-") as home:
        pool = Pool(Path(home), network.hosts[CENTRAL])
        yield pool
        pool.close()


def kind(suffix: str, **options: Option) -> Kind:
    """The machinetype that the example's pipe has for a model."""
    entries = {
        entry["suffix"]: entry for entry in json.loads((EXAMPLE / "vacuum.pipe").read_text())["machinetypes"]
    }
    published: dict[str, Any] = entries[suffix]
    for name in ("suffix", "user_data", "cvmfs_repositories"):
        published.pop(name, None)
    published = {
        name: " ".join(value) if isinstance(value, list) else value for name, value in published.items()
    }
    script = (EXAMPLE / "node.sh").read_text()
    for name, seconds in (("pause_seconds", 1), ("margin_seconds", MARGIN_SECONDS)):
        script = re.sub(rf"(?m)^{name}=\d+", f"{name}={seconds}", script)
    return Kind(script, {**published, **OWN, **options})


def start(
    site: FactorySite, pool: Pool, network: Network, kinds: dict[str, Kind], **settings: Option
) -> None:
    """Start the factory on its host, with the pool's token."""
    site.enter = network.hosts[NODE].inside()
    site.configure(
        kinds, grace_secs=GRACE_SECONDS, mb_per_processor=512, machines_per_cycle=AT_ONCE, **settings
    )
    token = pool.token()
    for name in kinds:
        (site.state.machinetype_files(name) / "condor_token").write_text(token)
    site.start()


def walk(site: FactorySite, pool: Pool, names: list[str]) -> None:
    """Machines of these types without jobs, with jobs that end, and with jobs that don't when they have to leave."""

    def ended(code: str) -> bool:
        return {
            life.machinetype for life in site.lives() if life.finished and life.message[:3] == code
        } == set(names)

    def shown() -> bool:
        seen.update(ad["VacMachinetype"] for ad in pool.nodes().values())
        return seen == set(names)

    def have(jobs: Mapping[str, int], status: int) -> bool:
        return all(pool.job(job).get("JobStatus") == status for job in jobs.values())

    seen: set[str] = set()
    site.wait_for(shown, "condor_status shows nodes of all types")
    site.wait_for(lambda: ended("300"), "in an empty pool machines of all types find no work")

    short = {name: pool.submit(name, SHORT_JOB) for name in names}
    site.wait_for(lambda: have(short, COMPLETED), "jobs are done")
    for name, job in short.items():
        host = pool.output(job).strip()
        assert host in {life.name for life in site.lives(name)}
        assert (pool.job(job)["ExitCode"], pool.job(job)["LastRemoteHost"]) == (0, f"slot1_1@{host}")
    site.wait_for(lambda: ended("200"), "machines that had jobs leave when there are no more")

    stubborn = {name: pool.submit(name, STUBBORN_JOB) for name in names}
    site.wait_for(lambda: have(stubborn, RUNNING), "jobs run on all types")
    hosts = {name: pool.job(job)["RemoteHost"].partition("@")[2] for name, job in stubborn.items()}
    assert site.vac("drain").returncode == 0
    for host in hosts.values():
        assert site.vac("finish", host).returncode == 0
    site.wait_for(lambda: not site.running(), "all machines have ended")
    for name, host in hosts.items():
        life = next(life for life in reversed(site.lives(name)) if life.name == host)
        assert life.message == "100 Time is up"
        assert pool.job(stubborn[name])["JobStatus"] == IDLE, "it may run elsewhere"
        assert pool.job(stubborn[name])["NumJobStarts"] == 1


def test_bubblewrap_nodes(network: Network, pool: Pool) -> None:
    """Of a slot's own uid, which has no name."""
    with factory_site({}, processors=2, start=False) as site:
        kinds = {"vo-bubblewrap": kind("bubblewrap", root_image=condor_root())}
        start(site, pool, network, kinds, slot_uids="200000-200063")
        walk(site, pool, list(kinds))


def test_apptainer_and_docker_nodes(network: Network, pool: Pool) -> None:
    """The containers are behind their engine's NAT."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(contextlib.closing(PrivateDocker()))
        network.connect("docker0-host", DOCKER_ADDRESS, engine.namespace_pid)
        engine.import_tree("condor:1", condor_root())
        site = stack.enter_context(factory_site({}, processors=2, start=False))
        kinds = {
            "vo-apptainer": kind("apptainer", root_image=condor_root()),
            "vo-docker": kind("docker", root_image="docker://condor:1"),
        }
        start(site, pool, network, kinds, docker_host=engine.url, singularity_user="nobody")
        walk(site, pool, list(kinds))
