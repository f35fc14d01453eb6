"""A machine's container: its configuration for the engine, its creation, reasons why it can't be made, and its usage.

The paths inside are those of Vac 3's containers; the form is the body of the Docker Engine API's
POST /containers/create. Mounts are given as such, never as "binds": the engine would create a missing source.

Usage is read from the kernel's files: no call to the engine for each container. A container's cgroup is gone before the
engine reports its end. So each container's first process is watched (pidfd): at its exit, when all others in its PID
namespace have been killed already, the final figures are read while the engine is still cleaning up.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import tarfile
import threading
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast
from urllib.parse import quote

import docker.errors

from vac.drivers.base import CreationFailed, MachineSpec, Usage, with_growing_counters
from vac.drivers.docker.docker_api import Client, Server, explanation
from vac.drivers.docker.docker_images import Image
from vac.host.cgroups import CPU_PERIOD, MOST_SHARES, EngineGroup, find_engine_group, find_mounts
from vac.host.child_processes import call_at_end
from vac.host.connections import Contact, contacts_by_group, contacts_within
from vac.host.filesystems import CVMFS
from vac.host.syscall_filter import Rule, rules
from vac.text import without_url_secrets

LABEL_SPACE = "vac.space"
LABEL_FACTORY = "vac.factory"
LABEL_MACHINETYPE = "vac.machinetype"
LABEL_UUID = "vac.uuid"
LABEL_NAME = "vac.machine"
LABEL_DIRECTORY = "vac.directory"
LABEL_IMAGE = "vac.image"
LABEL_DIGEST = "vac.digest"

FEATURES = {
    "MACHINEFEATURES": "/etc/machinefeatures",
    "JOBFEATURES": "/etc/jobfeatures",
    "JOBOUTPUTS": "/var/spool/joboutputs",
}
"""Paths inside, by the variable that tells them."""
PROC = Path("/proc")
FUSE = Path("/dev/fuse")
"""Lets unprivileged programs mount image files: the kernel asks for no more than a user namespace."""
LONGEST_HOST_NAME = 64
"""Of the kernel, bytes."""
PROFILE = "seccomp.json"
"""In the machine's directory, the seccomp profile for Podman, which takes the path of a file."""
LOG_OPTIONS = {"max-size": "1m", "max-file": "2"}
PASSWD = "/etc/passwd"
LONGEST_PASSWD_BYTES = 1024 * 1024
TAR_OVERHEAD_BYTES = 64 * 1024
"""Headers, extended ones too, and padding, of an archive of one file."""
FILE_TYPE_BITS = 0x8F280000
"""Of a Go os.FileMode: ModeType. A regular file has none of them set."""

_log = logging.getLogger(__name__)


def make_container(client: Client, spec: MachineSpec, image: Image, server: Server) -> str:
    """Make and start the machine's container, and return its id; on failure remove it again.

    Raises CreationFailed with a reason, and the SDK's errors when the engine can't be reached.
    """
    try:
        _check_sources(spec)
        make_tmp_binds(spec)
        container_id = _create(client, spec, image, server)
        try:
            user = spec.machinetype.container_user or image.user
            uid = _uid(client, container_id, user)
            if uid == 0 and opens_proc(spec):
                raise CreationFailed(f"container_user {user} is root in the image: not with container_nested")
            spec.hand_over(uid)
            _check_command(client, container_id, spec, image)
            client.start(container_id)
        except BaseException:
            with contextlib.suppress(docker.errors.NotFound):
                client.remove_container(container_id, force=True, v=True)
            raise
    except docker.errors.APIError as error:
        raise CreationFailed(creation_failure(explanation(error), spec)) from error
    except OSError as error:
        if isinstance(error, docker.errors.DockerException) or error.filename is None:
            raise
        raise CreationFailed(f"{error.filename}: {error.strerror}") from error
    return container_id


def _create(client: Client, spec: MachineSpec, image: Image, server: Server) -> str:
    if server.podman:
        path = spec.directory / PROFILE
        try:
            path.write_text(seccomp_profile(opens_namespaces(spec)))
        except OSError as error:  # without a file's name if it is the write itself that fails
            raise CreationFailed(f"{path}: {error.strerror}") from error
    config = container_config(spec, image, podman=server.podman, systemd=server.systemd)
    try:
        return client.make_container(config, spec.name)
    except docker.errors.APIError as error:
        if "already in use" not in explanation(error):
            raise
        name = f"{spec.name}.{spec.uuid[:8]}"
        _log.warning("%s: another container has this name; it is created as %s", spec.name, name)
        return client.make_container(config, name)


