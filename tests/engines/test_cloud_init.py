"""Real cloud-init: it takes Vac for OpenStack, or for EC2 if it is told so, and runs the machine's user_data."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.engines.cloud_image import cloud_image
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.libvirt_machines import MIB, console
from tests.engines.web_fixture import WebSite, settings_for
from tests.unit.state_dirs import machinetype_of
from tests.waiting import wait_for
from vac.drivers.base import EngineState, MachineSpec
from vac.drivers.libvirt.libvirt_driver import LibvirtDriver
from vac.host.nat import NatHost
from vac.machines.layout import slot_address

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1500)]
PATIENCE_SECONDS = 600.0
SCRIPT = b"""#!/bin/sh
cat >/run/tell.py <<'EOF'
import re, subprocess, urllib.request
status = subprocess.run(["cloud-init", "status", "--wait"], capture_output=True, text=True).stdout.split()[-1]
source = subprocess.run(["cloud-id"], capture_output=True, text=True).stdout.strip()
name = open("/proc/sys/kernel/hostname").read().strip()
log = open("/var/log/cloud-init.log").read()
got = re.search("Read from [^ ]*/latest/api/token .200", log) and "metadata-token': 'REDACTED'" in log
token = "token" if got else "none"
url = "http://169.254.169.253/joboutputs/told"
urllib.request.urlopen(urllib.request.Request(url, f"{status} {source} {name} {token}".encode(), method="PUT"))
subprocess.run(["systemctl", "poweroff"])
EOF
systemd-run --no-block python3 /run/tell.py
"""
"""It can't wait for cloud-init itself, whose part it is."""


@pytest.mark.parametrize(
    ("aws", "source"), [(False, "openstack"), (True, "aws")], ids=["left to itself", "told to be on AWS"]
)
def test_cloud_init_finds_vac_and_runs_its_user_data(aws: bool, source: str) -> None:
    image = cloud_image(aws)
    with closing(PrivateLibvirt()) as engine:
        home = engine.directory / "site"
        home.mkdir(mode=0o755)
        settings = settings_for(engine, 1)
        nat = NatHost(tuple(engine.enter), home / "hosts")
        web = WebSite(home, engine.enter, [SCRIPT])
        with closing(web), closing(LibvirtDriver(settings, nat=nat)) as driver:
            machine = web.machines[0]
            spec = MachineSpec(
                name=machine.name,
                uuid=machine.uuid,
                machinetype=machinetype_of(machine_model="vm-raw", root_image=str(image)),
                settings=settings,
                processors=1,
                memory_bytes=512 * MIB,
                directory=machine.directory,
                files=home,
                address=slot_address(0),
            )
            for role in ("metadata", "mjf"):
                web.start(role)
            wait_for(lambda: driver.prepare(spec.machinetype, settings, home) is None, "it can be made")
            driver.create(spec)
            told = machine.directory / "joboutputs" / "told"
            wait_for(told.exists, lambda: f"it has told: {console(spec)}", PATIENCE_SECONDS)
            assert told.read_text() == (
                f"done {source} {machine.name.partition('.')[0]} {'token' if aws else 'none'}"
            )
            wait_for(lambda: driver.list()[0].state is EngineState.ENDED, "it has ended", PATIENCE_SECONDS)
            driver.destroy(spec.name, spec.uuid)
