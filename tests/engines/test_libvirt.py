"""The libvirt driver on a real hypervisor, with tiny guests of plain QEMU."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certify
from tests.driver_contract import details_of
from tests.engines.guest_images import (
    ACPI,
    IDLE,
    PREAMBLE,
    Guest,
    boot_iso,
    disk_qcow2,
    halting_iso,
    initramfs,
    kernel,
)
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.libvirt_machines import MIB, SHORT, Machines, console
from tests.signed_images import signed_image
from tests.waiting import PATIENCE_SECONDS, wait_for
from vac.config.settings import Settings
from vac.context.signatures import SignedImages
from vac.drivers.base import CreationFailed, EngineState, EngineUnavailable, MachineSpec
from vac.drivers.libvirt import libvirt_api, libvirt_driver
from vac.drivers.libvirt.libvirt_driver import LibvirtDriver

pytestmark = pytest.mark.engine

TELLING = (
    PREAMBLE
    + ACPI
    + """
say product=$(cat /sys/class/dmi/id/product_name)
say mac=$(cat /sys/class/net/eth0/address) cpus=$(nproc)
say disk=$(cat /sys/block/vda/size)
echo 'written by the guest' | dd of=/dev/vda conv=fsync 2>/dev/null && say "wrote $(head -c 20 /dev/vda)"
say ready
"""
)
"""Says what it sees, and writes over the beginning of its disk."""
ENDING = TELLING + "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; poweroff -f\n"
WAITING = TELLING + "while :; do sleep 3600; done\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateLibvirt]:
    with contextlib.closing(PrivateLibvirt()) as engine:
        engine.define_network()
        yield engine


@pytest.fixture
def machines(engine: PrivateLibvirt) -> Iterator[Machines]:
    with contextlib.closing(Machines(engine)) as machines:
        try:
            yield machines
        finally:
            machines.successor().list()
            machines.destroy_all()
            assert not engine.processes("qemu-system")


def own_copy(engine: PrivateLibvirt, image: Path, mode: int = 0o644) -> Path:
    """The image as a site has it."""
    copy = engine.directory / f"{image.stem[:8]}-{mode:o}{image.suffix}"
    if not copy.exists():
        shutil.copyfile(image, copy)
        copy.chmod(mode)
    return copy


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process, as the kernel counts it; 0.0 if it has gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _has_a_screen_for_root_only(engine: PrivateLibvirt, display: str) -> None:
    """A TCP port on the loopback interface would be any account's, and any machine's in the host's network."""
    engine.run("test", "-S", display)
    with pytest.raises(subprocess.CalledProcessError):
        engine.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "test", "-e", display)
    ports = [
        line.split()[1].rpartition(":")[2] for line in (engine.proc / "net/tcp").read_text().splitlines()[1:]
    ]
    assert not [port for port in ports if 5900 <= int(port, 16) < 6400]


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_machine_boots_from_cd_and_its_disk_goes_with_it(
    engine: PrivateLibvirt, machines: Machines, mode: int
) -> None:
    image = own_copy(engine, boot_iso(Guest(ENDING)), mode)
    before = digest(image)
    spec = machines.spec(image, machine_model="cernvm3")
    with machines.listening() as news:
        machines.create(spec)
        assert [path.name for path in spec.directory.iterdir()] == ["console.log"]
        assert machines.state(spec) is EngineState.RUNNING
        _has_a_screen_for_root_only(engine, details_of(machines.driver, spec.uuid)["display"])
        (process,) = engine.processes("qemu-system")
        machines.wait_for_console(spec, "ready")
        told = console(spec)
        used = [cpu_seconds(process)]

        def over() -> bool:
            used.append(cpu_seconds(process))
            return not used[-1]

        wait_for(over, "it has powered off")
        while news.get(timeout=PATIENCE_SECONDS) != spec.name or machines.state(spec) is EngineState.RUNNING:
            continue
    assert "product=OpenStack Nova" in told
    assert "mac=56:4d:a9:fe:a9:00 cpus=1" in told
    assert f"disk={10**9 // 512}" in told
    assert "wrote written by the guest" in told
    ended = machines.observed(spec)
    assert ended is not None
    assert ended.state is EngineState.ENDED
    assert (ended.usage.cpu_seconds or 0) >= max(used) / 2
    assert (ended.usage.peak_memory_bytes or 0) > 32 * MIB
    machines.driver.destroy(spec.name, spec.uuid)
    assert machines.state(spec) is None
    assert [path.name for path in spec.directory.iterdir()] == ["console.log"]
    assert digest(image) == before
    assert (image.stat().st_uid == 0) or mode == 0o600


