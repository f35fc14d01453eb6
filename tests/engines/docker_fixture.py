"""Engines of containers of the tests' own: own directories, socket, containerd and network namespace.

They touch no engine that runs already, can be killed, stopped and restarted under their containers, and leave
neither processes nor mounts behind: each has network and mount namespaces to itself (a second dockerd in the
same network namespace would destroy the first one's bridge).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import docker
import pytest
import requests

from tests.conftest import cgroups_named
from tests.waiting import wait_for, wait_until_stopped

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
    "docker-init": "tini",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "unshare": "util-linux",
    "iptables": "iptables",
}
START_SECONDS = 300.0


def require(needed: Mapping[str, str]) -> None:
    """Fail, saying what to install, where a private engine can't be run: Debian packages by command."""
    missing = [package for program, package in needed.items() if shutil.which(program) is None]
    if missing:
        pytest.fail(f"this test needs an engine of containers; as root: apt-get install {' '.join(missing)}")
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


class PrivateEngine(ABC):
    """One engine. The image IMAGE is there from the start."""

    kind: ClassVar[str]
    daemon: ClassVar[str]
    """The command that is the engine."""
    package: ClassVar[str]
    registry_port: ClassVar[int] = 0
    """The port of its own loopback address at which it trusts a registry without TLS; 0: any port."""
    live_restore: bool
    """Containers go on when it ends."""

    def __init__(self) -> None:
        require({self.daemon: self.package, **NEEDED})
        self.directory = Path(tempfile.mkdtemp(prefix=f"vac-{self.kind}-", dir="/tmp"))
        self.url = f"unix://{self.directory}/{self.kind}.sock"
        self._version = "auto"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._launched: list[subprocess.Popen[bytes]] = []
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sleep", "infinity"]
        )
        try:
            wait_for(self._apart, "the namespaces are there")
            self.run("ip", "link", "set", "lo", "up")
            self.prepare()
            self.start()
            self.import_image(IMAGE, root_tar())
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def prepare(self) -> None:
        """Make what the engine needs before it starts for the first time."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The engine's command line."""

    def run(self, *command: str) -> None:
        """Run a command in the engine's network and mount namespaces."""
        subprocess.run([*self._enter(), *command], check=True)

    def client(self) -> docker.APIClient:
        """A new client of the engine; the caller closes it or lets it go. Podman takes long to say its version."""
        client = docker.APIClient(base_url=self.url, version=self._version, timeout=120)
        self._version = client.api_version
        return client

    def import_image(self, image: str, root: bytes, *changes: str) -> None:
        """Make an image of a root file system, with lines of a Dockerfile; Podman doesn't heed the tag."""
        repository, tag = image.split(":")
        with contextlib.closing(self.client()) as client:
            done = client.import_image_from_data(root, repository, tag, changes=list(changes))
            client.tag(json.loads(done.split("\n")[0])["status"], repository, tag)

    def import_tree(self, image: str, tree: Path) -> None:
        """Make an image of a directory tree."""
        archive = self.directory / "tree.tar"
        subprocess.run(["tar", "--create", "--file", archive, "--directory", tree, "."], check=True)
        repository, tag = image.split(":")
        with contextlib.closing(self.client()) as client:
            client.import_image_from_file(str(archive), repository, tag)
        archive.unlink()

    @property
    def namespace_pid(self) -> int:
        """A process that holds the engine's network namespace."""
        return self._holder.pid

    def image_id(self, reference: str) -> str:
        """The engine's id of an image."""
        with contextlib.closing(self.client()) as client:
            return str(client.inspect_image(reference)["Id"])  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Start the engine and wait until it answers."""
        self._daemon = self.launch(*self.command())
        wait_for(self.answers, f"{self.daemon} answers; its log: {self.directory}/log", START_SECONDS)

    def answers(self) -> bool:
        """Return True if the engine answers now."""
        if self._daemon is not None and self._daemon.poll() is not None:
            pytest.fail(f"{self.daemon} has ended:\n{(self.directory / 'log').read_text()[-2000:]}")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.settimeout(5)
                probe.connect(self.url.partition("://")[2])
                probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in probe.recv(64)
            except OSError:
                return False

    def kill(self) -> None:
        """Kill the daemon alone, as a crash would; containerd and containers go on."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon properly; dockerd without live-restore ends its containers."""
        self._end(signal.SIGTERM)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Within it the daemon accepts connections and answers nothing."""
        assert self._daemon is not None
        os.kill(self._daemon.pid, signal.SIGSTOP)
        try:
            wait_until_stopped(self._daemon.pid)
            yield
        finally:
            os.kill(self._daemon.pid, signal.SIGCONT)

    def listening_socket(self, address: str = "127.0.0.1") -> socket.socket:
        """A TCP server socket at this address of the network namespace that this engine is in."""
        made: list[socket.socket] = []

        def make() -> None:
            with Path(f"/proc/{self._holder.pid}/ns/net").open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server((address, self.registry_port)))

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
        for number in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        wait_for(lambda: not self._processes(), "the engine's processes are gone")
        self._holder.kill()
        for process in (self._holder, *self._launched):
            process.wait(20)
        for parent in cgroups_named(self.directory.name):
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

    def launch(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon in the engine's namespaces."""
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [*self._enter(), *command],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )
        self._launched.append(process)
        return process

    def environment(self) -> Mapping[str, str]:
        """Return variables to add to the daemons' environment."""
        return {}

    def _end(self, how: signal.Signals) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(how)
        self._daemon.wait(START_SECONDS)

    def _processes(self) -> list[int]:
        mark = os.fsencode(self.directory)
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return [process for process in found if process != os.getpid()]


class PrivateDocker(PrivateEngine):
    """A dockerd. live_restore: it keeps its containers when it ends."""

    kind = "docker"
    daemon = "dockerd"
    package = "docker.io"

    def __init__(self, live_restore: bool = False) -> None:
        self.live_restore = live_restore
        super().__init__()

    def prepare(self) -> None:
        """A containerd of its own, as hosts have it: one that dockerd starts would die with it."""
        configuration = self.directory / "containerd.toml"
        configuration.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        address = self.directory / "containerd.sock"
        self.launch(
            *("containerd", "--config", str(configuration), "--address", str(address)),
            *("--root", f"{self.directory}/containerd", "--state", f"{self.directory}/containerd-state"),
        )
        wait_for(address.exists, "containerd listens", START_SECONDS)

    def command(self) -> Sequence[str]:
        """See PrivateEngine."""
        return [
            *("dockerd", "--host", self.url, "--shutdown-timeout", "2"),
            *("--data-root", f"{self.directory}/data", "--exec-root", f"{self.directory}/exec"),
            *("--pidfile", f"{self.directory}/pid", "--containerd", f"{self.directory}/containerd.sock"),
            *("--cgroup-parent", f"/{self.directory.name}"),
            *(["--live-restore"] if self.live_restore else []),
        ]