def _uid(client: Client, container_id: str, user: str) -> int:
    """Return the number of the user who runs inside; names are looked up in the image."""
    name = user.partition(":")[0] or "0"
    if name.isdigit():
        return int(name)
    for line in read_passwd(client, container_id).splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] == name and fields[2].isdigit():
            return int(fields[2])
    raise CreationFailed(f"the image's {PASSWD} has no user {name}: give its number")


def _check_command(client: Client, container_id: str, spec: MachineSpec, image: Image) -> None:
    """Refuse an image without the command: the init would only tell once the container runs."""
    command = spec.machinetype.container_command
    bound = any(f"{command}/".startswith(f"{mount['Target']}/") for mount in _mounts(spec))
    if not (image.entrypoint or bound or client.has_path(container_id, command)):
        raise CreationFailed(f"the image has no {command}, which is the container_command")


def container_config(spec: MachineSpec, image: Image, *, podman: bool, systemd: bool) -> dict[str, object]:
    """Return the container of this machine, in vac.slice where the engine leaves cgroups to systemd."""
    machinetype = spec.machinetype
    fits = len(spec.name.encode()) <= LONGEST_HOST_NAME
    short, _, domain = spec.name.partition(".")
    return {
        "Hostname": spec.name if fits else short,
        "Domainname": "" if fits else domain,
        "Image": image.id,
        "Cmd": [machinetype.container_command],
        "User": machinetype.container_user or "",
        "Env": [f"{variable}={path}" for variable, path in FEATURES.items()],
        "Labels": {
            LABEL_SPACE: spec.settings.vac_space,
            LABEL_FACTORY: spec.settings.factory_name,
            LABEL_MACHINETYPE: machinetype.name,
            LABEL_UUID: spec.uuid,
            LABEL_NAME: spec.name,
            LABEL_DIRECTORY: str(spec.directory),
            LABEL_IMAGE: without_url_secrets(machinetype.root_image or ""),
            LABEL_DIGEST: image.digest,
        },
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Init": True,
            "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "json-file", "Config": LOG_OPTIONS},
            "NetworkMode": machinetype.container_network,
            "Dns": list(machinetype.container_dns),
            "Mounts": _mounts(spec),
            **_limits(spec),
            **({"CgroupParent": "vac.slice"} if systemd else {}),
            **_privileges(spec, podman=podman),
        },
    }


def opens_proc(spec: MachineSpec) -> bool:
    """Tell if the machine may see all of /proc, which the kernel asks for before a nested one may mount its own.

    Its files protect themselves by owner: whoever is root there, or could become it, would write the host's settings.
    """
    machinetype = spec.machinetype
    user = (machinetype.container_user or "0").partition(":")[0]
    root = user == "root" or (user.isdigit() and int(user) == 0)
    return machinetype.container_nested and not root and not machinetype.container_capabilities


def creation_failure(text: str, spec: MachineSpec) -> str:
    """Return the engine's reason in words of somebody who configures Vac."""
    command = spec.machinetype.container_command
    if found := re.search(r"bind source path does not exist: (\S+)", text):
        return f"{found[1]} doesn't exist on this host, and the machinetype needs it bound into the container"
    if found := re.search(r"path (\S+) is mounted on (\S+) but it is not a shared or slave mount", text):
        return (
            f"{found[1]} can't follow later mounts: make {found[2]} shared (mount --make-rshared {found[2]})"
        )
    for init, package in (("docker-init", "tini"), ("container-init", "catatonit")):
        if init in text and "not found" in text:
            return f"the engine lacks its {init}, which reaps zombies in containers: install {package}"
    if re.search(r"unable to find user|unknown user|no matching entries in passwd", text):
        return f"the image has no user {spec.machinetype.container_user or 'as its USER says'}: {text}"
    if found := re.search(r'exec: "([^"]*)"', text):
        return f"{found[1] or command} can't be run in the image: {text}"
    return text


def opens_namespaces(spec: MachineSpec) -> bool:
    """Tell if the filter of system calls lets the machine make namespaces and mounts."""
    return spec.machinetype.container_nested or "SYS_ADMIN" in spec.machinetype.container_capabilities


def seccomp_profile(nested: bool) -> str:
    """Return the seccomp profile for container_nested, or without, as JSON; 32-bit programs are filtered alike.

    It lists refusals, since a profile can't be laid over the engine's own. Podman's own would let every machine make
    user namespaces, which the kernel counts by uid: one machine could use up those of all.
    """
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            ],
            "syscalls": [_refusal(rule) for rule in rules(nested)],
        }
    )


