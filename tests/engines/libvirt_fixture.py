"""A libvirtd of the tests' own: own directories, socket, virtlogd and namespaces for network and mounts.

It touches no hypervisor that runs already, can be killed, stopped and restarted under its machines, and leaves
neither processes nor files behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, TypeVar

import libvirt

from tests.conftest import require_root, require_tool
from tests.engines.guest_images import CACHE
from tests.waiting import PATIENCE_SECONDS, wait_for, wait_until_stopped
from vac.drivers.libvirt.libvirt_api import start_event_loop
from vac.drivers.libvirt.libvirt_domain import NETWORK

_Result = TypeVar("_Result")
TOOLS = ("libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "qemu-img", "dnsmasq", "ip", "nsenter")
PRIVATE = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "etc": "/etc/libvirt",
}
"""Directories that libvirtd doesn't let anybody choose: it gets its own by mounts."""
CONFIGURATION = """
mkdir -p /run/libvirt
cp /etc/hosts "$0/hosts"; mount --bind "$0/hosts" /etc/hosts
cp -a /etc/libvirt/qemu.conf /etc/libvirt/nwfilter "$0/etc/"
touch "$0/etc/libvirtd.conf"
if [ -c /dev/kvm ]; then
    mknod -m 666 "$0/kvm" c 10 232
    mount --bind "$0/kvm" /dev/kvm
fi
"""
"""/dev/kvm that root alone may use would have libvirtd examine QEMU again, for minutes, at each machine."""
ISOLATED = f"""<network><name>{NETWORK}</name><bridge name="virbr1" stp="off"/>
<ip address="169.254.169.253" netmask="255.255.0.0"/></network>"""
"""A network of the usual name that leads nowhere."""


class PrivateLibvirt:
    """One libvirtd, which runs from the start."""

    def __init__(self, virtlogd: str = "") -> None:
        """virtlogd: lines of its configuration."""
        require_root()
        for tool in TOOLS:
            require_tool(tool)
        self.directory = Path(tempfile.mkdtemp(prefix="vac-libvirt-", dir="/var/tmp"))
        self.directory.chmod(0o711)
        self.uri = f"qemu+unix:///system?socket={self.directory}/run/libvirt-sock"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in PRIVATE:
            (self.directory / name).mkdir()
        (self.directory / "etc/virtlogd.conf").write_text(virtlogd)
        self._share_cache()
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sleep", "infinity"]
        )
        try:
            wait_for(self._apart, "the namespaces are there")
            self.run("ip", "link", "set", "lo", "up")
            self.run("sh", "-eu", "-c", CONFIGURATION, str(self.directory))
            for name, place in PRIVATE.items():
                self.run("mount", "--bind", str((self.directory / name).resolve()), place)
            self._launch("virtlogd", "virtlogd", "--pid-file", f"{self.directory}/virtlogd.pid")
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def enter(self) -> list[str]:
        """Words before a command that is to run in libvirtd's network and mount namespaces."""
        namespaces = f"/proc/{self._holder.pid}/ns"
        return ["nsenter", f"--net={namespaces}/net", f"--mount={namespaces}/mnt"]

    @property
    def proc(self) -> Path:
        """The /proc of a process there, for its network and mounts."""
        return Path(f"/proc/{self._holder.pid}")

    def run(self, *command: str) -> None:
        """Run a command there."""
        subprocess.run([*self.enter, *command], check=True)

    def inside(self, call: Callable[[], _Result]) -> _Result:
        """Return the result of call() in a thread whose network namespace is libvirtd's."""
        results: list[_Result] = []

        def enter() -> None:
            with Path(f"/proc/{self._holder.pid}/ns/net").open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            results.append(call())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return results[0]

    def virsh(self, *words: str) -> str:
        """Return virsh's output."""
        command = ["virsh", "--quiet", "--connect", self.uri, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        assert done.returncode == 0, f"virsh {' '.join(words)}: {done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        """A connection of the test's own."""
        start_event_loop()
        connection = libvirt.open(self.uri)
        try:
            yield connection
        finally:
            connection.close()

    def define_network(self, xml: str = ISOLATED) -> None:
        """Define and start a network."""
        with self.connection() as connection:
            connection.networkDefineXML(xml).create()

    def start(self) -> None:
        """Start libvirtd and wait until it answers."""
        self._launch("libvirtd", "libvirtd", "--pid-file", f"{self.directory}/libvirtd.pid")
        wait_for(self.answers, lambda: f"libvirtd answers:\n{self._log()}")

    def answers(self) -> bool:
        """Return True if libvirtd answers now."""
        daemon = self._processes["libvirtd"]
        assert daemon.poll() is None, f"libvirtd has ended:\n{self._log()}"
        command = ["virsh", "--connect", self.uri, "uri"]
        return (
            subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS, check=False).returncode
            == 0
        )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End libvirtd alone; machines go on."""
        daemon = self._processes["libvirtd"]
        daemon.send_signal(how)
        daemon.wait(PATIENCE_SECONDS)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Within it libvirtd accepts connections and answers nothing."""
        daemon = self._processes["libvirtd"].pid
        os.kill(daemon, signal.SIGSTOP)
        try:
            wait_until_stopped(daemon)
            yield
        finally:
            os.kill(daemon, signal.SIGCONT)

    def processes(self, words: str = "") -> list[int]:
        """All processes in its network namespace that have this in their command lines, but the one that holds it."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                inside = entry.name.isdigit() and _namespace(entry.name) == _namespace(self._holder.pid)
                if (
                    inside
                    and int(entry.name) != self._holder.pid
                    and words.encode() in (entry / "cmdline").read_bytes()
                ):
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """End everything and remove what is left of it."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for own in self._processes.values():
            own.wait(PATIENCE_SECONDS)
        wait_for(lambda: not self.processes(), lambda: f"they are gone: {self.processes()}")
        self._holder.kill()
        self._holder.wait()
        shutil.rmtree(self.directory)

    def _apart(self) -> bool:
        return all(_namespace("self", kind) != _namespace(self._holder.pid, kind) for kind in ("net", "mnt"))

    def _share_cache(self) -> None:
        """Keep QEMU's capabilities, which take libvirtd 8 s to find, for the next one."""
        CACHE.mkdir(mode=0o755, exist_ok=True)
        (CACHE / "libvirt").mkdir(exist_ok=True)
        (self.directory / "cache").rmdir()
        (self.directory / "cache").symlink_to(CACHE / "libvirt")

    def _launch(self, name: str, *command: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*self.enter, *command], stdout=log, stderr=log, start_new_session=True
            )

    def _log(self) -> str:
        return (self.directory / "libvirtd.log").read_text(errors="replace")[-2000:]


def _namespace(process: object, kind: str = "net") -> str:
    return str(Path(f"/proc/{process}/ns/{kind}").readlink())
