"""A hostile VM beside an honest one, on a real hypervisor: its rows of the tables in docs/security.md."""

from __future__ import annotations

import contextlib
import re
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.engines.guest_images import CONTEXTUALIZED, MODULES, Guest, boot_iso
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.libvirt_machines import console
from tests.engines.web_fixture import WebSite, settings_for
from tests.unit.state_dirs import machinetype_of
from tests.waiting import wait_for
from vac.config.settings import Settings
from vac.drivers.base import EngineState, MachineSpec
from vac.drivers.libvirt.libvirt_domain import FILTER, METADATA, SERVER
from vac.drivers.libvirt.libvirt_driver import LibvirtDriver
from vac.host.nat import NatHost
from vac.machines.layout import slot_address
from vac.machines.outputs import FILE_LIMIT_BYTES, MACHINE_LIMIT_BYTES, shutdown_message

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
GUEST_SECONDS = 1500.0
"""For each part of the attempts in an emulated VM, which take a minute or two on an idle host."""
DISK_BYTES = 10**9
CONSOLE_BYTES = 400_000
CONSOLE_FILE_BYTES = 2**16
"""Of which virtlogd keeps one and three older ones; its own default is 2 MiB, which takes an emulated VM minutes."""
PORT = 5999
MEMORY_BYTES = 96 * 2**20
SECRET = "the neighbour's secret"
REACHING = (
    *("path", "header", "name", "feature", "method", "endless", "screen", "link-local"),
    *("host-port", "neighbour-port", "loopback", "address", "lease"),
)
"""Attempts that come to nothing where they are stopped."""
PRIVATE_DEVICES = {1: "network", 2: "disk", 4: "random numbers", 5: "memory balloon"}
"""Virtio devices that share nothing with the host, by number."""
HONEST = b"""#!/bin/sh
# SECRET
while :; do echo REACHED | nc -l -p 9999; done &
while :; do put heartbeat "$(cut -d' ' -f1 /proc/uptime)" >/dev/null; sleep 5; done
""".replace(b"SECRET", SECRET.encode())
HOSTILE = r"""#!/bin/sh
M=http://METADATA F=http://SERVER
told=""
tell() { told="$told$1=$(echo "$2" | tr '\n' ' ')
"; }
own() { ip link set eth0 down; ip link set eth0 address 56:4d:a9:fe:a9:$1; ip link set eth0 up
        ifconfig eth0 169.254.169.$2 netmask 255.255.0.0; sleep 1; }
get() { timeout 6 wget -q -O - "$@" 2>/dev/null; }
reached() { timeout 4 nc $1 $2 </dev/null 2>/dev/null | head -c 7; }
raw() { printf '%s HTTP/1.1\r\nHost: SERVER\r\nConnection: close\r\nContent-Length: %s\r\n\r\n' "$1" $2
        [ $2 = 0 ] || head -c $2 /dev/zero; }
sent() { timeout ${1:-20} nc SERVER 80 | head -n 1 | grep ' 20'; }

tell devices "$(cat /sys/bus/virtio/devices/*/device | tr '\n' ' ')"
tell memory "$(free -m | awk '/^Mem/ {print $2}')"
tell processors "$(nproc)"

for path in latest/../../01/user-data 169.254.169.1/latest/user-data latest/../user-data machines/ ..%2f..%2fslots
do tell path "$(get $M/$path)"; tell path "$(get $F/$path)"; done
for name in X-Forwarded-For X-Real-IP Forwarded Host
do tell header "$(get --header "$name: 169.254.169.1" $M/latest/user-data | sed -n '2s/^#/&/p')"; done

long=$(head -c 300 /dev/zero | tr '\0' n)
for name in ../user_data ..%2fuser_data a/b .. %2e%2e%2fjobfeatures%2fx '' 'a%0ab' '%1b[2J' $long
do tell name "$(raw "PUT /joboutputs/$name" 3 | sent)"; done
tell feature "$(raw 'PUT /jobfeatures/shutdowntime_job' 1 | sent)"
tell method "$(raw 'DELETE /joboutputs/heartbeat' 0 | sent)"
tell endless "$( { raw 'PUT /joboutputs/endless' 0 | sed 's/^Content-Length: 0/Content-Length: 99999999999/'
    cat /dev/zero; } | sent 30)"
for number in 1 2 3 4 5; do raw "PUT /joboutputs/large$number" 33554432 | sent 120 >/dev/null; done
put large2 "room for the results" >/dev/null; put large5 "over" >/dev/null
put heartbeat "$(printf '\033[2J\000\377')" >/dev/null

for port in 5900 5901 5902 5903; do for host in SERVER METADATA 169.254.169.1
do tell screen "$(reached $host $port)"; done; done
for host in 169.254.170.2 169.254.42.42 169.254.169.123
do tell link-local "$(reached $host 80)"; done
tell host-port "$(reached SERVER 6000)"
tell neighbour-port "$(reached 169.254.169.1 9999)"
sysctl -q -w net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.eth0.route_localnet=1
ip addr flush dev lo; ip route add 127.0.0.1/32 via SERVER dev eth0 src 169.254.169.0
tell loopback "$(reached 127.0.0.1 PORT)"
echo "$(ip route get 127.0.0.1 | head -n 1)"
ip route del 127.0.0.1/32

own 00 1
tell address "$(get $M/latest/user-data)"
own 01 1
put stolen stolen >/tmp/put &
tell address "$(get $M/latest/user-data; get $F/jobfeatures/job_id; sleep 3; cat /tmp/put)"
tell lease "$(timeout 20 udhcpc -i eth0 -n -q -t 4 -T 1 -s /bin/true 2>&1 | grep -o 'lease of .* obtained')"
own 00 0

[ -b /dev/vda ] && dd if=/dev/zero of=/dev/vda bs=1M seek=900 count=600 2>/tmp/dd
tell disk "$(grep -c 'No space' /tmp/dd)"
until put told "$told" | grep -q 201; do sleep 1; done
yes "$(head -c 1000 /dev/zero | tr '\0' y)" | head -c FLOOD
message=$(printf '200 done\033[31m\n999 forged\nCRITICAL forged line')
until put shutdown_message "$message" | grep -q 201; do sleep 1; done
sleep 600
"""