def read_passwd(client: Client, container_id: str) -> str:
    """Return /etc/passwd of a container that needn't run; "" if it has none, or none that can be read."""
    try:
        stream, found = client.get_archive(container_id, PASSWD)
    except docker.errors.NotFound:
        return ""
    content = bytearray()
    with contextlib.closing(cast("Generator[bytes, None, None]", stream)) as pieces:
        if found["mode"] & FILE_TYPE_BITS or found["size"] > LONGEST_PASSWD_BYTES:
            return ""
        for piece in pieces:
            content += piece
            if len(content) > LONGEST_PASSWD_BYTES + TAR_OVERHEAD_BYTES:
                return ""
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            first = archive.next()
            file = archive.extractfile(first) if first is not None and first.isfile() else None
            return "" if file is None else file.read(LONGEST_PASSWD_BYTES).decode(errors="replace")
    except tarfile.TarError:
        return ""


def _check_sources(spec: MachineSpec) -> None:
    """Refuse mounts of directories that aren't there: Podman would make them."""
    tokens = spec.machinetype.token_dir
    if tokens is not None and not tokens.is_dir():
        raise CreationFailed(f"{tokens}, the token_dir, is no directory of this host")
    present = Path(CVMFS) in Path("/").iterdir()  # not touched: it may hang
    if spec.machinetype.cvmfs_repositories and not present:
        raise CreationFailed(
            f"{CVMFS} doesn't exist on this host, and the machinetype has cvmfs_repositories"
        )


def make_tmp_binds(spec: MachineSpec) -> None:
    """Make the directories of tmp_binds: new, and for all users of the container, as /tmp is."""
    for path in spec.machinetype.tmp_binds:
        directory = tmp_bind_directory(spec, path)
        directory.mkdir(parents=True)
        directory.chmod(0o1777)


def tmp_bind_directory(spec: MachineSpec, path: str) -> Path:
    """Return the host's directory that the machine sees at this path of tmp_binds."""
    return spec.directory / "mnt" / quote(path.strip("/"), safe="")


def _mounts(spec: MachineSpec) -> list[dict[str, object]]:
    fresh = [("rw", str(tmp_bind_directory(spec, path)), path) for path in spec.machinetype.tmp_binds]
    return [
        {
            "Type": "bind",
            "Source": source,
            "Target": place,
            "ReadOnly": mode == "ro",
            "BindOptions": {"Propagation": "rslave" if place == CVMFS else "rprivate"},
        }
        for mode, source, place in [*spec.mounts(FEATURES), *fresh]
    ]


def _limits(spec: MachineSpec) -> Mapping[str, object]:
    """Reserve the machine's memory, and limit it without swap beyond that."""
    most, most_bytes = spec.limits, spec.limits.memory_limit_bytes
    limits: dict[str, object] = {
        "CpuShares": min(1024 * most.processors, MOST_SHARES),
        "MemoryReservation": min(most.memory_bytes, most_bytes or most.memory_bytes),
        "PidsLimit": most.pids,
    }
    if most.cpu_quota is not None:
        limits |= {"CpuPeriod": CPU_PERIOD, "CpuQuota": most.cpu_quota}
    if most_bytes is not None:
        limits |= {"Memory": most_bytes, "MemorySwap": most_bytes}
    return limits


def _privileges(spec: MachineSpec, *, podman: bool) -> Mapping[str, object]:
    capabilities = spec.machinetype.container_capabilities
    options = [] if capabilities else ["no-new-privileges:true"]
    privileges: dict[str, object] = {"CapDrop": ["ALL"], "CapAdd": list(capabilities), "SecurityOpt": options}
    if podman:
        options.append(f"seccomp={spec.directory / PROFILE}")
    if not spec.machinetype.container_nested:
        return privileges
    options += [
        *([] if podman else [f"seccomp={seccomp_profile(nested=True)}"]),
        "apparmor=unconfined",
    ]
    if FUSE.exists():
        privileges["Devices"] = [
            {"PathOnHost": str(FUSE), "PathInContainer": str(FUSE), "CgroupPermissions": "rw"}
        ]
    if opens_proc(spec) and podman:
        options.append("unmask=/proc/*")
    elif opens_proc(spec):
        privileges |= {"MaskedPaths": ["/sys/firmware"], "ReadonlyPaths": []}
    return privileges