def test_a_machine_boots_from_an_overlay_of_its_image(engine: PrivateLibvirt, machines: Machines) -> None:
    image = own_copy(engine, disk_qcow2(Guest(WAITING)))
    before = digest(image)
    specs = [machines.spec(image, machine_model="vm-raw") for _ in range(2)]
    for spec in specs:
        machines.create(spec)
    for spec in specs:
        machines.wait_for_console(spec, "wrote written by the guest")
        assert machines.state(spec) is EngineState.RUNNING
        assert details_of(machines.driver, spec.uuid)["image"] == str(image)
    assert digest(image) == before
    assert image.stat().st_uid == 0
    assert not list(engine.directory.glob("machine-*/root.qcow2"))


def test_only_what_is_signed_as_it_has_to_be_is_booted(engine: PrivateLibvirt) -> None:
    trusted = engine.directory / "certificates"
    trusted.mkdir()
    root = certify("/DC=org/DC=example/CN=Root CA", ca=True)
    (trusted / "root.pem").write_bytes(root.certificate_pem)
    signer = certify("/DC=org/CN=signer.example.org", root, usage=("digital_signature",))
    good, flipped = (engine.directory / name for name in ("good.iso", "flipped.iso"))
    content = signed_image(halting_iso().read_bytes(), signer)
    good.write_bytes(content)
    flipped.write_bytes(content[:999] + bytes([content[999] ^ 1]) + content[1000:])
    images = SignedImages(Path, trusted, time.time)
    with contextlib.closing(Machines(engine, images.fetch)) as machines:
        for model in ("cernvm4", "vm-raw"):
            dn = {"machine_model": model, "image_signing_dn": r"/CN=signer\.example\.org$"}
            spec = machines.create(machines.spec(good, **dn))
            machines.wait_for_console(spec, "started")
            assert f"{spec.directory}/root.image" in engine.virsh("dumpxml", spec.name)
            assert [path.name for path in spec.directory.iterdir()] == ["console.log"]
        for image, pattern, reason in (
            (flipped, "/CN=signer", "it has been changed since"),
            (good, "/CN=another", "in which image_signing_dn /CN=another isn't found"),
        ):
            refused = machines.spec(image, image_signing_dn=pattern)
            machines.wait_until_refused(refused, reason)
            with pytest.raises(CreationFailed, match=reason):
                machines.driver.create(refused)
            assert list(refused.directory.iterdir()) == []
        assert len(machines.driver.list()) == 2
        machines.destroy_all()