def page_table() -> dict[str, str]:
    """Return the page's table of VMs' attempts."""
    return dict(re.findall(r"^\| `(vm-[a-z-]+)` .*\| (stopped|possible) \|$", PAGE.read_text(), re.MULTILINE))


@dataclass
class Place:
    """A hypervisor of its own with web services and two slots: of a hostile VM, and of an honest one."""

    engine: PrivateLibvirt
    web: WebSite
    driver: LibvirtDriver
    settings: Settings

    def boot(self, number: int) -> MachineSpec:
        """Create the VM of this slot."""
        machine = self.web.machines[number]
        guest = Guest(CONTEXTUALIZED, [*MODULES, "vmw_vsock_virtio_transport"])
        kind = machinetype_of(
            machine_model="cernvm4", root_image=str(boot_iso(guest)), disk_gb_per_processor=1
        )
        files, address = self.web.state.root, slot_address(number)
        spec = MachineSpec(
            machine.name,
            machine.uuid,
            kind,
            self.settings,
            1,
            MEMORY_BYTES,
            machine.directory,
            files,
            address,
        )
        wait_for(lambda: self.driver.prepare(kind, self.settings, files) is None, "it can be created")
        self.driver.create(spec)
        return spec

    def running(self) -> set[str]:
        """Names of VMs that run."""
        return {each.name for each in self.driver.list() if each.state is EngineState.RUNNING}

    def disk_bytes(self, spec: MachineSpec) -> int:
        """Size of the VM's disk on the host, which is a file without a name."""
        (process,) = self.engine.processes(f"guest={spec.name}")
        files = {}
        for opened in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                status = opened.stat()
                if (
                    stat.S_ISREG(status.st_mode)
                    and not status.st_nlink
                    and "memfd" not in str(opened.readlink())
                ):
                    files[status.st_ino] = max(status.st_size, 512 * status.st_blocks)
        return sum(files.values())


