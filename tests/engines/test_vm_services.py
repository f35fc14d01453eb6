"""A real guest on the factory's network: what it gets, and what of its neighbour's it doesn't."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Callable

import pytest

from tests.engines.guest_images import CONTEXTUALIZED, Guest, boot_iso
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.libvirt_machines import console
from tests.engines.web_fixture import SHORT, WebSite, settings_for
from tests.unit.state_dirs import machinetype_of
from tests.waiting import wait_for
from vac.config.settings import Settings
from vac.drivers.base import MachineSpec
from vac.drivers.libvirt import libvirt_network
from vac.drivers.libvirt.libvirt_domain import FILTER
from vac.drivers.libvirt.libvirt_driver import LibvirtDriver
from vac.host.nat import NatHost
from vac.machines.layout import slot_address

pytestmark = pytest.mark.engine
SECRET = b"the neighbour's secret"
SCRIPT = """#!/bin/sh
M=http://169.254.169.254 F=http://169.254.169.253
echo "JOB $(wget -q -O - $F/jobfeatures/job_id) $(wget -q -O - $M/latest/meta-data/hostname)"
echo "NEIGHBOUR $(nslookup NODE-01.example.org 2>&1 | tr '\\n' ' ')"
echo "PUT $(put heartbeat alive)"
wget -q -O /dev/null $M/NODE-01/user-data || echo "NOT FOUND"
while ping -c 1 -W 1 169.254.169.254 >/dev/null; do sleep 1; done
echo "LOST"
until ping -c 1 -W 1 169.254.169.254 >/dev/null; do sleep 1; done
wget -q -O /dev/null $M/latest/user-data &&
echo "FOUND AGAIN"
ifconfig eth0 169.254.169.1 netmask 255.255.0.0
wget -q -O /tmp/stolen $M/latest/user-data & sleep 6
echo "STOLEN <$(cat /tmp/stolen)>"
ifconfig eth0 169.254.169.0 netmask 255.255.0.0
ip link set eth0 down; ip link set eth0 address 56:4d:a9:fe:a9:01; ip link set eth0 up
ifconfig eth0 169.254.169.1 netmask 255.255.0.0
wget -q -O /tmp/stolen2 $M/latest/user-data & wget -q -O /tmp/job $F/jobfeatures/job_id &
put stolen stolen >/tmp/put & sleep 6
echo "STOLEN WITH ITS MAC <$(cat /tmp/stolen2)> JOB <$(cat /tmp/job)> PUT <$(cat /tmp/put)>"
ip link set eth0 down; ip link set eth0 address 56:4d:a9:fe:a9:00; ip link set eth0 up
ifconfig eth0 169.254.169.0 netmask 255.255.0.0
for i in 1 2 3 4 5; do put shutdown_message "200 Done" && break; sleep 1; done
echo "DONE"
""".replace("NODE", SHORT).encode()


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateLibvirt]:
    with closing(PrivateLibvirt()) as engine:
        yield engine


def spec_of(web: WebSite, settings: Settings, image: Path) -> MachineSpec:
    machine = web.machines[0]
    return MachineSpec(
        name=machine.name,
        uuid=machine.uuid,
        machinetype=machinetype_of(machine_model="cernvm4", root_image=str(image), disk_gb_per_processor=1),
        settings=settings,
        processors=1,
        memory_bytes=96 * 1024 * 1024,
        directory=machine.directory,
        files=web.state.root,
        address=slot_address(0),
    )


def test_a_guest_is_served_its_own_across_a_network_repair(
    engine: PrivateLibvirt,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(libvirt_network, "CHECK_SECONDS", 1.0)
    home = engine.directory / "site"
    home.mkdir(mode=0o755)
    web = WebSite(home, engine.enter, [SCRIPT, SECRET])
    settings = settings_for(engine, 2)
    driver = LibvirtDriver(settings, nat=NatHost(tuple(engine.enter), home / "hosts"))
    spec = spec_of(web, settings, boot_iso(Guest(CONTEXTUALIZED)))

    def said(words: str) -> None:
        wait_for(lambda: words in console(spec), lambda: f"{words!r} on the console: {console(spec)}")

    with closing(web), closing(driver):
        for role in ("metadata", "mjf"):
            web.start(role)
        wait_for(
            lambda: driver.prepare(spec.machinetype, settings, spec.files) is None,
            lambda: f"it can be created: {driver.prepare(spec.machinetype, settings, spec.files)}",
        )
        engine.run("sh", "-c", f"cat {home}/hosts >/etc/hosts")
        for pid in engine.processes("dnsmasq"):
            os.kill(pid, signal.SIGHUP)
        driver.create(spec)
        said("NOT FOUND")
        assert f"JOB {spec.uuid} {spec.name}" in console(spec)
        assert re.search(rf"dhcp 169\.254\.169\.0/16 host={SHORT}-00\b", console(spec))
        assert re.search(r"NEIGHBOUR.* 169\.254\.169\.1\b", console(spec)), console(spec)
        assert "PUT HTTP/1.1 201 Created" in console(spec)
        engine.virsh("net-destroy", "vac_169.254.0.0")
        said("LOST")
        wait_for(lambda: driver.list() and "FOUND AGAIN" in console(spec), lambda: console(spec))
        filtered = FILTER in engine.virsh("dumpxml", spec.name)
        told = any(FILTER in notice for notice in driver.notices())
        said("DONE")
        assert (web.machines[0].directory / "joboutputs" / "heartbeat").read_text() == "alive"
        assert (web.machines[0].directory / "joboutputs" / "shutdown_message").read_text() == "200 Done"
        refused = "this host refuses it" in caplog.text
        assert filtered == (FILTER in engine.virsh("nwfilter-list") and not refused)
        assert told == (not filtered), "`vac why` tells of VMs without it"
        record_property("clean-traffic", filtered)
        print(f"{FILTER}: this host {'has' if filtered else 'lacks'} it")
        if filtered:
            assert SECRET.decode() not in console(spec)
            assert "STOLEN <>" in console(spec)
            assert "STOLEN WITH ITS MAC <> JOB <> PUT <>" in console(spec)
            assert list((web.machines[1].directory / "joboutputs").iterdir()) == []
        driver.destroy(spec.name, spec.uuid)
