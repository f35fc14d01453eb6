"""A whole vacd with virtual machines: booted, served, accounted for, and what people and outages do to them.

Three types of VMs, of a CD image, of a disk image that comes over https, and of a guest that only halts, and one of
bubblewrap machines beside them. The tests share one factory and take what they need of its machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

import libvirt
import pytest

from tests.engines.factory_fixture import (
    AT_ONCE,
    FactorySite,
    Kind,
    Option,
    ended,
    factory_site,
    message,
    records,
    uuids,
)
from tests.engines.guest_images import CONTEXTUALIZED, Guest, boot_iso, disk_qcow2, halting_iso
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.https_server import Page, Web
from tests.waiting import PATIENCE_SECONDS
from vac.machines.machine import Machine

pytestmark = pytest.mark.engine

VMS, SERVED, SLOTS = 6, 3, 8
VACD = "tests.engines.impatient"
FIZZLE_SECONDS = 2
IN_VM = """F=http://169.254.169.253
put heartbeat "$(wget -q -O - $F/jobfeatures/job_id) $(wget -q -O - $F/machinefeatures/total_cpu) $(hostname)"
until wget -q -O /tmp/end $F/jobfeatures/end; do sleep 1; done
put shutdown_message "$(cat /tmp/end)"
"""
"""Goes on until the test puts a file `end` into the machine's jobfeatures."""
BESIDE = """cd /tmp/joboutputs
until [ -e end ]; do sleep 0.2; done
echo '200 told to end' > shutdown_message
"""


def vms(**options: Option) -> Kind:
    usual: dict[str, Option] = {"fizzle_seconds": FIZZLE_SECONDS, "disk_gb_per_processor": 1}
    return Kind(IN_VM, {**usual, **options})


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateLibvirt]:
    with contextlib.closing(PrivateLibvirt()) as engine:
        yield engine


@pytest.fixture(scope="module")
def site(engine: PrivateLibvirt) -> Iterator[FactorySite]:
    """All its slots are taken."""
    web_directory = engine.directory / "web"
    web_directory.mkdir()
    image = disk_qcow2(Guest(CONTEXTUALIZED)).read_bytes()
    with Web(web_directory) as web:
        pages = {"/cloud.qcow2": Page(image, modified_time=1_700_000_000)}
        server = engine.inside(lambda: web.serve(pages))
        kinds = {
            "cd": vms(machine_model="cernvm3", root_image="boot.iso", target_share=SERVED - 1),
            "raw": vms(machine_model="vm-raw", root_image=server.url("/cloud.qcow2"), target_share=1),
            "still": vms(machine_model="cernvm4", root_image="still.iso", target_share=VMS - SERVED),
            "beside": Kind(BESIDE, {"fizzle_seconds": FIZZLE_SECONDS, "target_share": SLOTS - VMS}),
        }
        settings: dict[str, Option] = {
            "libvirt_uri": engine.uri,
            "vm_domain_type": "qemu",
            "mb_per_processor": 96,
            "machines_per_cycle": AT_ONCE,
        }
        with factory_site(kinds, processors=SLOTS, start=False, **settings) as site:
            site.enter, site.words = engine.enter, ()
            shutil.copyfile(boot_iso(Guest(CONTEXTUALIZED)), site.state.machinetype_files("cd") / "boot.iso")
            shutil.copyfile(halting_iso(), site.state.machinetype_files("still") / "still.iso")
            site.state.prepare()
            assert site.vac("drain").returncode == 0
            site.start(VACD, SSL_CERT_FILE=str(web.ca_file), no_proxy="*")
            site.wait_for(lambda: _only_draining(site, kinds), "all types could be made", PATIENCE_SECONDS)
            assert site.vac("undrain").returncode == 0
            try:
                yield site
            finally:
                site.stop()
                for process in engine.processes("qemu-system"):
                    os.kill(process, signal.SIGKILL)


def _only_draining(site: FactorySite, kinds: Sequence[str] | dict[str, Kind]) -> bool:
    reasons = site.status().passed_over
    return all("drain" in reasons.get(name, "") for name in kinds)


@pytest.fixture
def full(site: FactorySite) -> FactorySite:
    """All its slots are taken by machines that are older than fizzle_seconds."""

    def old_enough() -> bool:
        running = site.running()
        newest = max((machine.started_time or 0.0 for machine in running), default=0.0)
        return len(running) == SLOTS and time.time() > newest + FIZZLE_SECONDS + 1

    site.wait_for(old_enough, "all slots are taken", PATIENCE_SECONDS)
    return site