@pytest.fixture
def place() -> Iterator[Place]:
    words = {"METADATA": METADATA, "SERVER": SERVER, "PORT": str(PORT), "FLOOD": str(CONSOLE_BYTES)}
    script = re.sub("|".join(words), lambda found: words[found[0]], HOSTILE)
    with closing(PrivateLibvirt(f"max_size = {CONSOLE_FILE_BYTES}\n")) as engine:
        home = engine.directory / "site"
        home.mkdir(mode=0o755)
        settings = settings_for(engine, 2)
        nat = NatHost(tuple(engine.enter), home / "hosts")
        web = WebSite(home, engine.enter, [script.encode(), HONEST])
        with closing(web), closing(LibvirtDriver(settings, nat=nat)) as driver:
            for role in ("metadata", "mjf"):
                web.start(role)
            yield Place(engine, web, driver, settings)


@pytest.fixture
def listeners(place: Place) -> Iterator[None]:
    """Services of the host: one at 127.0.0.1, one at the address that VMs know."""
    with contextlib.ExitStack() as stack:
        for address in (("127.0.0.1", PORT), ("0.0.0.0", PORT + 1)):
            listener = place.engine.inside(partial(socket.create_server, address))
            stack.enter_context(listener)
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
        yield


def serve(listener: socket.socket) -> None:
    """Tell whoever connects that it has reached this host."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"REACHED\n")


@pytest.mark.usefixtures("listeners")
def test_a_hostile_vm(place: Place) -> None:
    honest, hostile = place.boot(1), place.boot(0)
    outputs, kept = (place.web.machines[number].directory / "joboutputs" for number in (0, 1))
    for name, what in (("large5", "it sends files"), ("told", "all has been tried")):
        wait_for((outputs / name).exists, lambda: f"{what}: {console(hostile)[-1000:]}", GUEST_SECONDS)  # noqa: B023
    lines = [line.partition("=")[::2] for line in (outputs / "told").read_text().splitlines()]
    told: dict[str, list[str]] = {}
    for name, result in lines:
        told.setdefault(name, []).append(result.strip())
    print("\n".join(f"{name}: {results}" for name, results in told.items()))

    filtered = FILTER in place.engine.virsh("dumpxml", hostile.name)
    found = {f"vm-{name}": _reached(told[name]) for name in REACHING}
    said = page_table()
    assert set(said) == set(found), "the page has a row for each"
    if not filtered:  # `vac why` and `vac doctor` tell
        said["vm-address"] = found["vm-address"]
        said["vm-lease"] = found["vm-lease"]
    assert found == said
    assert SECRET not in str(told)

    devices = {int(device, 16) for device in told["devices"][0].split()}
    assert devices <= set(PRIVATE_DEVICES), "none that shares anything with the host"
    assert told["processors"] == ["1"]
    assert int(told["memory"][0]) <= MEMORY_BYTES // 2**20
    assert told["disk"] == ["1"], "it is full, for the VM"
    assert DISK_BYTES // 2 < place.disk_bytes(hostile) <= DISK_BYTES * 1.01
    _leaves_little(outputs)
    assert {path.name for path in kept.iterdir()} == {"heartbeat"}

    wait_for((outputs / "shutdown_message").exists, "it has flooded its console", GUEST_SECONDS)
    consoles = [*hostile.directory.glob("console.log*")]
    assert 1 < len(consoles) <= 4
    assert sum(path.stat().st_size for path in consoles) <= 4 * CONSOLE_FILE_BYTES
    message = shutdown_message(place.web.machines[0]) or ""
    assert message.startswith("200 done")
    assert "\n" not in message
    before = (kept / "heartbeat").read_text()
    wait_for(lambda: (kept / "heartbeat").read_text() != before, "the honest VM goes on")
    assert place.running() == {honest.name, hostile.name}
    for spec in (honest, hostile):
        place.driver.destroy(spec.name, spec.uuid)


def _reached(results: list[str]) -> str:
    return "possible" if any(results) else "stopped"


def _leaves_little(outputs: Path) -> None:
    """Its files are plain ones, not programs, and not many."""
    left = {path.name: path.lstat() for path in outputs.iterdir()}
    assert set(left) <= {
        "told",
        "heartbeat",
        "shutdown_message",
        *(f"large{number}" for number in range(1, 6)),
    }
    for status in left.values():
        assert stat.S_ISREG(status.st_mode)
        assert not status.st_mode & 0o7111
    sizes = [status.st_size for status in left.values()]
    assert 2**25 in sizes, "what is allowed has come"
    assert max(sizes) <= FILE_LIMIT_BYTES
    assert sum(sizes) <= MACHINE_LIMIT_BYTES