def test_stopped_machines_shut_down_by_themselves_if_they_can(
    engine: PrivateLibvirt, machines: Machines
) -> None:
    driver = machines.driver = machines.successor(grace_seconds=4.0)
    patient = machines.successor(grace_seconds=PATIENCE_SECONDS)
    idle, deaf = boot_iso(Guest(IDLE)), halting_iso()
    images = {"polite": idle, "also": idle, "deaf": deaf, "paused": deaf, "hanging": deaf}
    specs = {name: machines.create(machines.spec(own_copy(engine, image))) for name, image in images.items()}
    for name, spec in specs.items():
        machines.wait_for_console(spec, "ready" if images[name] is idle else "started")
    ended: list[str] = []

    def stop(name: str, spec: MachineSpec) -> None:
        (patient if name in ("polite", "also") else driver).stop(spec.name, spec.uuid)
        ended.append(name)

    with machines.listening():
        engine.virsh("suspend", specs["paused"].name)
        machines.wait_for_state(specs["paused"], EngineState.PAUSED)
        os.kill(engine.processes(specs["hanging"].name)[0], signal.SIGSTOP)
        threads = [threading.Thread(target=stop, args=item) for item in specs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        listed = {machine.name: machine for machine in driver.list()}
    assert sorted(ended) == sorted(specs)
    assert {machine.state for machine in listed.values()} == {EngineState.ENDED}
    assert all((machine.usage.cpu_seconds or 0) > 0 for machine in listed.values())
    assert "Power down" in console(specs["polite"])
    assert "Power down" in console(specs["also"])
    assert "Power down" not in console(specs["deaf"])
    for spec in specs.values():
        driver.stop(spec.name, spec.uuid)
        driver.destroy(spec.name, spec.uuid)
        driver.destroy(spec.name, spec.uuid)
    assert not driver.list()


def test_ends_by_others_are_seen_while_one_qemu_hangs(engine: PrivateLibvirt, machines: Machines) -> None:
    image = own_copy(engine, halting_iso())
    crashing = own_copy(
        engine, boot_iso(Guest(PREAMBLE + "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger\n"))
    )
    with machines.listening() as news:
        destroyed, killed, hanging = (machines.create(machines.spec(image)) for _ in range(3))
        process = {spec.name: engine.processes(spec.name)[0] for spec in (killed, hanging)}
        os.kill(process[hanging.name], signal.SIGSTOP)
        assert len(machines.driver.list()) == 3
        crashed = machines.create(machines.spec(crashing))
        engine.virsh("destroy", destroyed.name)
        os.kill(process[killed.name], signal.SIGKILL)
        for spec in (destroyed, killed, crashed):
            machines.wait_for_state(spec, EngineState.ENDED)
        assert machines.state(hanging) is EngineState.RUNNING
        os.kill(process[hanging.name], signal.SIGCONT)
        told: set[str | None] = set()
        while not {destroyed.name, killed.name, crashed.name} <= told:
            told.add(news.get(timeout=PATIENCE_SECONDS))
    reasons = {one.name: one.usage.shutoff_reason for one in machines.driver.list()}
    assert [reasons[spec.name] for spec in (destroyed, killed)] == ["destroyed", "crashed"]
    assert reasons[crashed.name] == "shutdown", "a kernel that panics starts anew, which ends a machine"


def test_machines_outlive_a_libvirtd_that_is_down_or_hangs(
    engine: PrivateLibvirt, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_api, "KEEPALIVE_SECONDS", 2)
    monkeypatch.setattr(libvirt_api, "OPEN_SECONDS", 5.0)
    spec = machines.create(machines.spec(own_copy(engine, halting_iso())))
    machines.wait_for_console(spec, "started")
    before = machines.observed(spec)
    assert before is not None
    with machines.listening() as news:
        for how in (signal.SIGTERM, signal.SIGKILL):
            engine.stop(how)
            with pytest.raises(EngineUnavailable, match="libvirt"):
                machines.driver.list()
            with pytest.raises(EngineUnavailable):
                machines.driver.stop(spec.name, spec.uuid)
            engine.start()
            wait_for(lambda: machines.observed(spec) is not None, "libvirtd knows its machines again")
            after = machines.observed(spec)
            assert after is not None
            assert after.state is EngineState.RUNNING
            assert (after.usage.cpu_seconds or 0) >= (before.usage.cpu_seconds or 0)
        words = set(iter(news.get, None))
        assert [word for word in words if word and word.startswith("!")]
    machines.driver = machines.successor()
    with machines.listening() as news, engine.hanging():
        assert (news.get(timeout=PATIENCE_SECONDS) or "").endswith("libvirtd doesn't answer")
        for driver in (machines.driver, machines.successor()):
            with pytest.raises(EngineUnavailable, match="libvirtd doesn't answer"):
                driver.list()
    wait_for(lambda: _listed(machines, spec), "it is listed again")
    machines.driver.destroy(spec.name, spec.uuid)


@pytest.mark.parametrize("how", ["hangs", "is down"])
def test_an_end_in_an_outage_is_when_its_process_ended(
    engine: PrivateLibvirt, machines: Machines, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(libvirt_driver, "PID_FILES", engine.directory / "run/qemu")
    spec = machines.create(machines.spec(own_copy(engine, halting_iso())))
    machines.wait_for_state(spec, EngineState.RUNNING)
    with contextlib.ExitStack() as stack:
        if how == "hangs":
            stack.enter_context(engine.hanging())
        else:
            engine.stop()
        [process] = engine.processes(spec.uuid)
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: not engine.processes(spec.uuid), "it has ended")
        ended = time.time()
        wait_for(lambda: time.time() > ended + 5, "a while has passed")
        if how == "is down":
            engine.start()
    machines.wait_for_state(spec, EngineState.ENDED)
    seen = machines.observed(spec)
    assert seen is not None
    assert ended - 2 < (seen.usage.ended_time or 0.0) < ended + 2
    machines.driver.destroy(spec.name, spec.uuid)


def _listed(machines: Machines, spec: MachineSpec) -> bool:
    with contextlib.suppress(EngineUnavailable):
        return machines.state(spec) is EngineState.RUNNING
    return False


def test_only_this_factorys_domains_are_its_machines(engine: PrivateLibvirt, machines: Machines) -> None:
    image = own_copy(engine, halting_iso())
    spec = machines.create(machines.spec(image))
    mine, old, others = f"{SHORT}-88.example.com", f"{SHORT}-99.example.com", f"{SHORT}x-00.example.com"
    with contextlib.closing(Machines(engine, factory_name=f"{SHORT}x.example.com")) as other:
        theirs = other.spec(image)
        other.create(replace(theirs, name=others, address="169.254.169.77"))
        other.create(replace(other.spec(image), name=mine, address="169.254.169.88"))
        older = f"""<domain type="qemu"><name>{old}</name><memory>98304</memory>
<os><type>hvm</type><kernel>{kernel()}</kernel><initrd>{initramfs(Guest(IDLE))}</initrd></os></domain>"""
        with engine.connection() as connection:
            uuid = connection.createXML(older, 0).UUIDString()
        assert [machine.uuid for machine in machines.driver.list()] == [spec.uuid]
        assert [machine.uuid for machine in other.driver.list()] == [theirs.uuid]
        machines.driver.adopt({uuid: old, spec.uuid: spec.name}, {})
        assert {machine.uuid for machine in machines.driver.list()} == {spec.uuid, uuid}
        machines.driver.destroy(old, uuid)
        assert [machine.uuid for machine in machines.driver.list()] == [spec.uuid]
        for name in (others, mine):
            engine.virsh("destroy", name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"root_image": "/no/such.iso"}, "image /no/such.iso: No such file or directory"),
        ({"root_device": "hdz"}, "hdz|IDE"),
        ({"machine_model": "vm-raw", "root_image": "/dev/null"}, "."),
    ],
)
def test_a_failed_machine_leaves_nothing_but_its_reason(
    engine: PrivateLibvirt, machines: Machines, options: dict[str, Any], reason: str
) -> None:
    image = own_copy(engine, halting_iso())
    spec = machines.spec(image)
    first = machines.create(machines.spec(image))
    spec = replace(spec, machinetype=replace(spec.machinetype, **options))
    if spec.machinetype.machine_model == "vm-raw":
        spec = replace(spec, address=first.address)
    with pytest.raises(CreationFailed, match=reason):
        machines.driver.create(spec)
    assert [machine.uuid for machine in machines.driver.list()] == [first.uuid]
    assert not list(spec.directory.glob("root.*"))


def test_a_hypervisor_that_is_not_there_is_told(tmp_path: Path) -> None:
    driver = LibvirtDriver(Settings(libvirt_uri=f"qemu+unix:///system?socket={tmp_path}/none"))
    for call in (driver.list, lambda: next(driver.events())):
        with pytest.raises(EngineUnavailable, match=r"No such file or directory; is libvirtd installed"):
            call()
    driver.close()
