"""A dockerd of the tests' own: own directories, socket, containerd and network name space.

It touches no engine that runs already, can be killed, stopped and restarted under its containers, and leaves
neither processes nor mounts behind: it has network and mount name spaces to itself (a second dockerd in the
same network name space would destroy the first one's bridge).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import docker
import pytest
import requests

IMAGE = "vactest:1"
COMMANDS = (
    "unshare",
    "mount",
    "sh",
    "sleep",
    "cat",
    "cut",
    "id",
    "hostname",
    "ls",
    "touch",
    "kill",
    "dd",
    "grep",
    "env",
    "readlink",
)
NEEDED = {
    "dockerd": "docker.io",
    "docker-init": "tini",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "unshare": "util-linux",
    "iptables": "iptables",
}
START_SECONDS = 60.0


def require_docker() -> None:
    """Fail, saying what to install, on a host where a private dockerd can't be run."""
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        pytest.fail(f"this test needs a Docker engine; as root: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.fail(f"this test needs root, and runs with user id {os.geteuid()}")


def root_tar(extra: dict[str, str] | None = None) -> bytes:
    """A root file system of busybox-static and links, as a tar archive; extra files by path, executable."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(os.path.realpath(shutil.which("busybox") or ""), "bin/busybox")
        for command in COMMANDS:
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        files = {
            "mnt/here": "",
            "etc/passwd": "root:x:0:0::/:/bin/sh\npilot:x:1234:1235::/:/bin/sh\n",
            **(extra or {}),
        }
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.mode, entry.size = 0o755, len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Poll what can't be waited for otherwise; fails the test when it doesn't come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {seconds} s still not: {what}")
        time.sleep(0.02)


class PrivateDocker:
    """One dockerd. The image IMAGE is there from the start."""

    def __init__(self, live_restore: bool = False) -> None:
        require_docker()
        self.directory = Path(tempfile.mkdtemp(prefix="vac-dockerd-", dir="/tmp"))
        self.url = f"unix://{self.directory}/docker.sock"
        self.live_restore = live_restore
        self._daemon: subprocess.Popen[bytes] | None = None
        self._containerd: subprocess.Popen[bytes] | None = None
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sleep", "infinity"]
        )
        try:
            wait_for(self._apart, "the name spaces are there")
            self.run("ip", "link", "set", "lo", "up")
            self._start_containerd()
            self.start()
            with contextlib.closing(self.client()) as client:
                client.import_image_from_data(root_tar(), *IMAGE.split(":"))
        except BaseException:
            self.close()
            raise

    def run(self, *command: str) -> None:
        """Run a command in the engine's network and mount name spaces."""
        subprocess.run([*self._enter(), *command], check=True)

    def client(self) -> docker.APIClient:
        """A new client of the engine; the caller closes it or lets it go."""
        return docker.APIClient(base_url=self.url, version="auto", timeout=30)

    def image_id(self, reference: str) -> str:
        """The engine's id of an image."""
        with contextlib.closing(self.client()) as client:
            return str(client.inspect_image(reference)["Id"])  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Start dockerd and wait until it answers."""
        command = [
            *(*self._enter(), "dockerd", "--host", self.url),
            *("--data-root", f"{self.directory}/data", "--exec-root", f"{self.directory}/exec"),
            *("--pidfile", f"{self.directory}/pid", "--shutdown-timeout", "2"),
            *("--containerd", f"{self.directory}/containerd.sock"),
            *("--cgroup-parent", f"/{self.directory.name}"),
            *(["--live-restore"] if self.live_restore else []),
        ]
        self._daemon = self._launch(command)
        wait_for(self.answers, f"dockerd answers; its log: {self.directory}/log", START_SECONDS)

    def answers(self) -> bool:
        """Does the engine answer now?"""
        if self._daemon is not None and self._daemon.poll() is not None:
            pytest.fail(f"dockerd has ended:\n{(self.directory / 'log').read_text()[-2000:]}")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.settimeout(5)
                probe.connect(str(self.directory / "docker.sock"))
                probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in probe.recv(64)
            except OSError:
                return False

    def kill(self) -> None:
        """Kill dockerd alone, as a crash would; containerd and containers go on."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End dockerd properly; without live-restore it ends its containers."""
        self._end(signal.SIGTERM)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Within it dockerd accepts connections and answers nothing."""
        assert self._daemon is not None
        os.kill(self._daemon.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self._daemon.pid}/task")
        try:
            wait_for(
                lambda: all(
                    (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
                    for task in tasks.iterdir()
                ),
                "all of dockerd has stopped",
            )
            yield
        finally:
            os.kill(self._daemon.pid, signal.SIGCONT)

    def listening_socket(self, address: str = "127.0.0.1") -> socket.socket:
        """A TCP server socket at this address of the network name space that this dockerd is in."""
        made: list[socket.socket] = []

        def make() -> None:
            with Path(f"/proc/{self._holder.pid}/ns/net").open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server((address, 0)))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def remove_containers(self) -> None:
        """Remove whatever containers there are."""
        with contextlib.closing(self.client()) as client:
            for container in client.containers(all=True):
                with contextlib.suppress(docker.errors.NotFound):
                    client.remove_container(container["Id"], force=True, v=True)

    def close(self) -> None:
        """End everything and remove what is left of it."""
        with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
            self.remove_containers()
        if self._daemon is not None and self._daemon.poll() is None:
            self.stop()
        if self._containerd is not None:
            self._containerd.terminate()
            self._containerd.wait(20)
        for process in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        wait_for(lambda: not self._processes(), "the engine's processes are gone")
        self._holder.kill()
        self._holder.wait()
        for parent in Path("/sys/fs/cgroup").glob(f"**/{self.directory.name}"):
            for group, _, _ in os.walk(parent, topdown=False):
                Path(group).rmdir()
        shutil.rmtree(self.directory)

    def _enter(self) -> list[str]:
        return [
            "nsenter",
            f"--net=/proc/{self._holder.pid}/ns/net",
            f"--mount=/proc/{self._holder.pid}/ns/mnt",
        ]

    def _apart(self) -> bool:
        own, theirs = Path("/proc/self/ns"), Path(f"/proc/{self._holder.pid}/ns")
        return all((own / kind).stat().st_ino != (theirs / kind).stat().st_ino for kind in ("net", "mnt"))

    def _start_containerd(self) -> None:
        """Of its own, as hosts have it: one that dockerd starts would die with it."""
        configuration = self.directory / "containerd.toml"
        configuration.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        address = self.directory / "containerd.sock"
        self._containerd = self._launch(
            [
                *(*self._enter(), "containerd", "--config", str(configuration), "--address", str(address)),
                *("--root", f"{self.directory}/containerd", "--state", f"{self.directory}/containerd-state"),
            ]
        )
        wait_for(address.exists, "containerd listens", START_SECONDS)

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _end(self, how: signal.Signals) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(how)
        self._daemon.wait(20)

    def _processes(self) -> list[int]:
        mark = os.fsencode(self.directory)
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return [process for process in found if process != os.getpid()]