def console(machine: Machine) -> str:
    path = machine.directory / "console.log"
    return path.read_text(errors="replace") if path.exists() else ""


def serving(site: FactorySite, machine: Machine) -> None:
    """Wait until the guest has sent its heartbeat."""
    path = machine.directory / "joboutputs" / "heartbeat"
    site.wait_for(path.exists, f"{machine.name} has sent a heartbeat:\n{console(machine)}", PATIENCE_SECONDS)


def end(site: FactorySite, machine: Machine, words: str = "200 done") -> None:
    """Let a VM end by itself."""
    serving(site, machine)
    (machine.directory / "jobfeatures" / "end").write_text(words)


def end_beside(site: FactorySite) -> Machine:
    """Let one of the other engine's machines end, and see it replaced."""
    machine = site.running("beside")[0]
    (machine.directory / "joboutputs" / "end").touch()
    site.wait_for(lambda: ended(machine), "the machine beside has ended", PATIENCE_SECONDS)
    others = SLOTS - VMS
    site.wait_for(lambda: len(site.running("beside")) >= others, "and was replaced", PATIENCE_SECONDS)
    return machine


def wait_for_ends(site: FactorySite, *machines: Machine) -> None:
    """Wait until these have ended, with one record each."""
    names = " ".join(machine.name for machine in machines)
    site.wait_for(lambda: all(map(ended, machines)), f"{names} have ended", PATIENCE_SECONDS)
    assert {machine.uuid for machine in machines} <= set(records(site))


@contextlib.contextmanager
def stops(engine: PrivateLibvirt) -> Iterator[dict[str, float]]:
    """Record the times of libvirt's events of the end of each domain, by name, Unix seconds."""
    times: dict[str, float] = {}

    def happened(_connection: object, domain: libvirt.virDomain, event: int, *_more: object) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            times.setdefault(domain.name(), time.time())

    with engine.connection() as connection:
        kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        callback = connection.domainEventRegisterAny(None, kind, happened, None)
        try:
            yield times
        finally:
            connection.domainEventDeregisterAny(callback)


def test_guests_fill_all_slots_and_each_is_served_its_own(full: FactorySite) -> None:
    running = full.running("cd") + full.running("raw")
    assert len(running) == SERVED
    assert len(full.running("raw")) >= 1
    for machine in running:
        serving(full, machine)
        short = machine.name.partition(".")[0]
        told = (machine.directory / "joboutputs" / "heartbeat").read_text()
        assert told == f"{machine.uuid} 1 {short}"
        number = int(short.rpartition("-")[2])
        assert f"dhcp 169.254.169.{number}/16 host={short}" in console(machine)
        assert not list(machine.directory.glob("root.*")), "disks have no names any more"
    rows = full.vac("machines").stdout.splitlines()
    assert sum(" VM " in row for row in rows) == VMS
    addresses = re.compile(r"addresses +169\.254\.169\.\d+")
    full.wait_for(
        lambda: addresses.search(full.vac("machine", running[0].name).stdout), "its address is told"
    )


def test_an_end_is_accounted_at_once_with_libvirts_cpu_time(
    engine: PrivateLibvirt, full: FactorySite, record_property: Callable[[str, object], None]
) -> None:
    ending = [full.running("cd")[0], full.running("raw")[0]]
    for machine in ending:
        serving(full, machine)
    with stops(engine) as stopped:
        for machine in ending:
            end(full, machine)
        wait_for_ends(full, *ending)
        names = {machine.name for machine in ending}
        full.wait_for(lambda: names <= stopped.keys(), "libvirt's events have come", PATIENCE_SECONDS)
    for machine in ending:
        took_seconds = (machine.directory / "finished").stat().st_mtime - stopped[machine.name]
        record_property(f"seconds from STOPPED to accounted, {machine.machinetype}", round(took_seconds, 2))
        assert took_seconds < 20, "much sooner than a cycle"
        record = records(full)[machine.uuid]
        assert message(machine) == "200 done"
        assert int(record["CpuDuration"]) >= 1
        assert int(record["MemoryReal"]) > 32 * 1024