def _refusal(rule: Rule) -> dict[str, object]:
    arguments: list[dict[str, object]] = []
    if rule.mask is not None:
        arguments = [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": rule.mask, "valueTwo": rule.value}]
    elif rule.value is not None:
        arguments = [{"index": 0, "op": "SCMP_CMP_EQ", "value": rule.value}]
    names = sorted(rule.names)
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": rule.error, "args": arguments}


@dataclass
class _Container:
    id: str
    pid: int
    group: EngineGroup
    own_network: bool
    usage: Usage = field(default_factory=Usage)
    ended: bool = False
    listed: bool = False

    def measure(self) -> None:
        """Update the container's usage, as far as it can still be read."""
        used = self.group.usage()
        if used is None:
            self.ended = True
            return
        if used.peak_memory_bytes is None:
            used = replace(used, peak_memory_bytes=used.memory_bytes)
        with contextlib.suppress(OSError):
            if self.own_network and self.is_first_process():
                received, sent = parse_net_dev((PROC / str(self.pid) / "net" / "dev").read_text())
                used = replace(used, network_received_bytes=received, network_sent_bytes=sent)
        self.usage = with_growing_counters(used, self.usage)

    def watch(self) -> None:
        """Measure once more as soon as the first process ends."""
        try:
            call_at_end(self.pid, self._end, "docker-end")
        except OSError as error:
            _log.debug("cannot watch process %s: %s", self.pid, error)
            self.ended = isinstance(error, ProcessLookupError)

    def _end(self) -> None:
        self.measure()
        self.ended = True

    def is_first_process(self) -> bool:
        """Tell if the process number is still the container's. Raises OSError if there is no such process."""
        return self.id in (PROC / str(self.pid) / "cgroup").read_text()


class UsageMeter:
    """Measures the containers added to it; from any thread."""

    def __init__(self) -> None:
        self._mounts = find_mounts()
        self._lock = threading.Lock()
        self._containers: dict[str, _Container] = {}

    def knows(self, container_id: str) -> bool:
        """Tell if a container of this id can be measured."""
        with self._lock:
            container = self._containers.get(container_id)
            return container is not None and not container.ended

    def ended_process(self, container_id: str) -> int | None:
        """Return the number of the container's first process if that was measured and is gone; else None."""
        with self._lock:
            container = self._containers.get(container_id)
        return container.pid if container is not None and container.ended and _gone(container.pid) else None

    def add(self, container_id: str, pid: int, own_network: bool) -> None:
        """Measure this container, whose first process has this number, from now on.

        own_network: it has a network namespace of its own. Does nothing if it has ended meanwhile, or runs on another
        host.
        """
        try:
            group = find_engine_group(pid, container_id, self._mounts)
        except OSError:
            return
        if group is None:
            return
        with self._lock:
            before = self._containers.get(container_id)
            if before is not None and not before.ended:
                return
            usage = Usage() if before is None else before.usage
            container = _Container(container_id, pid, group, own_network, usage)
            self._containers[container_id] = container
            container.watch()

    def read(self, container_ids: Iterable[str]) -> Mapping[str, Usage]:
        """Return the usage of each of these, until its end if it has ended.

        Those that were asked for before and aren't any more are forgotten; new ones may have come meanwhile.
        """
        wanted = frozenset(container_ids)
        with self._lock:
            for container_id, container in list(self._containers.items()):
                if container.listed and container_id not in wanted:
                    del self._containers[container_id]
                    continue
                container.listed = container_id in wanted
                if not container.ended:
                    container.measure()
            return {container_id: container.usage for container_id, container in self._containers.items()}

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        """Return the remote ends of running containers' connections, by id. Raises OSError and CgroupError."""
        with self._lock:
            running = [each for each in self._containers.values() if not each.ended]
        shared = {each.id: each.group.processes() for each in running if not each.own_network}
        found = dict(contacts_by_group(shared)) if shared else {}
        for container in running:
            with contextlib.suppress(OSError):
                if container.own_network and container.is_first_process():
                    found[container.id] = contacts_within(container.pid)
        return found


def parse_net_dev(text: str) -> tuple[int, int]:
    """Return bytes received and sent over all interfaces but lo; the format is proc(5)'s /proc/net/dev."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        interface, _, counters = line.partition(":")
        if interface.strip() != "lo":
            numbers = counters.split()
            received += int(numbers[0])
            sent += int(numbers[8])
    return received, sent


def _gone(pid: int) -> bool:
    """Tell if no process of this number runs. One that has ended and waits for its parent doesn't."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