def test_what_people_do_to_domains_ends_them_as_specified(engine: PrivateLibvirt, full: FactorySite) -> None:
    destroyed, suspended, crashed = full.running("still")
    kept = uuids(full) - {machine.uuid for machine in (destroyed, suspended, crashed)}
    engine.virsh("destroy", destroyed.name)
    engine.virsh("suspend", suspended.name)
    os.kill(engine.processes(crashed.name)[0], signal.SIGKILL)
    wait_for_ends(full, destroyed, suspended, crashed)
    assert [message(machine) for machine in (destroyed, suspended, crashed)] == ["", "700 Paused", ""]
    assert "destroyed after" in full.vac("machine", destroyed.uuid).stdout
    ended = {one["uuid"]: one for one in json.loads(full.vac("history", "--json").stdout)}
    reasons = [ended[machine.uuid]["shutoff_reason"] for machine in (destroyed, suspended, crashed)]
    assert reasons == ["destroyed", "destroyed", "crashed"]
    assert kept <= uuids(full)


def test_machines_told_to_end_shut_down_and_hold_up_nothing(
    engine: PrivateLibvirt, full: FactorySite
) -> None:
    deaf, polite = full.running("still")[0], full.running("cd")
    told = [deaf, *polite]
    for machine in polite:
        serving(full, machine)
    (process,) = engine.processes(deaf.name)
    os.kill(process, signal.SIGSTOP)
    for machine in told:
        assert full.vac("destroy", machine.name).returncode == 0
    end_beside(full)
    wait_for_ends(full, *polite)
    full.wait_for(lambda: len(full.running()) == SLOTS, "they are replaced", PATIENCE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
    wait_for_ends(full, deaf)
    times = [(machine.directory / "finished").stat().st_mtime for machine in (deaf, *polite)]
    assert max(times[1:]) < times[0], "none waits for the one that doesn't hear"
    for machine in polite:
        assert message(machine).startswith("100 ")
        assert "Power down" in console(machine)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP])
def test_an_outage_of_libvirtd_loses_and_doubles_nothing(
    engine: PrivateLibvirt, full: FactorySite, how: signal.Signals
) -> None:
    lost, *others = full.running("still") + full.running("cd") + full.running("raw")
    kept = {machine.uuid for machine in others}
    with contextlib.ExitStack() as stack:
        if how is signal.SIGSTOP:
            stack.enter_context(engine.hanging())
        else:
            engine.stop(how)
            stack.callback(engine.start)
        full.wake()
        full.wait_for(lambda: "libvirt" in why(full), "`vac why` says so", PATIENCE_SECONDS)
        os.kill(engine.processes(lost.name)[0], signal.SIGKILL)
        end_beside(full)
        assert not [machine for machine in (lost, *others) if ended(machine)]
    full.wake()
    wait_for_ends(full, lost)
    full.wait_for(lambda: "libvirt" not in why(full), "`vac why` has nothing to say of it", PATIENCE_SECONDS)
    full.wait_for(lambda: len(full.running()) == SLOTS, "all slots are taken again", PATIENCE_SECONDS)
    assert kept <= uuids(full)


def test_a_factory_that_is_killed_finds_its_machines_again(engine: PrivateLibvirt, full: FactorySite) -> None:
    lost, *others = full.running("still") + full.running("cd")
    full.stop(signal.SIGKILL)
    os.kill(engine.processes(lost.name)[0], signal.SIGKILL)
    full.start(VACD)
    full.wait_for(lambda: ended(lost), "the end that nobody saw is written", PATIENCE_SECONDS)
    full.wait_for(lambda: len(full.running()) == SLOTS, "all slots are taken again", PATIENCE_SECONDS)
    assert {machine.uuid for machine in others} <= uuids(full)
    assert len(records(full)) <= len(full.lives()), "none has two"


def why(site: FactorySite) -> str:
    return site.vac("why", "still").stdout


def test_nothing_of_an_ended_machine_is_left(engine: PrivateLibvirt, full: FactorySite) -> None:
    over = [Path(entry) for entry in full.state.machines.iterdir() if (entry / "finished").exists()]
    assert over
    assert not [path for directory in over for path in directory.glob("root.*")]
    with engine.connection() as connection:
        assert {domain.UUIDString() for domain in connection.listAllDomains()} <= uuids(full)
        assert connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE) == []
